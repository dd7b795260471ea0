"""The final answer of a response, and whether two answers are the same.

One implementation for everything that compares answers by rule: benchmarks, data building, training reward.
Only the standard library; no function raises on any text, and all take about linear time.

    final_span(text)                        what the text gives as its final answer, "" if nothing
    letter, letters, yes_no, number         one kind of answer, read from a text; None (or an empty set): none
    normalise(text), same_answer(a, b)      free-form answers
    kind_of(gold)                           letter, yes_no, number or text
    matches(response, gold, choices=None)   all of it together: is this response right?

A text that gives no answer, or two, has none: nothing is guessed.  At the end stand the rules of a common
harness with their bugs, for comparison with numbers that were made by it.

    python -m judges.answers RESPONSE GOLD [CHOICE ...]     the span, the kind of the gold answer, the match
"""

import ast
import json
import math
import operator
import re
import string
import sys

MAX_LENGTH = 500        # characters; what is longer is no short answer and is only compared as it stands

# Full-width forms to ASCII; all signs for one thing to one sign.
SIGNS = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)} | str.maketrans({
    "\u3000": " ", "\xa0": " ", "\u200b": "", "、": ",", "。": ".", "【": "[", "】": "]",
    "−": "-", "–": "-", "—": "-", "‐": "-", "‑": "-", "×": "*", "·": "*", "⋅": "*", "÷": "/", "⁄": "/",
    "∕": "/", "’": "'", "‘": "'", "“": '"', "”": '"', "º": "°", "˚": "°", "²": "^2", "³": "^3",
    "½": " 1/2", "¼": " 1/4", "¾": " 3/4"})


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
WRAPPED = re.compile(r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mathit|operatorname|mbox)\s*\{([^{}]*)\}")
BOX = re.compile(r"\\f?box(?:ed)?\s*\{|\\[{}]|[{}]")


def clean(span: str) -> str:
    """Without what only dresses an answer: $, \\(, \\text{}, bold, quotes, a full stop at the end."""
    span = re.sub(r"\\[()\[\]]", "", WRAPPED.sub(r"\1", span)).strip(" \t\r\n*_`$\"“”")
    return span.rstrip(".。,，;； \t\r\n*_`$\"“”")


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

# A capital that stands alone and is not denied.  "A" before a lower-case word is an article, but for these.
LONE_LETTER = re.compile(r"(?<![\w\-\\∠])(?<!\b[Nn]ot )(?<!\b[Nn]or )(?<!\b[Nn]either )"
                         r"(A(?! (?!(?:is|and|or|because|since|as|would|seems|has|but|with)\b)[a-z])|[B-Z])"
                         r"(?![\w\-]|'\w|\.\w)", re.A)
# X at the beginning: "X", "(x)", "**X**", "X. ...", "option x", "X because ...", but not "X, Y" and "e.g."
LEADING_LETTER = re.compile(r"(?:option|choice)?[\s*_:$\"'(\[]*([A-Za-z])"
                            r"(?:[\s*_$\"'.,:;!?)\]]*$|[*_)\]]+|\.(?![A-Za-z])|:"
                            r"|,(?! ?[A-Za-z]\b)|\s+(?:because|since|as)\b|\s+\()", re.I)


def lone_letters(text: str, allowed: str) -> list[str]:
    return [capital for capital in dict.fromkeys(LONE_LETTER.findall(text)) if capital in allowed]


def leading_letter(text: str, allowed: str) -> str | None:
    found = LEADING_LETTER.match(text)
    return found[1].upper() if found and found[1].upper() in allowed else None


def option_by_text(text: str, options: dict[str, str]) -> str | None:
    """The one option whose text is in the text; "dark red" is not also "red"."""
    text = normalise(text)
    there = {key: words for key, option in options.items() if (words := normalise(option))
             and re.search(rf"(?<![\w.]){re.escape(words)}(?!\w|\.\d)", text)}
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
    sentences = [part for part in SENTENCE_END.split(lines[-1]) if part.strip(OUTER_PUNCTUATION)]
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
    words = re.sub(r"\b(?:no (?:doubt|matter|problem|wonder)|yes (?:or|and) (?:a )?no|yes/no)\b", "", words)
    if first := re.match(r"\W*(?:there (?:is|are|was|were) )?(yes|no)\b", words):
        return first[1]
    # In a long text without a final answer, only its very end counts besides its beginning.
    found = set(re.findall(r"\b(?:yes|no)\b", words) if span else
                re.findall(r"\b(?:yes|no)\b(?=\W*$)", words[-40:]))
    return found.pop() if len(found) == 1 else None


# ------------------------------------------------------------------------------------------ free-form answers

def fraction(found: re.Match) -> str:
    """a/b, with the parentheses that it needs: 1/2, √3/2, (x+1)/2, 1/(2π)."""
    top, bottom = found[1] or found[3], found[2] or found[4]
    return (top if re.fullmatch(r"[\w.√]+", top) else f"({top})") + "/" + (
        bottom if re.fullmatch(r"[\d.]+|√?\d+|\w", bottom) else f"({bottom})")


SIMPLIFICATIONS = [(re.compile(pattern), new) for pattern, new in [
    (WRAPPED.pattern, r"\1"), (r"\{,\}", ","), (r"(?<![\w.])\.(?=\d)", "0."), (r"\\([%{}])", r"\1"),
    (r"\\(?:left|right|displaystyle|bigl?|bigr)(?![a-z])|\\[,;:! ()\[\]$]|[$~]", ""),
    (r"\\(?:times|cdot)(?![a-z])", "*"), (r"\\div(?![a-z])", "/"),
    (r"\\pi(?![a-z])|(?<![a-z])pi(?![a-z])", "π"),
    (r"\^ ?(?:\{ ?\\circ ?\}|\\circ(?![a-z]))|\\degree(?![a-z])", "°"), (r"\\?sqrt ?(?=[({\d])", "√"),
    (r"√ ?[({]([\w.]+)[)}]", r"√\1"), (r"\^\{(-?[\w.]+)\}", r"^\1"), (r"(?<=\d) (?=[π√])", ""),
    (r"\\[dtc]?frac ?(?:\{([^{}]+)\} ?\{([^{}]+)\}|(\d) ?(\d))", fraction),
    (r"(?<![\d.,])\d{1,3}(?:,\d{3})+(?![\d,])", lambda found: found[0].replace(",", "")),
    (r" ?, ?", ", "), (r" ?([-+*/=<>^:;(){}\[\]|%°]) ?", r"\1")]]
ARTICLES = {"the": r"\w", "an": r"\w", "a": r"(?!and\b|or\b)\w\w"}         # else a letter or a variable
OUTER_PUNCTUATION = ".,;:!?'\"`*_ \t"


def simplify_once(text: str) -> str:
    for pattern, new in SIMPLIFICATIONS:
        text = pattern.sub(new, text)
    kept: list[str] = []
    for word in reversed((text.strip(OUTER_PUNCTUATION) or text).split()):
        if not (word in ARTICLES and kept and re.match(ARTICLES[word], kept[-1])):
            kept.append(word)
    text = " ".join(reversed(kept))
    return text[1:-1] if re.fullmatch(r"\([^()]*\)|\[\w*\]", text) and ", " not in text else text


def normalise(text: str) -> str:
    """A canonical spelling: lower case; without $, \\text, articles, outer punctuation, blanks around
    operators and thousands commas; one sign for each operator; plain fractions and roots.

    >>> [normalise(text) for text in ("The $ x +  1 $.", "\\\\dfrac{1}{2}", "1,234.5 cm²", "(B)", "a,c")]
    ['x+1', '1/2', '1234.5 cm^2', 'b', 'a, c']
    """
    text = " ".join(text.casefold().translate(SIGNS).casefold().split())
    seen = set()
    while len(text) <= MAX_LENGTH and text not in seen:         # until nothing changes
        seen.add(text)
        text = " ".join(simplify_once(text).split())
    return text


NUMBER_WORDS = "zero one two three four five six seven eight nine ten eleven twelve".split()
NUMBER_SCALES = {"hundred": 1e2, "thousand": 1e3, "million": 1e6, "billion": 1e9, "trillion": 1e12}
UNITS = {"degree": "°", "deg": "°", "percent": "%", "meter": "m", "metre": "m", "centimeter": "cm",
         "centimetre": "cm", "millimeter": "mm", "kilometer": "km", "kilometre": "km", "gram": "g",
         "kilogram": "kg", "second": "s", "sec": "s", "minute": "min", "hour": "h", "hr": "h", "liter": "l",
         "litre": "l", "inche": "in", "inch": "in", "foot": "ft", "feet": "ft", "newton": "n", "joule": "j",
         "watt": "w", "volt": "v", "dollar": "", "unit": ""}
KNOWN_UNITS = {*UNITS.values(), "°c", "°f",
               *"hz khz mhz kw mw ml mg ms kn kj mv kv lb lbs oz mph kpa pa rad ev gb mb px".split()}
OPERATORS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv,
             ast.Pow: operator.pow, ast.USub: operator.neg, ast.UAdd: operator.pos}
PLAIN_NUMBER = re.compile(r"[-+]?\(?[-+]?\d+\.?\d*(e[-+]?\d+)?\)?(/\(?[-+]?\d+\.?\d*\)?)?"
                          r"|[-+]?\(\d+\+\d+/\d+\)")


def calculate(node: ast.expr) -> float:
    if isinstance(node, ast.Constant):
        return float(node.value)
    if isinstance(node, ast.Name):
        return {"pi": math.pi}[node.id]
    if isinstance(node, ast.Call):
        return math.sqrt(calculate(node.args[0]))
    sides = [node.operand] if isinstance(node, ast.UnaryOp) else [node.left, node.right]
    return OPERATORS[type(node.op)](*map(calculate, sides))


def value_of(text: str) -> float:
    """A number, a fraction or a mixed number; an expression only with a root, π or a power: 2+3 is no result.

    Raises ValueError, or what Python's parser and arithmetic raise.
    """
    if text in NUMBER_WORDS:
        return float(NUMBER_WORDS.index(text))
    text = re.sub(r"(\d+) (\d+/\d+)", r"(\1+\2)", text.translate({ord("{"): "(", ord("}"): ")"}))
    ambiguous = re.search(r"/\d[\d.]*[π√(]", text)                               # 1/2π
    if not PLAIN_NUMBER.fullmatch(text) and (ambiguous or not re.search("[π√^]", text)):
        raise ValueError("not a number")
    # No huge integers.
    text = re.sub(r"\d+\.?\d*(?:e[-+]?\d+)?", lambda found: repr(float(found[0])), text)
    text = re.sub(r"√(\d[\d.e+]*|π)", r"√(\1)", text)
    text = re.sub(r"(?<=[\d)π])(?=[π√(])|(?<=[)π])(?=\d)", "*", text)
    text = text.replace("√", "root").replace("π", "pi").replace("^", "**")
    return float(calculate(ast.parse(text, mode="eval").body))


def quantity(text: str) -> tuple[float, str] | None:
    """(number, unit), unit "" if there is none."""
    text = normalise(text)
    if len(text) > 80:
        return None
    text = re.sub(r"^(?:about|approximately|approx\.?|roughly|around|≈|\\approx|=|[a-z∠\\ ']{1,12}=)+ ?", "",
                  text)
    currency = re.match(r"-?([€£¥])", text)
    text = re.sub(r"[€£¥]", "", text)
    found = re.match(r"[-+]?[\dπ√(](?:[\dπ√.()+\-*/^{}]|(?<=\d)e(?=[-+]?\d)|(?<=\d) (?=\d+/\d))*"
                     r"|[a-z]+", text)
    if not found:
        return None
    rest, words = text[found.end():], text[found.end():].split()
    try:
        value = value_of(found[0])
        if words and words[0] in NUMBER_SCALES:
            value *= NUMBER_SCALES[words.pop(0)]
    except (SyntaxError, ValueError, ArithmeticError, LookupError, TypeError, AttributeError, MemoryError):
        return None
    unit = " ".join(UNITS.get(word, UNITS.get(word.rstrip("s"), word.rstrip("s") or word)) for word in words)
    unit = re.sub(r"^square (.*)", r"\1^2", re.sub(r"(?<=m)([23])$", r"^\1", unit))
    base = re.sub(r"\^[23]$", "", unit).split("/")[0]
    # 5x, 5 or 6, 3:2, 1990s are no quantities: a single letter, or what is written together, must be a known
    # unit.
    known = base in KNOWN_UNITS and rest != "s" or rest.startswith(" ") and len(base) > 1
    wrong = (not known or re.search(r"[\d,=;+]", base) or len(words) > 3
             or {*NUMBER_WORDS, "and", "or", "to"} & set(words))
    if not math.isfinite(value) or unit and wrong:
        return None
    return value, currency[1] if currency else unit


def number(text: str) -> float | None:
    """The number a short text is.  Units are left out, and 50% is 50; a text with two numbers is none.

    >>> [number(text) for text in ("about −1,234.5 cm", "50%", "\\\\frac{3}{4}", "2.5 × 10^{-3}", "5x")]
    [-1234.5, 50.0, 0.75, 0.0025, None]
    """
    return (quantity(text) or [None])[0]


def elements(text: str) -> list[str]:
    """Elements of a list: "a, b", "(1, 2)", "a and b".  A comma in a number separates nothing."""
    text = normalise(text)
    inside = text[1:-1] if re.fullmatch(r"[(\[{].*[)\]}]", text) else text
    return [part for part in re.split(r", (?:and )?|;| and ", inside) if part]


def same_answer(given: str, gold: str) -> bool:
    """Whether two short answers are the same: as spelt by normalise(), as numbers to 1e-6, or element by
    element.

    A unit may be left out, but two that are given must be the same.

    >>> same_answer("$\\\\frac12$", "0.5"), same_answer("(1, 0.5)", "(1, 1/2)"), same_answer("5 cm", "5 m")
    (True, True, False)
    """
    a, b = normalise(given), normalise(gold)
    if not a or not b or a == b:
        return a == b
    if max(len(a), len(b)) > MAX_LENGTH:
        return False
    first, second = quantity(a), quantity(b)
    if first and second:
        units = {first[1], second[1]} - {""}
        return math.isclose(first[0], second[0], rel_tol=1e-6) and len(units) < 2
    ones, others = elements(a), elements(b)
    brackets = {a[0], b[0]} & set("([{")                       # (1, 2) is not [1, 2]; both may be 1, 2
    return len(ones) == len(others) > 1 and len(brackets) < 2 and all(map(same_answer, ones, others))


# ------------------------------------------------------------------------------------ a response and its gold

def kind_of(answer: str) -> str:
    """letter, yes_no, number or text.

    >>> [kind_of(gold) for gold in ("(B)", "Yes", "1,200 kg", "Joint-CNN")]
    ['letter', 'yes_no', 'number', 'text']
    """
    answer = clean(answer.translate(SIGNS))
    if re.fullmatch(r"[A-J]|[(\[][A-Ja-j][)\]]", answer):
        return "letter"
    if answer.casefold() in ("yes", "no"):
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
        return yes_no(response) == normalise(gold)
    span = final_span(response)
    return bool(span) and same_answer(span, gold)


# --------------------------------------- as VLMEvalKit does, bugs included; used only by --harness vlmevalkit

REFUSALS = ("Sorry, I can't help with images of people yet.", "I can't process this file.",
            "I'm sorry, but without the image provided", "Cannot determine the answer")


def harness_letter(text: str, options: dict[str, str] | str = "ABCD") -> str | None:
    """Z: refused; None: left to a judge.  "the answer is circular" is C, and an early "B. Because ..." is
    missed."""
    if any(refusal in text for refusal in REFUSALS):
        return "Z"
    tokens = re.sub(r"[.()\[\],:;!*#{}]", " ", text).split()
    there = [option for option in options if option in tokens]
    if len(there) == 1 and tokens.index(there[0]) >= len(tokens) - 4:
        return there[0]
    if found := re.search(r"answer is \**([A-D])", text, re.I):
        return found[1].upper()
    texts = {key: option.lower() for key, option in options.items()} if isinstance(options, dict) else {}
    there = [key for key, option in texts.items() if option in text.lower()]
    return there[0] if len(there) == 1 and len(text) <= 2 * sum(map(len, texts.values())) else None


def harness_first_capital(text: str) -> str | None:
    """MME-RealWorld: the first capital A-E of anything.  "Based on the map, D" is B, and an empty reply is
    A."""
    start = text.find("<answer>")
    if start >= 0 and (end := text.find("</answer>", start)) >= 0:
        text = text[start + len("<answer>"):end].upper()
    text = text.strip()
    # "Best answer:" is missing, as there (a comma is): "Best answer: D" is B.
    for prefix in ("The best answer is", "The correct answer is", "The answer is", "The answer"):
        text = text.replace(prefix, "")
    if found := re.search("[A-E]", text):
        return found[0]
    if len(text.split()) > 10:
        return None
    return next((option for option in "ABCDE" if text.lower() in f"({option.lower()})"), None)


def harness_yes_no(text: str) -> str | None:
    """HallusionBench: the word that is there, if the other is not.  "**Yes**" and "No: ..." are none."""
    plain = text.lower()
    for sign in ";/[]\"{}()=+\\_-><@`,?!":
        glued = f"{sign} " in text or f" {sign}" in text or re.search(r"\d,\d", text)
        plain = plain.replace(sign, "" if glued else " ")
    # Only the first 32 full stops: there, a flag stands where the count belongs.
    words = set(re.sub(r"\.(?!\d)", "", plain, count=32).split()) & {"yes", "no"}
    return words.pop() if len(words) == 1 else None


def harness_wemath_letter(text: str) -> str | None:
    """We-Math without a judge: the first character after the last "Answer", or of the whole text."""
    rest = re.sub(r"[<>:.]", "", text.split("Answer")[-1]).strip()
    return rest[0] if rest and rest[0] in "ABCDEFGH" else None


def main() -> None:
    if len(sys.argv) < 3:
        sys.exit("usage: python -m judges.answers RESPONSE GOLD [CHOICE ...]")
    response, gold, *options = sys.argv[1:]
    print(f"span:  {final_span(response)!r}\nkind:  {kind_of(gold)}\n"
          f"match: {matches(response, gold, dict(zip(string.ascii_uppercase, options)) or None)}")


if __name__ == "__main__":
    main()
