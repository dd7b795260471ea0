"""Are two short answers the same?  By rule, with the standard library alone; a judge is for everything else.

    normalise(text)             one spelling of a text: what is equal then is the same
    number(text)                the number that a text is, or None
    same_answer(given, gold)    as text, as a quantity with its unit, or part by part

Whole numbers, fractions, dates and codes compare exactly.  Where the reference states a decimal of three or
more digits, or the answer rounds a root, π or a fraction to five or more, half a unit of the last digit is
allowed.  No function raises on any text, and all take about linear time.

    python -m judges.equality GIVEN GOLD
"""

import ast
import math
import re
import sys
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

MAX_LENGTH = 500        # characters; what is longer is no short answer and is only compared as it stands

# Full-width forms to ASCII; all signs for one thing to one sign.
SIGNS = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)} | str.maketrans({
    "\u3000": " ", "\xa0": " ", "\u2009": " ", "\u202f": " ", "\u200b": "", "、": ",", "。": ".", "【": "[",
    "】": "]", "−": "-", "–": "-", "—": "-", "‐": "-", "‑": "-", "×": "*", "·": "*", "⋅": "*", "÷": "/",
    "⁄": "/", "∕": "/", "’": "'", "‘": "'", "“": '"', "”": '"', "º": "°", "˚": "°", "℃": "°C", "℉": "°F",
    "µ": "μ", "½": " 1/2", "¼": " 1/4", "¾": " 3/4", "⅓": " 1/3", "⅔": " 2/3", "⩽": "≤", "⩾": "≥",
    "≦": "≤", "≧": "≥", "′": "'", "″": '"', "¢": " cent"})
SMALL = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺₀₁₂₃₄₅₆₇₈₉", "0123456789-+0123456789")


# --------------------------------------------------------------------------------------------- one spelling

GREEK = "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi omicron pi rho sigma tau " \
        "upsilon phi chi psi omega"
COMMANDS = dict(zip(GREEK.split(), "αβγδεζηθικλμνξοπρστυφχψω", strict=True)) | {
    name: sign for sign, names in {
        "≤": "le leq leqslant leqq", "≥": "ge geq geqslant geqq", "≠": "ne neq", "<": "lt", ">": "gt",
        "±": "pm", "∞": "infty", "*": "times cdot ast", "/": "div", "≈": "approx", "∪": "cup", "∩": "cap",
        "∈": "in", "∅": "emptyset varnothing", "∠": "angle", "△": "triangle", "⊥": "perp", "∥": "parallel",
        "°": "degree", "→": "to rightarrow", "…": "ldots cdots dots", "{": "lbrace", "}": "rbrace",
        "ε": "varepsilon", "φ": "varphi", "θ": "vartheta", "or": "lor vee", "and": "land wedge",
        "": "left right displaystyle big bigl bigr limits", " ": "quad qquad"}.items()
    for name in names.split()}

WRAPPED = re.compile(r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mathit|operatorname|mbox)\s*\{([^{}]*)\}")
NUMERAL = r"(?:[零〇一二两三四五六七八九]?十[一二三四五六七八九]?|[零〇一二两三四五六七八九])"


def arabic(numeral: str) -> str:
    """A Chinese numeral below 100, or digits, in digits."""
    digits = numeral.translate(str.maketrans("零〇一二两三四五六七八九", "001223456789"))
    tens, ten, ones = digits.rpartition("十")
    return str(int(tens or 1) * 10 + int(ones or 0)) if ten else digits


def fraction(found: re.Match) -> str:
    """a/b, with the parentheses that it needs: 1/2, √3/2, (x+1)/2, 1/(2π), (2/3)π; after digits, of digits: a
    mixed number."""
    top, bottom = found[1] or found[3], found[2] or found[4]
    text = (top if re.fullmatch(r"[\w.√]+", top) else f"({top})") + "/" + (
        bottom if re.fullmatch(r"[\d.]+|√?\d+|\w", bottom) else f"({bottom})")
    before, after = found.string[:found.start()][-1:], found.string[found.end():][:1]
    if before.isdigit() and re.fullmatch(r"\d+/\d+", text):
        return f" {text}"
    return f"({text})" if re.match(r"[\w√(\\]", after) and text.count("/") else text


def wrapped(found: re.Match) -> str:
    """Upright letters behind a number are a unit, but for 5\\mathrm{i} and 5\\text{th}."""
    before, text = found.string[:found.start()][-1:], found[1]
    unit = (before.isdigit() or before == "}") and re.match(r"(?!(?:[eid]|th|st|nd|rd)$)[^\W\d_]", text)
    return " " * bool(unit or before.isalpha()) + text


SIMPLIFICATIONS: list[tuple[re.Pattern, Any]] = [(re.compile(pattern), new) for pattern, new in [
    (WRAPPED.pattern, wrapped), (r"\{,\}", ","), (r"(?<![\w.])\.(?=\d)", "0."), (r"\\([%{}])", r"\1"),
    (r"\\[,;:! ]|~", " "), (r"\\[()\[\]$]|\$", ""), (r"\bper cent\b", "percent"), ("''", '"'),
    (r"\^ ?(?:\\prime|\{ ?\\prime ?\})(?![a-z])", "'"),
    (r"(?:\{\})?\^ ?(?:\{ ?\\circ ?\}|\\circ(?![a-z]))", "°"), (r"\\?sqrt ?(?=[({\d])", "√"),
    (r"\\([a-z]+)", lambda found: COMMANDS.get(found[1], found[0])),
    (r"(?<![a-z])(?:pi|infinity)(?![a-z])", lambda found: {"pi": "π", "infinity": "∞"}[found[0]]),
    (r"<=", "≤"), (r">=", "≥"), (r"!=", "≠"), (r"\+/?-(?=[\d√π(])", "±"),
    (r"[⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺]+", lambda found: "^" + found[0].translate(SMALL)),
    (r"[₀₁₂₃₄₅₆₇₈₉]+", lambda found: "_" + found[0].translate(SMALL)),
    (r"√ ?[({]([\w.]+)[)}]", r"√\1"), (r"([\^_])\{(-?[\w.]+)\}", r"\1\2"), (r"(?<=\d) (?=[π√])", ""),
    (r" ?\\[dtc]?frac ?(?:\{([^{}]+)\} ?\{([^{}]+)\}|(\d) ?(\d))", fraction),
    (r"[(\[{][^()\[\]{}]*[)\]}]|(?<![\d.,])\d{1,3}(?:,\d{3})+(?![\d,])"
     r"|(?<![\d.,/])(?<![\d.,/] )\d{1,3}(?: \d{3})+(?! ?[\d,/])",
     lambda found: found[0] if found[0][0] in "([{" else re.sub("[, ]", "", found[0])),    # but (5,120)
    (rf"百分之({NUMERAL}|[\d.]+)", lambda found: arabic(found[1]) + "%"),
    (rf"({NUMERAL}|\d+)分之({NUMERAL}|\d+)", lambda found: f"{arabic(found[2])}/{arabic(found[1])}"),
    (r" ?([-+*/=<>≤≥≠≈±∈∪^_:;(){}\[\]|%°]) ?|([∠△]) ", r"\1\2"), (r" ?, ?", ", ")]]
CASED = [(re.compile(pattern), new) for pattern, new in [          # where capitals count; dollars
    (r"\\Omega(?![A-Za-z])|[Ω\u2126](?![^\W\d_])", "ohm"), (r"\\?\b[Aa]ngle (?=[A-Z]{1,3}\b)", "∠"),
    (r"(\d(?:[^A-Za-z\d]|\\(?:text|mathrm)\b){0,6})(?:(M)(?=(?:Wh?|Pa|J|e?V|ohm|N|Hz|A|g)\b)|m(?=Hz\b))",
     lambda found: found[1] + ("mega" if found[2] else "milli")), (r"(?<![A-Za-z])([KMGT])b\b", r"\1bit"),
    (r"(?:\bUS)?\\\$ ?(-?\.?(?:\d[\d,.]*)?\d(?: (?:hundred|thousand|million|billion|trillion)\b)?)"
     r"(?![\d,.]*(?:\w| ?(?:[\^\\*{(=+<>-]|/ ?[^A-Za-z])))(?: ?(?:dollars?|USD)\b)?", r"\1 dollars")]]
DELIMITER = re.compile(r"\$(?! ?-?\.?\d)")              # if there is none, $5 are dollars
ARTICLES = {"the": r"\w", "an": r"\w", "a": r"(?!and\b|or\b)\w\w"}         # else a letter or a variable


def simplify_once(text: str) -> str:
    for pattern, new in SIMPLIFICATIONS:
        text = pattern.sub(new, text)
    factorial = re.search(r"(?<![a-z])[\da-z)]!$", text)                                 # 4! is not 4
    inner = text.strip(".,;:!?`*_ \t")
    inner = inner.strip(inner[0]) if inner[:1] in ("'", '"') else inner            # A' is not A, 5" is not 5'
    kept: list[str] = []
    for word in reversed((inner + "!" * bool(factorial) or text).split()):
        if not (word in ARTICLES and kept and re.match(ARTICLES[word], kept[-1])):
            kept.append(word)
    text = " ".join(reversed(kept))
    return text[1:-1] if re.fullmatch(r"\([^(),;]*\)|\[\w*\]", text) else text


def normalise(text: str) -> str:
    """A canonical spelling: lower case; without $, \\text, articles, outer punctuation, blanks around
    operators and thousands separators; one sign for each operator and letter; plain fractions and roots.

    >>> [normalise(text) for text in ("The $ x +  1 $.", "\\\\dfrac{1}{2}", "1,234.5 cm²", "(B)", "a,c")]
    ['x+1', '1/2', '1234.5 cm^2', 'b', 'a, c']
    >>> [normalise(text) for text in ("x \\\\geq 2", "(5,120)", "2\\\\frac12", "x₁")]
    ['x≥2', '(5, 120)', '2 1/2', 'x_1']
    """
    if not DELIMITER.search(text):
        text = re.sub(r"\\?\$", r"\\$", text)
    for pattern, new in CASED:                                               # 5 MW is not 5 mW
        text = pattern.sub(new, text)
    text = " ".join(text.casefold().translate(SIGNS).casefold().split())
    seen = set()
    while len(text) <= MAX_LENGTH and text not in seen:         # until nothing changes
        seen.add(text)
        text = " ".join(simplify_once(text).split())
    return text


# ------------------------------------------------------------------------------------------------- quantities

NUMBER_WORDS = "zero one two three four five six seven eight nine ten eleven twelve".split()
NUMBER_SCALES = {word: Fraction(scale) for word, scale in (pair.split("=") for pair in (
    "dozen=12 hundred=100 thousand=1e3 万=1e4 lakh=1e5 million=1e6 crore=1e7 亿=1e8 billion=1e9 "
    "trillion=1e12 half=1/2 halve=1/2 third=1/3 quarter=1/4 fourth=1/4 fifth=1/5 sixth=1/6 seventh=1/7 "
    "eighth=1/8 ninth=1/9 tenth=1/10 hundredth=1/100 thousandth=1/1000").split())}
# No units, but words that change a number, or say that it is none; variables.
NO_UNIT = re.compile(
    r"\b(?:and|or|to|is|was|be|not|no|nor|never|cannot|unless|if|when|where|except|without|but"
    r"|least|most|below|too|wrong|incorrect|false|invalid|impossible|plus|minus|divided|multiplied|raised|choose"
    r"|mod|modulo|root|log|ln|exp|sin|cos|tan|\w+teen|(?:twen|thir|for|fif|six|seven|eigh|nine)ty"
    rf"|(?:{'|'.join([*NUMBER_WORDS, *NUMBER_SCALES])})s?)\b|n't\b|\b(?:(?:times|than) \w\b|(?:over|by) \w)"
    r"|^(?:squared|cubed|factorial)\b|^(?:[^/]* )?[a-fikopqruxyzα-ψ](?: |$)")
# Unit -> dimension, factor; other words: spellings of these.
UNITS: dict[str, tuple[str, Any]] = {unit: (dimension, Fraction(factor)) for dimension, units in {
    "m": "nm=1e-9 μm=1e-6 mm=1e-3 cm=1e-2 dm=1e-1 m=1 km=1000 in=0.0254 ft=0.3048 yd=0.9144 mi=1609.344",
    "g": "μg=1e-6 mg=1e-3 g=1 kg=1000 megag=1e6 ton=1e6 lb=453.59237 oz=28.349523125",
    "s": "ns=1e-9 μs=1e-6 ms=1e-3 s=1 min=60 h=3600 day=86400", "l": "ml=1e-3 cl=1e-2 dl=1e-1 l=1",
    "amp": "ma=1e-3 amp=1 megaa=1e6", "hz": "millihz=1e-3 hz=1 khz=1000 mhz=1e6 megahz=1e6 ghz=1e9",
    "mb": "mb=1 gb=1000", "mbit": "mbit=1 gbit=1000", "usd": "cent=0.01 usd=1",
    **{unit: f"m{unit}=1e-3 {unit}=1 k{unit}=1000 mega{unit}=1e6" for unit in "n j w v pa ev ohm".split()},
    **{unit: f"{unit}=1" for unit in "% ° °c °f rad px mph € £ ¥ ' \"".split()}}.items()
    for unit, factor in (pair.split("=") for pair in units.split())}
SPELLINGS = {word: unit for unit, words in {
    "°": "degree deg 度", "%": "percent", "m": "meter metre 米", "cm": "centimeter centimetre 厘米 公分",
    "mm": "millimeter millimetre 毫米", "km": "kilometer kilometre 千米 公里", "g": "gram 克",
    "mg": "milligram 毫克", "kg": "kilogram 千克 公斤", "ton": "tonne t 吨", "s": "second sec 秒",
    "min": "minute 分钟", "h": "hour hr 小时 时", "day": "天 日", "l": "liter litre 升",
    "ml": "milliliter millilitre 毫升", "in": "inche inch", "ft": "foot feet", "yd": "yard", "mi": "mile",
    "lb": "pound", "oz": "ounce", "n": "newton 牛 牛顿", "j": "joule 焦 焦耳", "w": "watt 瓦 瓦特",
    "kw": "kilowatt 千瓦", "v": "volt 伏 伏特", "amp": "ampere 安 安培", "ohm": "ω 欧 欧姆",
    "pa": "pascal 帕 帕斯卡", "hz": "hertz 赫兹", "°c": "celsiu 摄氏度", "usd": "dollar 美元",
    "rad": "radian", "€": "euro eur 欧元", "£": "gbp 英镑", "¥": "元 人民币 yuan rmb", "": "unit"}.items()
    for word in words.split()}
COUNTERS = "个只条张本块支枚件棵辆人名位颗次朵头匹"                    # Chinese measure words: no units
ABOUT = re.compile(r"^(?:about|approx(?:imately|\.)?|roughly|around|[≈=]|约为?|大约)+ ?"
                   r"| is (?:(?:correct|right|final) )?answer$")
NUMERIC = re.compile(r"[-+]?[\dπ√(](?:[\dπ√.()+\-*/^{}]|(?<=\d)e(?=[-+]?\d)|(?<=\d) (?=\d+/\d))*")
DECIMAL = re.compile(r"[-+]?(\d+)\.(\d+)(?:(?:e|\*10\^)\(?([-+]?\d{1,3})\)?)?")
PLAIN_NUMBER = re.compile(r"[-+]?\(?[-+]?\d+\.?\d*(e[-+]?\d+)?\)?(/\(?[-+]?\d+\.?\d*\)?)?"
                          r"|[-+]?\(\d+\+\d+/\d+\)")
NO_NUMBER = (SyntaxError, ValueError, ArithmeticError, LookupError, TypeError, AttributeError, MemoryError)


@dataclass
class Quantity:
    value: Fraction | float      # a Fraction is exact; a root or π is a float
    unit: str                    # "" if there is none
    step: Fraction | None        # one unit of the last digit, if it is written as a decimal
    digits: int                  # significant digits of such a decimal
    glued: bool                  # 5n, 2mg: the unit may be variables

    def times(self, factor: Fraction) -> "Quantity":
        return replace(self, value=self.value * factor, step=self.step and self.step * factor)


def calculate(node: ast.expr) -> Fraction | float:
    if isinstance(node, ast.Constant):
        return Fraction(node.value)
    if isinstance(node, ast.Name):
        return {"pi": math.pi}[node.id]
    if isinstance(node, ast.Call):
        value = calculate(node.args[0])
        if isinstance(value, Fraction) and value >= 0:
            root = Fraction(math.isqrt(value.numerator), math.isqrt(value.denominator))
            return root if root * root == value else math.sqrt(value)
        return math.sqrt(value)
    if isinstance(node, ast.UnaryOp):
        return -calculate(node.operand) if isinstance(node.op, ast.USub) else calculate(node.operand)
    a, b = calculate(node.left), calculate(node.right)
    if isinstance(node.op, ast.Pow):
        if isinstance(a, Fraction) and isinstance(b, Fraction) and b.denominator == 1 and abs(b) <= 400:
            return a ** int(b) if abs(a) < 10**6 and a.denominator < 10**6 else float(a) ** float(b)
        return math.pow(a, b)
    return {ast.Add: lambda: a + b, ast.Sub: lambda: a - b, ast.Mult: lambda: a * b,
            ast.Div: lambda: a / b}[type(node.op)]()


def value_of(text: str) -> Fraction | float:
    """A number, a fraction or a mixed number; an expression only with a root, π or a power: 2+3 is no result.

    Raises one of NO_NUMBER.
    """
    text = re.sub(r"(\d+) (\d+/\d+)", r"(\1+\2)", text.translate({ord("{"): "(", ord("}"): ")"}))
    ambiguous = re.search(r"/\d[\d.]*[π√(]", text)                               # 1/2π
    if not PLAIN_NUMBER.fullmatch(text) and (ambiguous or not re.search("[π√^]", text)):
        raise ValueError("not a number")
    text = re.sub(r"√(\d[\d.e+]*|π)", r"√(\1)", text)
    text = re.sub(r"(?<=[\d)π])(?=[π√(])|(?<=[)π])(?=\d)", "*", text)
    # Literals become texts, which Fraction takes exactly as they are written.
    text = re.sub(r"\d+\.?\d*(?:e[-+]?\d{1,3}(?!\d))?", lambda found: repr(found[0]), text)
    text = text.replace("√", "root").replace("π", "pi").replace("^", "**")
    value = calculate(ast.parse(text, mode="eval").body)
    if not math.isfinite(value):
        raise ValueError("not a finite number")
    return value


def unit_of(words: list[str]) -> str:
    """In the shortest spelling: "cm", "m/s", "m^2"."""
    def part(word: str) -> str:
        singular = word.rstrip("s") or word
        return SPELLINGS.get(word, SPELLINGS.get(singular, singular))
    text = " ".join("/".join(map(part, re.split(r"/|每", word))) for word in words)
    text = re.sub("(?:^| )per ", "/", text).replace(" squared", "^2").replace(" cubed", "^3")
    text = re.sub(r"^° ?([cf])(?:elsiu|ahrenheit)?$", r"°\1", text)
    power = re.match(r"(?:(square|sq\.?|平方)|(?:cubic|立方))(?: |(?=[^ a-z])|$)", text)
    if power:
        base = part(text[power.end():])
        text = base and f"{base}^{2 if power[1] else 3}"
    return re.sub(r"(?<=m)([23])(?!\w)", r"^\1", text)


def dimension(unit: str) -> tuple[dict[str, int], Fraction] | None:
    """km/h -> ({m: 1, s: -1}, 1000/3600); a litre is a cubic decimetre.  None: not known."""
    dimensions, factor = {}, Fraction(1)
    for i, name in enumerate(unit.split("/")):
        found = re.fullmatch(r"([^\d^]+)(?:\^(\d))?", name)
        if not found or found[1] not in UNITS:
            return None
        (base, scale), power = UNITS[found[1]], int(found[2] or 1) * (-1 if i else 1)
        base, scale, times = ("m", scale / 1000, 3) if base == "l" else (base, scale, 1)
        dimensions[base] = dimensions.get(base, 0) + power * times
        factor *= scale ** power
    return dimensions, factor


def quantity(text: str) -> Quantity | None:
    """The number that a normalised text is, and its unit."""
    if len(text) > 80:
        return None
    text = ABOUT.sub("", text)
    currency = re.search(r"[€£¥]", text)
    text = re.sub(r"[€£¥] ?", "", text)
    text = re.sub(rf"^{NUMERAL}(?=$|[{COUNTERS}万亿]|{'|'.join(w for w in SPELLINGS if w >= '一')})",
                  lambda found: arabic(found[0]), text)
    found = NUMERIC.match(text) or re.match(r"[a-z]+", text)
    if not found:
        return None
    rest = text[found.end():]
    counter = re.match(rf" ?([{COUNTERS}])", rest)
    rest = rest[counter.end():] if counter else rest
    rest = re.sub("^[万亿]+", lambda found: f" {' '.join(found[0])} ", rest)
    words = rest.split()
    try:
        value = Fraction(NUMBER_WORDS.index(found[0])) if found[0] in NUMBER_WORDS else value_of(found[0])
        factor = Fraction(1)
        while words and words[0].rstrip("s") in NUMBER_SCALES:
            factor *= NUMBER_SCALES[words.pop(0).rstrip("s")]
        float(value * factor)                                             # one that no float can hold is none
    except NO_NUMBER:
        return None
    decimal = DECIMAL.fullmatch(found[0])
    step = Fraction(10) ** (int(decimal[3] or 0) - len(decimal[2])) * factor if decimal else None
    digits = len((decimal[1] + decimal[2]).lstrip("0")) if decimal else 0
    unit = unit_of(words)
    # 5x, 3:2, 1990s are no quantities: a single letter, or what is written together, must be a known unit.
    plain = re.sub(r"\^[23](?=/|$)", "", unit)
    base = plain.split("/")[0]
    known = base in {*UNITS, ""} and rest != "s" or rest.startswith(" ") and len(base) > 1 or counter
    changed = re.search(r"[\d,=;+<>≤≥π√]", plain) or NO_UNIT.search(" ".join(words))
    if unit and (not known or len(words) > 3 or changed):
        return None
    unit = currency[0] + unit * unit.startswith("/") if currency else unit
    glued = re.match(r"(?!m/s)(?:m[agv]|[a-zα-ω])(?![a-zα-ω])", rest)
    return Quantity(value * factor, unit, step, digits, bool(glued))


def number(text: str) -> float | None:
    """The number a short text is.  Units and names are left out, and 50% is 50; a text with two numbers is
    none.

    >>> [number(text) for text in ("about −1,234.5 cm", "50%", "\\\\frac{3}{4}", "2.5 × 10^{-3}", "5x")]
    [-1234.5, 50.0, 0.75, 0.0025, None]
    """
    found = quantity(named(normalise(text))[1])
    return float(found.value) if found else None


def same_number(given: Quantity, gold: Quantity) -> bool:
    """To the digits that are stated, see the head of this file."""
    a, b = given.value, gold.value
    gap, whole = abs(a - b), isinstance(b, Fraction) and b.denominator == 1
    if gap == 0 or isinstance(gap, float) and gap <= 1e-9 * abs(b):          # a root or π, as floats have it
        return True
    if given.step and (gold.step or whole) and gap <= (gold.step or 1) / 10**9:     # 0.30000000000000004
        return True
    if gold.step:                                                            # the reference was rounded
        endless = isinstance(a, float) or pow(10, a.denominator.bit_length(), a.denominator)       # √2, 1/3
        finer = given.step < gold.step if given.step else endless
        return gold.digits >= 3 and bool(finer) and gap <= gold.step / 2
    return bool(given.step) and not whole and given.digits >= 5 and gap < given.step


def same_quantity(given: Quantity, gold: Quantity) -> bool:
    """A unit may be left out, but not one that may be a variable: 5 is not 5n.  Two that are given must be of
    one kind, and are converted.  0.25% is not 0.25."""
    if not given.unit or not gold.unit:
        shares = (one.times(Fraction(1, 100)) if one.unit else one for one in (given, gold))
        if "%" in (given.unit, gold.unit) and same_number(*shares):
            return True
        counts = given.glued or gold.glued or given.unit == "%" and abs(gold.value) < 1
        return not counts and same_number(given, gold)
    if given.unit == gold.unit:
        return same_number(given, gold)
    one, other = dimension(given.unit), dimension(gold.unit)
    return bool(one and other and one[0] == other[0]
                and same_number(given.times(one[1]), gold.times(other[1])))


# ------------------------------------------------------------------------------------------------ the same

SYMBOL = re.compile(r"[∠△]?[^\W\d_]\w{0,3}['\"]*(?:_\w+|\([\w, ]{1,9}\))?")     # x, x_1, ∠abc, f'(x)
NAME = re.compile(r"[∠△]?[^\W\d_][\w'\"∠△\\ ]{0,19}(?:\([\w, ]{1,9}\))?")
OR, AND = r",? ?\bor\b ?| ?或者? ?", r",? ?\band\b ?| ?(?:和|以及) ?"
TURNED = {"<": ">", "≤": "≥", ">": "<", "≥": "≤"}


def named(text: str) -> tuple[str, str]:
    """"x=5" -> ("x", "5"), "5" -> ("", "5"); of a chain x=2+3=5 the last; "5=x" is turned round."""
    sides = re.split("[=∈]", text)
    if len(sides) < 2 or re.search(r"[<>≤≥≠]|\b(?:not|if|unless|when|where|but)\b|n't\b", text):
        return "", text
    if quantity(sides[0]) and NAME.fullmatch(sides[-1]) and not quantity(sides[-1]):
        sides.reverse()
    if not NAME.fullmatch(sides[0]):
        return ("", sides[-1]) if not re.search(r"[^\W\d_]", sides[0]) else ("", text)       # 8+2=10
    return sides[0], sides[-1]


def split(text: str, separator: str) -> list[str]:
    """At a separator outside of brackets; what is not balanced is not split."""
    parts, depth, start = [], 0, 0
    for found in re.finditer(rf"[(\[{{]|[)\]}}]|{separator}", text):
        depth += {"(": 1, "[": 1, "{": 1, ")": -1, "]": -1, "}": -1}.get(found[0], 0)
        if depth < 0:
            return [text]
        if depth == 0 and found[0] not in ")]}":
            parts.append(text[start:found.start()])
            start = found.end()
    return [part for part in [*parts, text[start:]] if part] if depth == 0 else [text]


def parts_of(text: str) -> tuple[str, list[str], bool]:
    """-> (outer brackets or "", parts, whether their order counts)."""
    if text.count("±") == 1:
        return "", [text.replace("±", "+", 1).lstrip("+"), text.replace("±", "-", 1)], False
    systems = split(text, rf"∪|{OR}")
    if len(systems) > 1 and ("∪" in text or all(part.count("=") > 1 for part in systems)):
        return "", systems, False
    alternatives = split(text, f"{OR}|{AND}")
    if len(alternatives) > 1:
        return "", [part for one in alternatives for part in split(one, ", |;")], False
    listed = split(text, ", |;")
    if len(listed) > 1:
        return "", listed, "=" not in listed[0]                           # x=2, x=3
    if re.fullmatch(r"[(\[{].*[)\]}]", text):
        inside = split(text[1:-1], ", |;")
        if len(inside) > 1 or text[0] == "{":
            return text[0] + text[-1], inside, text[0] != "{"
    return "", [text], True


def one_name(text: str) -> tuple[str, str]:
    """As named(), of a text with one relation: x=2, 3 -> ("x", "2, 3"), but x=2, y=3 stays whole."""
    return named(text) if len(re.findall("[=∈]", text)) == 1 else ("", text)


def names_of(parts: list[str]) -> list[str]:
    """Of x=2, y=3; none of x=2, x=3 or x_1=2, x_2=3, the values of one unknown."""
    names = [one_name(part)[0] for part in parts]
    return names if all(names) and len({name.split("_")[0] for name in names}) > 1 else []


def same(given: str, gold: str, depth: int = 0, loose: bool = False) -> bool:
    """same_answer() of normalised texts.  `loose`: the values of an unknown, whose order does not count."""
    if given == gold:
        return bool(gold)
    if not given or not gold or depth > 8:
        return False
    if re.fullmatch(r"0\d+", given) or re.fullmatch(r"0\d+", gold):             # a code: 007
        return False
    (name, rest), (other_name, other_rest) = one_name(given), one_name(gold)
    if name and other_name and not same_name(name, other_name):
        return False
    if name or other_name:
        return same(rest, other_rest, depth + 1, True)
    brackets, ones, ordered = parts_of(given)
    others_brackets, others, others_ordered = parts_of(gold)
    if len(ones) > 1 or len(others) > 1 or brackets or others_brackets:
        # (1, 2) is not [1, 2]; both may be 1, 2.
        if len(ones) != len(others) or brackets and others_brackets and brackets != others_brackets:
            return False
        names, other_names, both = names_of(ones), names_of(others), f"{OR}|{AND}"
        words = not re.search(r"\d", given) and re.search(both, given) and re.search(both, gold)
        if (words or names or other_names) and bool(re.search(OR, given)) != bool(re.search(OR, gold)):
            return False                                                    # a or b is not a and b
        if names and sorted(names) == sorted(other_names):
            ones, others = sorted(ones, key=one_name), sorted(others, key=one_name)
        pairs_in_order = all(same(one, other, depth + 1) for one, other in zip(ones, others, strict=True))
        if pairs_in_order or names or other_names or {brackets, others_brackets} - {"", "{}"} or (
                ordered and others_ordered and not loose):
            return pairs_in_order
        left = list(others) if len(others) <= 20 else []
        for one in ones:
            match = next((other for other in left if same(one, other, depth + 1)), None)
            if match is None:
                return False
            left.remove(match)
        return True
    (name, rest), (other_name, other_rest) = named(given), named(gold)                        # x=2+3=5
    if (rest, other_rest) != (given, gold):
        other_thing = name and other_name and not same_name(name, other_name)
        return not other_thing and same(rest, other_rest, depth + 1)
    if turned(given) == turned(gold):
        return True
    one, other = quantity(given), quantity(gold)
    return bool(one and other) and same_quantity(one, other)


def same_name(one: str, other: str) -> bool:
    """Two symbols that differ are two things; words for them are not compared."""
    if not SYMBOL.fullmatch(one) or not SYMBOL.fullmatch(other):
        return True
    return one == other or other == one.split("_")[0] or one == other.split("_")[0]


def turned(text: str) -> str:
    """5>x>2 -> 2<x<5, b=a -> a=b: the sides of relations in one order."""
    back = "".join(TURNED.get(side, side) for side in reversed(re.split("([<>≤≥=≠])", text)))
    return min(text, back)


def same_answer(given: str, gold: str) -> bool:
    """Whether a short answer is the reference: as spelt by normalise(), as quantity, or part by part (lists,
    points, sets, intervals, alternatives).

    A unit or a name may be left out, but two that are given must fit each other.

    >>> same_answer("$\\\\frac12$", "0.5"), same_answer("2 or -2", "\\\\pm 2"), same_answer("1.5 m", "150 cm")
    (True, True, True)
    >>> same_answer("(1, 4]", "(1, 4)"), same_answer("y = 5", "x = 5"), same_answer("5 cm", "5 m")
    (False, False, False)
    """
    a, b = normalise(given), normalise(gold)
    if max(len(a), len(b)) > MAX_LENGTH:
        return a == b
    return same(a, b) or a == b


def main() -> None:
    if len(sys.argv) != 3:
        sys.exit("usage: python -m judges.equality GIVEN GOLD")
    print(*(normalise(text) for text in sys.argv[1:]), same_answer(*sys.argv[1:]), sep="\n")


if __name__ == "__main__":
    main()
