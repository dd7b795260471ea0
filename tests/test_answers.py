"""judges/answers.py: tables of replies and what they say, and that no text whatever makes it fail or hang.

Guards against: answers taken from thoughts or from truncated replies, articles and variables taken for
options, a guess where a reply says two things, equal answers that differ in spelling, different ones that
look alike.
"""

import doctest
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given, settings, strategies as st
from texts import anything

from benchmarks import harness
from judges import answers
from judges.answers import final_span, kind_of, letter, letters, matches, yes_no
from judges.equality import normalise, same_answer

ROOT = Path(__file__).resolve().parent.parent


def test_the_examples_of_the_docstrings():
    done = doctest.testmod(answers)
    assert done.attempted >= 9 and not done.failed


# --------------------------------------------------------------------------------------------- the final span

@pytest.mark.parametrize("text, span", [
    # thoughts, and what is cut off
    ("<think>The answer is 3.</think>The answer is 4.", "4"),
    ("<think>\\boxed{3}</think>\n\n\\boxed{4}", "4"), ("thoughts that a template opened: 3</think> 4", "4"),
    ("<think>The answer is 4.", ""), ("<think>\\boxed{4}", ""), ("a</think>b<think>The answer is 5.", ""),
    ("<think>4</think>", ""), ("<think>a</think>The answer is 1.</think>The answer is 2.", "2"),
    ("<THINK>no</THINK> yes", "yes"), ("\\boxed{3} and then \\boxed{4", ""),
    ("<answer>B</answer> or rather <answer>C", ""), ("<answer>C", ""), ("\\boxed{", ""),
    ("\\boxed{\\text{C}", ""),
    # answer tags
    ("<answer>C</answer>", "C"), ("<answer> A </answer> hm <answer>\nB\n</answer>", "B"),
    ("<ANSWER>B</Answer>", "B"), ("<answer>\\boxed{5}</answer>", "5"), ("\\boxed{5} <answer>6</answer>", "6"),
    ("so C</answer>", "so C"), ("I write <answer> tags: <answer>D</answer>", "D"), ("<answer></answer>", ""),
    ("<answer>The answer is C</answer>", "The answer is C"), ("<answer>x</answer> The answer is y.", "x"),
    # boxes
    ("So \\boxed{5}.", "5"), ("\\boxed{3} or rather \\boxed{4}", "4"),
    ("\\boxed{\\frac{1}{2}}", "\\frac{1}{2}"), ("\\boxed{\\boxed{3}}", "3"), ("\\boxed{\\text{C}}", "C"),
    ("\\boxed{\\mathrm{C}}", "C"), ("$\\boxed{12}$", "12"), ("\\boxed{$ 5 $.}", "5"),
    ("\\boxed{40^\\circ}", "40^\\circ"), ("\\boxed {7}", "7"), ("\\fbox{7}", "7"),
    ("\\boxed{\\{1, 2\\}}", "\\{1, 2\\}"), ("\\boxed{x = {3}}", "x = {3}"), ("} \\boxed{5} {", "5"),
    ("\\boxed{5} Answer: 6", "5"), ("\\boxed{}", ""), ("\\boxed{5}}", "5"), ("{\\boxed{5}", "5"),
    ("\\boxed{\\textbf{(B)}\\ 40}", "(B)\\ 40"), ("\\boxed{\\left\\{1}", "\\left\\{1"),
    # JSON
    ('{"solution": "so 5", "short answer": "5"}', "5"), ('```json\n{"answer": 4.5}\n```', "4.5"),
    ('{"answer": ["A", "C"]}', "A, C"), ('{"answer": true}', "True"), ('{"answer": "a \\"b\\""}', 'a "b'),
    ('{"answer": "B", "why": "the answer is C"}', "B"), ('{"final_answer": "C"}', "C"),
    ('{"answer": ', '{"answer":'),
    # a line, a sentence
    ("It is so.\nAnswer: C", "C"), ("It is so.\nAnswer:C", "C"), ("Final answer: 12 cm\nThank you.", "12 cm"),
    ("**Answer**: 3", "3"), ("**Answer:** 3", "3"), ("### Final Answer: 3", "3"), ("> Answer: 3", "3"),
    ("Answer: 1\nAnswer: 2", "2"), ("Answer:\n\nC", "C"), ("The final answer is: 8 m", "8 m"),
    ("ANSWER： C", "C"), ("**Final Answer**\nThe answer is **C**.", "C"), ("答案：B", "B"),
    ("所以答案是B。因为它最大。还有很多别的原因可以说明这个问题", "B"),
    ("First of all, the answer is 5. This is sure.", "5"),
    ("So the answer is 3.5 cm. Sure, it is 3.5 cm.", "3.5 cm"),
    ("Therefore, the answer is: C. It could not be otherwise.", "C"),
    ("the answer is\n\n4 as it seems", "4 as it seems"),
    ("The answer is A. No, wait, the answer is B. Good.", "B"),
    ("The correct option is D, as it seems to be.", "D, as it seems to be"),
    ("The answer to the question is 7. I am sure of it.", "7"),
    ("We see that the answer is St. Louis. It is big.", "St. Louis"),
    ("The answer is 5. But the answer is not 6, I think.", "5"),
    ("The answer is 5! Really, I am very sure.", "5"),
    ("Well then, everything considered, answer: 17 apples. Fine.", "17 apples"),
    ("My answer would be 3. I guess so.", "3"),
    ("As we saw above, the best option is C. Every other option is wrong.", "C"),
    # a short reply, or none
    ("C", "C"), ("a red car", "a red car"), ("Paris.", "Paris"), ("$12$", "12"), ("**40°**", "40°"),
    ("`x`", "x"), ("", ""), ("   \n", ""), ("...", ""), ("It has more than five words here", ""),
    ("one two three four five", "one two three four five"),
    ("这座建筑物是埃菲尔铁塔", "这座建筑物是埃菲尔铁塔"),
    ("我不知道这张图片里面有什么东西，因为它实在是太模糊了，看不清楚", ""),
])
def test_final_span(text, span):
    assert final_span(text) == span


# ---------------------------------------------------------------------------------------------------- letters

@pytest.mark.parametrize("text, option", [
    ("C", "C"), ("c", "C"), ("(d)", "D"), ("(D)", "D"), ("[B]", "B"), ("C.", "C"), ("C)", "C"),
    ("**C**", "C"), ("**C", "C"), ("$B$", "B"), ("\\boxed{B}", "B"), ("\\boxed{\\text{(B)}}", "B"),
    ("C) 40", "C"), ("C: 40", "C"), ("C. 40", "C"), ("(C) 40°", "C"), ("**C.** 40", "C"), ("C, 40", "C"),
    ("C (the car)", "C"), ("C.40", "C"), ("C:40", "C"), ("option B", "B"),
    ("Option B is the correct one here.", "B"), ("option b", "B"), ("The correct option is B.", "B"),
    ("Based on the map, D", "D"), ("B. Because the angle is not right, so it follows.", "B"),
    ("B because A is too small", "B"), ("The answer is C because B is smaller than A.", "C"),
    ("The answer is: (C).", "C"), ("the answer is b", "B"), ("The best answer is: D", "D"),
    ("<answer>B</answer>", "B"), ("<think>A</think>B", "B"), ("Answer:C", "C"), ("Answer: **C**", "C"),
    ('{"short answer": "C"}', "C"), ("（D）", "D"), ("Ｄ", "D"), ("A）40", "A"), ("Ｂ．因为它最大", "B"),
    ("答案是Ｃ。", "C"), ("选B", "B"), ("A is wrong and B is right. The answer is B.", "B"),
    ("Not A but B", "B"), ("A, not B", "A"),
    ("The line is long and straight, which the text says, too.\n\nC", "C"),
    ("A. It is so, since everything here is red.", "A"),
    ("A. 20\nB. 30\nC. 40\nD. 50\nThe sum of all the angles is known.\n\nC", "C"),
    ("I think it must be \"C\"", "C"), ("The angle is 40 degrees, which makes D the only one left.", "D"),
    ("A and that is all", "A"), ("Answer: A", "A"),
    # cut off, or no answer: a letter that stands in passing is none
    ("Let me look at the point C in the picture. The distance is", None),
    ("In the picture I see a car. A", None),
    ("The point C is there, and from it I now go on.\n\nThe distance is", None),
    # nothing, or two things
    ("", None), ("answer is circular", None), ("The answer is circular.", None), ("answer is a dog", None),
    ("a dog", None), ("A dog", None), ("A cat is sitting on the mat over there.", None), ("Because", None),
    ("DEAD", None), ("I", None), ("A or B", None), ("A, C", None),
    ("A and B are both possible here, I think.", None), ("E", None), ("F. none", None),
    ("neither A nor B", None), ("I cannot determine the answer from this image.", None),
    ("I'm sorry, but I can't help with that.", None),
    ("A definitive answer cannot be given from what is visible here.", None),
    ("Cannot determine the answer", None), ("<think>The answer is A.", None),
    ("The answer is A.</think>", None), ("\\boxed{C", None), ("B. Because it is so and <answer>", None),
    ("A. 20\nB. 30\nC. 40\nD. 50\nWhich of them is it, I wonder?", None),
    ("AB is longer than AC, as can be seen.", None), ("Vitamin-C", None), ("A's friend", None),
    ("e.g. a dog", None), ("The answer is not A, I would say.", None),
])
def test_letter(text, option):
    assert letter(text) == option


COLOURS = {"A": "red", "B": "dark red", "C": "blue", "D": "A dark blue car"}
ANGLES = {"A": "20°", "B": "30°", "C": "40°", "D": "4"}


@pytest.mark.parametrize("text, options, option", [
    ("red", COLOURS, "A"), ("Dark red.", COLOURS, "B"), ("The answer is a dark red car.", COLOURS, "B"),
    ("a dark blue car", COLOURS, "D"), ("The car in the picture has a clearly blue colour.", COLOURS, "C"),
    ("It is red or it is blue, I do not know.", COLOURS, None), ("reddish", COLOURS, None),
    ("C", COLOURS, "C"), ("C. red", COLOURS, "C"), ("green", COLOURS, None), ("(b) dark red", COLOURS, "B"),
    ("40 degrees", ANGLES, "C"), ("40^\\circ", ANGLES, "C"), ("The answer is 40.", ANGLES, "C"),
    ("4", ANGLES, "D"), ("\\boxed{4}", ANGLES, "D"), ("4.5", ANGLES, None), ("14", ANGLES, None),
    ("\\boxed{\\text{C}}", ANGLES, "C"), ("E", ANGLES, None),
    ("the answer is circular", {"A": "square", "C": "circular"}, "C"),
    ("answer is a dog", {"A": "cat", "B": "dog"}, "B"),
    ("The image does not show it", {"A": "yes", "E": "The image does not show it"}, "E"),
    ("E", {"A": "yes", "E": "unknown"}, "E"), ("H", dict(zip("ABCDEFGH", "stuvwxyz")), "H"),
    ("yes", {"A": "Yes", "B": "No"}, "A"), ("the dog", {"A": "dog", "B": "Dog"}, None),
    ("Red, and it is not the option that is left over.", COLOURS, "A"), ("red", {"A": "", "B": "red"}, "B"),
    ("", {"A": ""}, None), ("angle B", {"A": "angle B", "B": "angle A"}, "A"),
    ("I would say the answer is B. dark red.", COLOURS, "B"),
    # what is denied is not chosen
    ("not red", COLOURS, None), ("The answer is not red", COLOURS, None), ("It isn't red", COLOURS, None),
    ("anything but red", COLOURS, None), ("neither red nor blue", COLOURS, None),
    ("red is wrong", COLOURS, None),
    ("The answer cannot be red.", COLOURS, None), ("red is not the answer", COLOURS, None),
    ("It is not a red car", COLOURS, None), ("everything except blue", COLOURS, None),
    ("The answer isn't A.", COLOURS, None), ("not (A)", COLOURS, None), ("anything but C", COLOURS, None),
    ("A is not the answer.", COLOURS, None), ("It is not option A", COLOURS, None),
    ("not blue but red", COLOURS, "A"), ("It is not blue, it is red.", COLOURS, "A"),
    ("red, not blue", COLOURS, "A"),
    ("red because it is not blue", COLOURS, "A"), ("A is not right and C is right", COLOURS, "C"),
    ("It is nothing but red.", COLOURS, "A"), ("The answer is A, not C.", COLOURS, "A"),
])
def test_letter_by_the_text_of_an_option(text, options, option):
    assert letter(text, options) == option


@pytest.mark.parametrize("text, chosen", [
    ("C and A", "AC"), ("A", "A"), ("A, C, D", "ACD"), ("A, C", "AC"), ("AC", "AC"), ("(A) and (C)", "AC"),
    ("a, c", "AC"), ("A & C", "AC"),
    ("The answer is C and A.", "AC"), ("\\boxed{A, C}", "AC"), ("\\boxed{\\text{A and C}}", "AC"),
    ("options B and D", "BD"), ("BED", "BDE"),
    ("Answer: A,C", "AC"), ("<answer>D; B</answer>", "BD"), ("Ａ、Ｃ", "AC"), ("a", "A"), ("A\nC", "AC"),
    ("B. Because the others are not so.", "B"),
    ("The answer is A and C because they fit.", "AC"), ("", ""), ("none", ""), ("a dog", ""), ("F", ""),
    ("A, F", "A"), ("AA", ""), ("aced", ""),
])
def test_letters(text, chosen):
    assert letters(text) == frozenset(chosen)


@pytest.mark.parametrize("text, said", [
    ("Yes", "yes"), ("no.", "no"), ("YES!", "yes"), ("**No**", "no"), ("\\boxed{Yes}", "yes"),
    ("<answer>no</answer>", "no"), ("No, it is.", "no"), ("No doubt, yes.", "yes"),
    ("There is no doubt that the dog is there: yes", "yes"), ("Yes, there is no dog in this picture.", "yes"),
    ("No, I do not say yes to that at all.", "no"), ("The answer is: no", "no"),
    ("Answer: Yes, it is.", "yes"), ("There is no dog", "no"),
    ("There are no dogs to be seen in this picture.", "no"),
    ("I have looked at all of it, and I say yes", "yes"), ("No problem: yes", "yes"),
    ("<think>yes</think>no", "no"), ('{"answer": "yes"}', "yes"), ("Ｙes", "yes"), ("So yes", "yes"),
    ("It is: No: none are.", "no"), ("I know.", None), ("", None), ("Yes or no", None),
    ("It is a yes or a no", None), ("nothing", None), ("eyes", None), ("not", None), ("<think>yes", None),
    ("I cannot say whether it is so.", None),
    ("The two lines of the text have no end and so they go on.", None), ("maybe", None), ("No matter", None),
    ("True", "yes"), ("\\boxed{False}", "no"), ("Nah.", "no"), ("Yeah, it is.", "yes"), ("是的。", "yes"),
    ("否", "no"), ("答案是：不是，因为它太小", "no"), ("\\boxed{正确}", "yes"), ("Trueness", None),
    ("是什么？", None),
])
def test_yes_no(text, said):
    assert yes_no(text) == said


# ---------------------------------------------------------------------------------------- all of it together

@pytest.mark.parametrize("gold, kind", [
    ("A", "letter"), ("(b)", "letter"), ("(B)", "letter"), ("H", "letter"), ("$C$", "letter"),
    ("Ｃ", "letter"), ("Yes", "yes_no"), ("no.", "yes_no"), ("5", "number"), ("1,200 kg", "number"),
    ("50%", "number"), ("\\frac{1}{2}", "number"), ("x", "text"), ("a", "text"), ("Z", "text"),
    ("A, C", "text"), ("Joint-CNN", "text"), ("False", "text"), ("C\nD", "text"), ("", "text"),
    ("埃菲尔铁塔", "text")])
def test_kind_of(gold, kind):
    assert kind_of(gold) == kind


@pytest.mark.parametrize("response, gold, choices, right", [
    ("So \\boxed{5}", "5", None, True), ("\\boxed{$ 5 $.}", "5", None, True),
    ("\\boxed{YES}", "yes", None, True), ("\\boxed{x + 1}", "$x+1$", None, True),
    ("\\boxed{15}", "5", None, False), ("\\boxed{}", "", None, False), ("", "", None, False),
    ("<think>\\boxed{5}", "5", None, False), ("\\boxed{5} no, \\boxed{6}", "5", None, False),
    ("It is 5 and not 6 or 7.", "5", None, False), ("\\boxed{40^\\circ}", "40", None, True),
    ("\\boxed{\\text{B}}", "B", None, True), ("\\boxed{b}", "(B)", None, True),
    ("The answer is H.", "H", None, True), ("\\boxed{A}", "B", None, False),
    ("No doubt, yes.", "Yes", None, True), ("\\boxed{no}", "yes", None, False),
    ("The answer is the Eiffel Tower.", "Eiffel tower", None, True), ("about 94.2", "94", None, False),
    ("\\boxed{C}", "C", ANGLES, True), ("\\boxed{40}", "C", ANGLES, True),
    ("\\boxed{C}", "40°", ANGLES, True), ("\\boxed{40°}", "40", ANGLES, True),
    ("\\boxed{B}", "40°", ANGLES, False),
    ("angle D equals 40 degrees. Therefore, the answer is: C.\nAnswer:C", "C", ANGLES, True),
    ("\\boxed{E}", "E", ANGLES, True), ("\\boxed{50}", "50", ANGLES, True),
    ("\\boxed{A, C}", "A and C", None, True), ("The answer is circular.", "C", None, False),
    ("answer is a dog", "A", None, False), ("", "A", None, False), ("\\boxed{A or B}", "A", None, False),
    ("so it is Joint CNN", "Joint-CNN", None, False),
    ("red 3 ; blue 2 ; plus 5 ; \\boxed{5}", "5", None, True),
    ("looks so ; \\boxed{ yes }", "yes", None, True), ("\\boxed{two points}", "2", None, True),
    ("\\boxed{是}", "yes", None, True), ("\\boxed{no}", "否", None, True), ("\\boxed{是}", "否", None, False),
    ("所以答案是5厘米。", "5 cm", None, True), ("答案：红色", "红色", None, True),
    ("答案：红色", "蓝色", None, False),
    ("\\boxed{x = 2 \\text{ or } x = 3}", "x=3, 2", None, True), ("\\boxed{2,3}", "x=2 or x=3", None, True),
    ("The answer is 5 is not it", "5", None, False), ("The answer is 5 dozen.", "5", None, False),
    ("\\boxed{5n}", "5", None, False), ("The answer is $5.", "€5", None, False),
    ("It is 5\"", "5'", None, False),
    ("The answer is $5.", "5", None, True), ("The answer is \"red.\"", "red", None, True),
    ("The answer is A'.", "A", None, False), ("\\boxed{\\$5}", "5 dollars", None, True),
    ("The answer is 5\".", "5 dollars", None, False), ("4 is the answer", "4", None, True),
    ("\\boxed{1000001}", "1000000", None, False), ("\\boxed{2\\frac{1}{2}}", "2.5", None, True),
])
def test_matches(response, gold, choices, right):
    assert matches(response, gold, choices) is right


# --------------------------------------------------------------------------------- the harness, bugs included

@pytest.mark.parametrize("text, options, option", [
    ("the answer is circular", "ABCD", "C"), ("answer is a dog", "ABCD", "A"),
    ("B. Because the angle at the top is not right", "ABCD", None), ("The answer is (D).", "ABCD", "D"),
    ("C", "ABCD", "C"), ("c", "ABCD", None), ("A B", "ABCD", None), ("the answer is E", "ABCDE", "E"),
    ("the answer is E, which is seen at the very left of it", "ABCDE", None),
    ("one two three C five six seven", "ABCD", "C"), ("one two three C five six seven eight", "ABCD", None),
    ("C is what I say at first but then still C", "ABCD", None),
    ("I'm sorry, but without the image provided I cannot", "ABCD", "Z"),
    ("a dark red car", {"A": "red car", "B": "blue car"}, "A"), ("", {"A": "red", "B": "blue"}, None),
    ("red " * 20, {"A": "red", "B": "blue"}, None), ("red or blue", {"A": "red", "B": "blue"}, None),
    ("**C**", "ABCD", "C")])
def test_harness_letter(text, options, option):
    assert harness.letter(text, options) == option


@pytest.mark.parametrize("text, option", [
    ("The best answer is: D", "D"), ("(d)", "D"), ("Based on the map, D", "B"), ("", "A"), ("E", "E"),
    ("<answer>the d is it</answer> B", "E"), ("d", "D"), ("Best answer: D", "B"), ("f", None),
    ("we all say that it is nothing of all that was said", None), ("The answer is", "A"), ("(", "A")])
def test_harness_first_capital(text, option):
    assert harness.first_capital(text) == option


@pytest.mark.parametrize("text, said", [
    ("Yes, it is.", "yes"), ("no", "no"), ("No doubt, yes.", None), ("**Yes**", None), ("No: none", None),
    ("There is no dog", "no"), ("", None), ("yes/no", None), ("I know", None), ("Yes.", "yes"),
    ("a. " * 32 + "yes.", None), ("a. " * 31 + "yes.", "yes")])
def test_harness_yes_no(text, said):
    assert harness.yes_no(text) == said


@pytest.mark.parametrize("text, option", [
    ("Answer: H", "H"), ("so the Answer is B. Answer: <C>", "C"), ("C", "C"), ("Answer: **C**", None),
    ("The Answer is C", None), ("", None), ("Because", "B")])
def test_harness_wemath_letter(text, option):
    assert harness.wemath_letter(text) == option


# -------------------------------------------------------------------------------------------- any text at all

dictionaries = st.dictionaries(st.sampled_from("ABCDEFGH"), anything, max_size=5)


@settings(max_examples=400, deadline=None)
@given(anything, anything, dictionaries)
def test_no_text_makes_it_fail(text, other, options):
    assert isinstance(final_span(text), str) and kind_of(text) in ("letter", "yes_no", "number", "text")
    assert letter(text) in {None, *"ABCD"} and letter(text, options) in {None, *options}
    assert letters(text) <= set("ABCDE") and letters(text, options) <= set(options)
    assert yes_no(text) in {None, "yes", "no"} and harness.yes_no(text) in {None, "yes", "no"}
    assert matches(text, other, options) in (True, False) and matches(text, other) in (True, False)
    assert harness.letter(text, options) in {None, "Z", *options, *"ABCD"}
    assert harness.first_capital(text) in {None, *"ABCDE"}
    assert harness.wemath_letter(text) in {None, *"ABCDEFGH"}


@given(st.sampled_from("ABCD"), st.sampled_from(["{}", "({})", "**{}**", "\\boxed{{{}}}", "Answer: {}",
                                                "The answer is {}.", "<answer>{}</answer>",
                                                "{}. Because it is so and not otherwise."]), anything)
def test_what_is_thought_does_not_count(option, form, thoughts):
    thoughts = thoughts.replace("<", "").replace(">", "")
    assert letter(f"<think>{thoughts}</think>" + form.format(option)) == option


FUNCTIONS = [letters, yes_no, normalise, harness.letter, harness.first_capital, harness.yes_no,
             harness.wemath_letter, lambda text: letter(text, COLOURS),
             lambda text: letter(f"The answer is {text}x"),
             lambda text: matches(text, "5"), lambda text: same_answer(text, text + " ")]


@pytest.mark.parametrize("piece", [
    " ", "\n", "\t", "\r\n ", ".", "*", "**A**", "-", "9", "9 ", "1,", "1,234,", "1/", "2^", "((", "[", "{",
    "}", "{{}", "\"", "\\", "$", "√(", "½", "²", "，", "a=", "A ", "A. ", "A.\n", "not A ", "the a ",
    "a a b ", "and or ", "no no yes ", "answer", "answer is ", "answer to ", "answer: .\n", "Answer: ",
    "答案", '"answer": [', '{"answer":{', "<think", "<think>", "</think>", "<answer>", "</answer>",
    "<answer></answer>", "\\boxed{", "\\boxed{}", "\\boxed{\\text{", "\\text{", "\\frac{1}{", "\\sqrt",
    "\\left(", "$1,", "$1 ", "n't A ", "not_", "isn't *", "5 M", "5'", "'\"", "A is ", "x=1, ", "x=1 or "])
def test_100_000_characters_of_anything_take_little_time(piece):
    text = (piece * 100_000)[:100_000]
    for function in FUNCTIONS:
        start = time.process_time()
        function(text)
        # Most take below 0.1 s; what is quadratic takes minutes.
        assert time.process_time() - start < 3, function


def test_it_works_in_a_thread_and_as_a_program():
    from concurrent.futures import ThreadPoolExecutor
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(matches, ["\\boxed{\\frac12}"] * 8, ["0.5", "1"] * 4)) == [True, False] * 4

    def out(*arguments):
        return subprocess.run([sys.executable, "-m", "judges.answers", *arguments], cwd=ROOT, timeout=60,
                              capture_output=True, text=True,
                              env={**os.environ, "PYTHONIOENCODING": "utf-8"})
    assert out("So \\boxed{5}", "5").stdout == "span:  '5'\nkind:  number\nmatch: True\n"
    assert out("red", "B", "blue", "red").stdout.endswith("match: True\n")
    assert out("5").returncode and "usage" in out("5").stderr
