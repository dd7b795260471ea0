"""The final answer of a response, and whether it is the reference's.

One implementation for everything that compares answers by rule: benchmarks, data building, training reward.
Only the standard library; no function raises on any text, and all take about linear time.

    final_span(text)                        what the text gives as its final answer, "" if nothing
    letter, letters, yes_no                 one kind of answer, read from a text; None (or an empty set): none
    kind_of(gold)                           letter, yes_no, number or text
    matches(response, gold, choices=None)   all of it together: is this response right?

A text that gives no answer, or two, has none: nothing is guessed.  Free-form answers: judges/equality.py.

    python -m judges.answers RESPONSE GOLD [CHOICE ...]     the span, the kind of the gold answer, the match
"""

import json
import re
import string
import sys

from judges.equality import DELIMITER, SIGNS, WRAPPED, normalise, number, same_answer, wrapped

# --------------------------------------------------------------------------------------------- the final span

ANSWER_TAG = re.compile(r"<(/?)answer>", re.I)
ANSWER_KEY = re.compile(r'"[\w ]*answer"\s*:\s*', re.I)
ANSWER_LINE = re.compile(r"[\s>#*_-]*(?:the |my )?(?:final |correct |best |short )?"
                         r"(?:answer|最终答案|答案)[*_ ]*(?:is[*_ ]*)?[:：][*_ ]*(.*)", re.I)
ANSWER_IS = re.compile(r"\b(?:answer|(?:correct|right|best) (?:option|choice))(?: (?:to|for) [^\n.:]{1,80}?)?"
                       r"(?: is| would be| should be| must be|[*_]{0,2}\s?[:：])"
                       r"(?! *(?:not|wrong|incorrect)\b)[:*_]*"
                       r"|答案(?:应该|应)?[是为:：]+", re.I)
# A full stop ends a sentence, but not in 3.5 nor after these abbreviations.
SENTENCE_END = re.compile(r"(?<!\bSt)(?<!\bDr)(?<!\bMr)(?<!\bMt)(?<!\bMrs)(?<!\bvs)"
                          r"[.!?](?=[\"”')*]*(?:\s|$))|[。！？\n]")
BOX = re.compile(r"\\f?box(?:ed)?\s*\{|\\[{}]|[{}]")


def clean(span: str) -> str:
    """Without what only dresses an answer: $, \\(, \\text{}, bold, quotes, a full stop at the end; but $5 are
    dollars, and 5" are inches."""
    span = re.sub(r"\\[()\[\]]", "", WRAPPED.sub(wrapped, span))
    ends = " \t\r\n*_`" + "$" * bool(DELIMITER.search(span))
    inner = span.lstrip(ends + "\"“”")
    inches = re.search("\\w[\"“”]", inner) and len(re.findall("[\"“”]", span)) == 1
    return inner.rstrip(ends + ".。,，;；" + "\"“”" * (not inches))


def boxed(text: str) -> str | None:
    """Content of the last \\boxed{}; "" if that one is never closed, None if there is none."""
    last, content, opened = -1, None, []
    for brace in BOX.finditer(text):
        if brace[0] == "}" and opened:
            begin = opened.pop()
            if begin[0] != "{" and begin.start() >= last:
                last, content = begin.start(), text[begin.end():brace.start()]
        elif brace[0] not in ("}", "\\{", "\\}"):
            opened.append(brace)
    return "" if any(begin[0] != "{" and begin.start() > last for begin in opened) else content


def from_json(text: str) -> str | None:
    """Value of the last key that ends in "answer" of a reply in JSON."""
    keys = list(ANSWER_KEY.finditer(text))
    if not keys:
        return None
    try:
        value = json.JSONDecoder().raw_decode(text, keys[-1].end())[0]
    except (ValueError, RecursionError):
        return None
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def after_thinking(text: str) -> str:
    """What follows the thoughts; "" if they never end, as in a truncated response."""
    text = re.split(r"(?i)</think(?:ing)?>", text)[-1]
    return "" if re.search(r"(?i)<think(?:ing)?>", text) else text.strip()


def final_span(text: str) -> str:
    """What the text gives as its final answer, "" if nothing.  The first step that finds something decides;
    in each step the last match wins.  A tag or box that is never closed means a truncated response: "".

    <answer>...</answer>; \\boxed{...}; "answer": in JSON; a line "Answer: ..."; "the answer is ..." up to the
    end of the sentence; the whole text, if it has at most five words.

    >>> final_span("<think>4?</think>First \\\\boxed{3}, rather \\\\boxed{\\\\text{about }\\\\frac{1}{2}}.")
    'about \\\\frac{1}{2}'
    >>> final_span("So the answer is 3.5 cm. That is all."), final_span("<think>The answer is 4.")
    ('3.5 cm', '')
    """
    text = after_thinking(text)
    tags = list(ANSWER_TAG.finditer(text))
    if tags:
        if not tags[-1][1]:
            return ""
        # A template may have opened the tag before the response begins.
        start = next((tag.end() for tag in reversed(tags) if not tag[1]), 0)
        end = next(tag.start() for tag in tags if tag[1] and tag.start() >= start)
        text = text[start:end]
        return clean(boxed(text) or text)
    for value in (boxed(text), from_json(text)):
        if value is not None:
            return clean(value)
    lines = [line for line in text.splitlines() if line.strip()]
    for i in reversed(range(len(lines))):
        found = ANSWER_LINE.match(lines[i])
        # The answer may also stand on the line after "Answer:".
        if found and (span := clean(found[1]) or clean(" ".join(lines[i + 1:i + 2]))):
            return span
    for found in reversed(list(ANSWER_IS.finditer(text))):
        start = found.end() + len(re.match(r"\s*", text[found.end():found.end() + 9])[0])
        end = SENTENCE_END.search(text, start)
        if span := clean(text[start:end.start() if end else len(text)]):
            return span
    words = len(text.split()) + len(re.findall(r"[\u3400-\u9fff]", text)) // 4         # Chinese has no blanks
    return clean(text) if words <= 5 else ""


# ----------------------------------------------------------------------------------------- letters, yes or no

# A capital that stands alone.  "A" before a lower-case word is an article, but for these.  A' is a point.
LONE_LETTER = re.compile(r"(?<![\w\-\\∠])"
                         r"(A(?! (?!(?:is|and|or|because|since|as|would|seems|has|but|with)\b)[a-z])|[B-Z])"
                         r"(?![\w\-]|'\w|\.\w|'(?<!'.'))", re.A)
# X at the beginning: "X", "(x)", "**X**", "X. ...", "option x", "X because ...", but not "X, Y" and "e.g."
LEADING_LETTER = re.compile(r"(?:option|choice)?[\s*_:$\"'(\[]*([A-Za-z])(?!'(?<!'.'))"
                            r"(?:[\s*_$\"'.,:;!?)\]]*$|[*_)\]]+|\.(?![A-Za-z])|:"
                            r"|,(?! ?[A-Za-z]\b)|\s+(?:because|since|as)\b|\s+\()", re.I)
# "not X", "isn't the option X", "neither X nor Y", "anything but X"; "X is wrong", "X isn't the answer"
DENIED_BEFORE = re.compile(
    r"(?:\b(?:not|nor|neither|never|cannot|except|(?:any|every)thing but|all but|(?:other|rather) than"
    r"|instead of)|n't)\b(?:[ *_(\"'$-]+(?!(?:but|and|so|because|since|as|that|only)\b)[^\W_]+){0,3}"
    r"[ *_(\"'$\[]*$", re.I)
DENIED_AFTER = re.compile(
    r"[*_)\]\"'$.]{0,6}(?: option| choice)? (?:is|are|was|were)(?: wrong| incorrect"
    r"|(?: not|n't)(?: the| a)?(?: correct| right| best| possible| answer| option| choice))\b", re.I)


def denied(found: re.Match) -> bool:
    start = found.start()
    return bool(DENIED_BEFORE.search(found.string[max(start - 60, 0):start])
                or DENIED_AFTER.match(found.string, found.end()))


def lone_letters(text: str, allowed: str) -> list[str]:
    there = [found[1] for found in LONE_LETTER.finditer(text) if found[1] in allowed and not denied(found)]
    return list(dict.fromkeys(there))


def leading_letter(text: str, allowed: str) -> str | None:
    found = LEADING_LETTER.match(text)
    return found[1].upper() if found and found[1].upper() in allowed else None


def option_by_text(text: str, options: dict[str, str]) -> str | None:
    """The one option whose text is in the text and not denied; "dark red" is not also "red"."""
    text = normalise(text)
    there = {key: words for key, option in options.items() if (words := normalise(option))
             and any(not denied(found) for found in re.finditer(
                 rf"(?<![\w.]){re.escape(words)}(?!\w|\.\d)", text))}
    whole = [key for key, words in there.items()
             if not any(words in other and words != other for other in there.values())]
    return whole[0] if len(whole) == 1 else None


def letter(text: str, options: dict[str, str] | str = "ABCD") -> str | None:
    """The option a text chooses; options are their letters, or a dictionary letter -> text.

    >>> letter("the answer is circular"), letter("Based on the map, D"), letter("B. Because the angle is so.")
    (None, 'D', 'B')
    >>> letter("The answer is a dark red car.", {"A": "red", "B": "dark red", "C": "blue"})
    'B'
    """
    allowed, texts = "".join(options), options if isinstance(options, dict) else {}
    span = final_span(text).translate(SIGNS)
    if span:
        first = leading_letter(span, allowed)
        if first and len(span) <= 3:
            return first
        equal = [key for key, option in texts.items() if same_answer(span, option)]
        found = equal if len(equal) == 1 else [first] if first else lone_letters(span, allowed) or equal
        return found[0] if len(found) == 1 else None if found else option_by_text(span, texts)
    text = after_thinking(text).translate(SIGNS)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    truncated = ANSWER_TAG.search(text) or boxed(text) is not None              # opened and never closed
    if not lines or truncated:
        return None
    if len(lines[-1]) < 8 and (last := leading_letter(lines[-1], allowed)):
        return last
    # "B. Because ...", but not where the list of options is copied.
    first, leading = leading_letter(lines[0], allowed), {leading_letter(line, allowed) for line in lines}
    if first and leading <= {first, None}:
        return first
    # Else only a short last sentence; "A" may be the first word of one that was cut off.
    sentences = [part for part in SENTENCE_END.split(lines[-1]) if re.search(r"\w", part)]
    *before, last = sentences or [""]
    if len(last.split()) > 12 or (before and last.strip() == "A" == lines[-1][-1]):
        return None
    found = lone_letters(last, allowed)
    return found[0] if len(found) == 1 else None if found else option_by_text(last, texts)


def letters(text: str, options: dict[str, str] | str = "ABCDE") -> frozenset[str]:
    """All options a text chooses, for questions with several right ones.

    >>> sorted(letters("The answer is C and A.")), sorted(letters("AC")), letters("none of them")
    (['A', 'C'], ['A', 'C'], frozenset())
    """
    allowed, span = "".join(options), final_span(text).translate(SIGNS)
    words = [word for word in re.findall(r"\w+", span)
             if word.lower() not in ("and", "or", "option", "options")]
    if len(words) == 1 and words[0].isupper() and len(set(words[0])) == len(words[0]):          # "AC"
        words = list(words[0])
    only_letters = all(len(word) == 1 for word in words)
    found = [word.upper() for word in words] if only_letters else lone_letters(span, allowed)
    return frozenset(found if found and set(found) <= set(allowed) else filter(None, [letter(text, options)]))


def yes_no(text: str) -> str | None:
    """ "yes" or "no"; of a text with both, what it begins with.

    >>> yes_no("No doubt, yes."), yes_no("Yes, there is no dog."), yes_no("I know.")
    ('yes', 'yes', None)
    """
    span = final_span(text)
    words = (span or after_thinking(text)).translate(SIGNS).casefold()
    if chinese := re.match(r"\W*(?:(不是|不对|不正确|否|错误?|没有)|是的?|对|正确)(?:\W|$)", words):
        return "no" if chinese[1] else "yes"
    words = re.sub(r"\b(?:no (?:doubt|matter|problem|wonder)|yes (?:or|and) (?:a )?no|yes/no)\b", "", words)
    first = re.match(r"\W*(?:there (?:is|are|was|were) )?(?:(yes|yeah|yep|true)|no|nope|nah|false)\b", words)
    if first:
        return "yes" if first[1] else "no"
    # In a long text without a final answer, only its very end counts besides its beginning.
    found = set(re.findall(r"\b(?:yes|no)\b", words) if span else
                re.findall(r"\b(?:yes|no)\b(?=\W*$)", words[-40:]))
    return found.pop() if len(found) == 1 else None


# ------------------------------------------------------------------------------------ a response and its gold

def kind_of(answer: str) -> str:
    """letter, yes_no, number or text.

    >>> [kind_of(gold) for gold in ("(B)", "Yes", "1,200 kg", "Joint-CNN")]
    ['letter', 'yes_no', 'number', 'text']
    """
    answer = clean(answer.translate(SIGNS))
    if re.fullmatch(r"[A-J]|[(\[][A-Ja-j][)\]]", answer):
        return "letter"
    if answer.casefold() in ("yes", "no", "是", "否"):
        return "yes_no"
    return "text" if number(answer) is None else "number"


def matches(response: str, gold: str, choices: dict[str, str] | None = None) -> bool:
    """Whether a response's final answer is the gold one.  With choices, their letter and their text both
    count.

    >>> matches("So \\\\boxed{\\\\frac{1}{2}}", "0.5")
    True
    >>> matches("The answer is blue.", "C", {"A": "red", "C": "blue"})
    True
    """
    kind = kind_of(gold)
    right = clean(gold.translate(SIGNS)).strip("()[]").upper() if kind == "letter" else ""
    if choices and right not in choices:             # the gold answer may be the text of its option
        right = next((key for key, option in choices.items() if same_answer(option, gold)), "")
    if right:
        return letter(response, choices or "ABCDEFGHIJ") == right
    if kind == "yes_no":
        return yes_no(response) == yes_no(gold)
    span = final_span(response)
    return bool(span) and same_answer(span, gold)


def main() -> None:
    if len(sys.argv) < 3:
        sys.exit("usage: python -m judges.answers RESPONSE GOLD [CHOICE ...]")
    response, gold, *options = sys.argv[1:]
    print(f"span:  {final_span(response)!r}\nkind:  {kind_of(gold)}\n"
          f"match: {matches(response, gold, dict(zip(string.ascii_uppercase, options)) or None)}")


if __name__ == "__main__":
    main()
