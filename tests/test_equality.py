"""judges/equality.py: tables of answers that are the same and of answers that only look alike.

Guards against: a reward for another number, point, unit or name; a right answer that is paid nothing because
it is spelt in another way; a text that makes a rule fail or hang.
"""

import doctest
import subprocess
import sys
from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import given, settings, strategies as st
from texts import anything

from judges import equality
from judges.equality import normalise, number, same_answer

ROOT = Path(__file__).resolve().parent.parent


def test_the_examples_of_the_docstrings():
    done = doctest.testmod(equality)
    assert done.attempted >= 4 and not done.failed


# ---------------------------------------------------------------------------------------------------- numbers

PI, ROOT3 = 3.141592653589793, 1.7320508075688772


@pytest.mark.parametrize("text, value", [
    ("5", 5), ("-5", -5), ("−5", -5), ("–5", -5), ("+5", 5), ("5.", 5), ("05", 5), (".5", 0.5), ("5.50", 5.5),
    ("$5$", 5), ("(5)", 5), ("５", 5), ("1,234", 1234), ("1,234,567.8", 1234567.8), ("1{,}234", 1234),
    ("-1,234", -1234), ("1\\,234", 1234), ("12,34", None), ("1,2", None), ("1, 234", None),
    ("about 94.2", 94.2), ("≈ 3.2", 3.2), ("~5", 5), ("approximately 1/2", 0.5), ("x = 5", 5),
    ("∠ABC = 40°", 40), ("AB = 7 cm", 7), ("50%", 50), ("50 percent", 50), ("50\\%", 50), ("40°", 40),
    ("40^\\circ", 40), ("40^{\\circ}", 40), ("40 degrees", 40), ("5 cm", 5), ("5cm", 5), ("5 cm^2", 5),
    ("5 cm²", 5), ("5 square meters", 5), ("12 m/s", 12), ("$12", 12), ("\\$12", 12), ("€12", 12),
    ("-€12", -12), ("3 apples", 3), ("two points", 2), ("Twelve", 12), ("5 million", 5e6),
    ("1.5 billion dollars", 1.5e9), ("\\frac{3}{4}", 0.75), ("\\dfrac34", 0.75), ("3/4", 0.75),
    ("-\\frac{1}{2}", -0.5), ("\\frac{-1}{2}", -0.5), ("3 1/2", 3.5), ("3½", 3.5), ("½", 0.5),
    ("-3 1/2", -3.5), ("1/0", None), ("3 1/0", None), ("1e5", 1e5), ("1.2E-3", 0.0012),
    ("2.5 × 10^{-3}", 0.0025), ("2.5 \\times 10^3", 2500), ("10^6", 1e6), ("2^10", 1024), ("π", PI),
    ("2π", 2 * PI), ("2\\pi", 2 * PI), ("2 pi", 2 * PI), ("\\frac{\\pi}{3}", PI / 3),
    ("\\frac{2\\pi}{3}", 2 * PI / 3), ("4π cm", 4 * PI), ("\\sqrt{3}", ROOT3), ("2\\sqrt{3}", 2 * ROOT3),
    ("\\frac{\\sqrt{3}}{2}", ROOT3 / 2), ("1+\\sqrt{3}", 1 + ROOT3), ("√3", ROOT3), ("√(3)", ROOT3),
    ("sqrt(3)", ROOT3), ("\\frac{1+\\sqrt{3}}{2}", (1 + ROOT3) / 2), ("\\frac{1}{2\\pi}", 1 / (2 * PI)),
    ("1/2π", None), ("\\frac{1}{2\\sqrt{3}}", 1 / (2 * ROOT3)), ("\\frac{1}{\\sqrt{3}}", 1 / ROOT3),
    ("five hundred", 500), ("\\text{5 cm}", 5), ("\\left(\\frac{1}{2}\\right)", 0.5),
    ("-2\\sqrt{3}", -2 * ROOT3),
    # no number, or not one
    ("", None), ("-", None), (".", None), ("x", None), ("5x", None), ("5xy", None), ("x+1", None),
    ("2+3", None), ("3-4", None), ("3:4", None), ("3:2", None), ("2*3", None), ("5 or 6", None),
    ("3 to 5", None), ("1/2/3", None), ("2020-05-01", None), ("12:30", None), ("1.2.3", None),
    ("5 a b c d", None), ("nan", None), ("inf", None), ("infinity", None), ("1_000", None), ("0x10", None),
    ("9^9^9^9^9", None), ("1990s", None), ("5 s", 5), ("1e999", None), ("1e308 million", None),
    ("\\sqrt{-1}", None), ("10^(400)", None), ("(-8)^(1/3)", None), ("√", None), ("π(", None),
    ("\\sqrt[3]{8}", None), ("two or three", None), ("5k", None), ("²", None), ("١٢", 12), ("5²", 25),
    ("3 = x", 3), ("1" * 400, None),
])
def test_number(text, value):
    assert number(text) == (pytest.approx(value, rel=1e-12) if value is not None else None)


# --------------------------------------------------------------------------------------------------- the same

@pytest.mark.parametrize("text, plain", [
    ("The Red Car.", "red car"), ("a", "a"), ("A dog", "dog"), ("an apple", "apple"), ("$x + 1$", "x+1"),
    ("x  +1", "x+1"), ("(B)", "b"), ("( 1 , 2 )", "(1, 2)"), ("\\text{red}", "red"),
    ("\\mathrm{cm}^2", "cm^2"), ("\\text{a \\textbf{b}}", "a b"), ("\\frac{1}{2}", "1/2"),
    ("\\dfrac{x+1}{2}", "(x+1)/2"), ("\\frac{1}{2\\pi}", "1/(2π)"), ("\\frac{\\sqrt{3}}{2}", "√3/2"),
    ("\\tfrac12", "1/2"), ("2\\cdot 3", "2*3"), ("2 × 3", "2*3"), ("−1", "-1"), ("Ａ，Ｂ", "a, b"),
    ("1,234", "1234"), ("1,234,5", "1, 234, 5"), ("\"yes\"", "yes"), ("the", "the"), ("the a", "a"), ("", ""),
    ("  \n", ""), ("x^{2}", "x^2"), ("\\left( x \\right)", "x"), ("\\pi r^2", "π r^2"), ("pie", "pie"),
    ("[C]", "c"), ("f(x)", "f(x)"), ("well-known", "well-known"), ("**bold**", "bold"),
])
def test_normalise(text, plain):
    assert normalise(text) == plain


EQUAL = [
    ("Red", "red."), ("the red car", "red car"), ("$\\frac12$", "0.5"), ("0.5", "1/2"),
    ("\\frac{1}{2}", "\\dfrac{2}{4}"), ("1,234", "1234"), ("1234.0", "1,234"),
    ("40°", "40"), ("40 degrees", "40^\\circ"), ("5 cm", "5"), ("5 centimeters", "5cm"),
    ("5 cm^2", "5 square centimeters"), ("50%", "50"), ("50%", "0.5"), ("50 %", "50 percent"),
    ("5 m^2", "5 m²"),
    ("2\\sqrt{3}", "\\sqrt{12}"), ("2π", "6.283185307"), ("\\frac{\\sqrt{3}}{3}", "\\frac{1}{\\sqrt{3}}"),
    ("3 1/2", "3.5"), ("two", "2"), ("two points", "2"), ("x=5", "5"),
    ("x + 1", "$x+1$"), ("\\frac{x}{2}", "x/2"), ("(1, 2)", "(1,2)"), ("(1, 0.5)", "(1, \\frac{1}{2})"),
    ("1, 2", "(1, 2)"), ("A, C", "A and C"), ("a;b", "a, b"), ("red, blue, and green", "red, blue, green"),
    ("-5", "−5"), ("1e3", "1000"), ("5 million", "5,000,000"), ("1 apple", "1 apples"), ("0", "-0"),
    ("$12", "12 dollars"), ("(5)", "5"), ("3 hours", "3 h"), ("Ｃ", "c"),
    # signs in LaTeX, in Unicode and in plain text
    ("x \\ge 2", "x ≥ 2"), ("x \\geqslant 2", "x >= 2"), ("x \\neq 2", "x ≠ 2"), ("\\theta", "θ"),
    ("\\angle ABC", "∠ABC"), ("3\\,k\\Omega", "3 kΩ"), ("6.02 \\times 10^{23}", "6.02×10²³"), ("v_{0}", "v₀"),
    ("25\\,000", "25 000"), ("37^\\circ\\mathrm{C}", "37 ℃"), ("\\frac{3}{4}\\pi", "3π/4"),
    ("\\emptyset", "∅"),
    ("(-\\infty, 0) \\cup (2, \\infty)", "(2, ∞) ∪ (-∞, 0)"), ("10^{-2}", "0.01"), ("\\sqrt2", "√2"),
    # mixed numbers; fractions beside a letter are factors
    ("3\\frac{1}{4}", "13/4"), ("5\\dfrac12\\text{ kg}", "5.5 kg"), ("-1\\tfrac{1}{2}", "-1.5"),
    # points, boxes, lists, sets: a comma within brackets separates
    ("(12,345)", "(12, 345)"), ("[640,480]", "[640, 480]"), ("\\{3, 1, 2\\}", "{1,2,3}"),
    ("(3;-2)", "(3, -2)"),
    ("((1,2),(3,4))", "((1, 2), (3, 4))"), ("\\left\\{0, 1\\right\\}", "{1, 0}"),
    # alternatives
    ("x = 2 or x = 3", "x = 3 or x = 2"), ("x = 2 or 3", "x=2, 3"), ("\\pm 3", "3 or -3"),
    ("x=±3", "x = -3, 3"),
    ("1 \\pm \\sqrt{2}", "1+√2, 1-√2"), ("x \\in \\{1, 2\\}", "{2, 1}"),
    ("x_1 = 1, x_2 = 2", "x = 1 or x = 2"),
    ("x=3, 2", "x=2 or x=3"), ("x = 2, 3", "3, 2"), ("x=2, 3", "x=3, 2"), ("P=(1,2)", "(1, 2)"),
    ("A 或 B", "B or A"), ("red and blue", "blue and red"), ("y=3, x=2", "x=2, y=3"),
    # relations turned round, names that may be left out
    ("x > 3", "3 < x"), ("2 < x ≤ 5", "5 ≥ x > 2"), ("5 = x", "x = 5"), ("8 + 2 = 10", "10"),
    ("y = 2x + 1", "2x+1"), ("AB = 7 cm", "7"),
    # units: of one kind, converted; Chinese ones
    ("12 square units", "12"), ("12 sq cm", "12 cm²"), ("1.5 m", "150 cm"), ("36 km/h", "10 m/s"),
    ("2 L", "2000 cm³"), ("90 minutes", "1.5 h"),
    ("0.4", "40%"),
    ("5厘米", "5 cm"), ("3 平方米", "3 m²"), ("１２元", "¥12"), ("5米/秒", "5 m/s"),
    ("2公斤", "2000 g"), ("3个", "3"),
    ("十二", "12"), ("三分之二", "2/3"), ("百分之四十", "40%"), ("3万", "30000"), ("约5厘米", "5 cm"),
    ("红色", "红色。"),
    # what is counted is no part of a number; words that are numbers
    ("5 apples", "5"), ("5 large red apples", "5"), ("5 units", "5"), ("8 times", "8"),
    ("12 times a year", "12"),
    ("5 left over", "5"), ("5 students are left", "5"), ("5 more than Bob", "5"), ("5 is the answer", "5"),
    ("5 is the correct answer", "5"), ("5 o'clock", "5"),
    ("4.2 J/(g K)", "4.2"),
    ("five dozen", "60"), ("5 tenths", "0.5"), ("two thirds", "2/3"), ("3 quarters", "0.75"),
    ("5 hundred thousand", "500000"), ("5 per cent", "5%"), ("4 cm squared", "4 cm²"), ("3 lakh", "300,000"),
    # a unit of one letter: apart from the number or upright, or on both sides
    ("5 m", "5"), ("5cm", "5"), ("5kg", "5"), ("5m", "5 m"), ("5m", "500 cm"), ("5\\text{m}", "5"),
    ("5\\mathrm{~m}", "5"), ("5m/s", "5"),
    # named values
    ("2, 3", "x=2, y=3"), ("2 and 3", "x=2, y=3"), ("x=2 and y=3", "y=3, x=2"), ("(2, 3)", "x=2, y=3"),
    ("x=1, y=2 or x=3, y=4", "x=3, y=4 or x=1, y=2"), ("b=2, c=3, a=1", "a=1, b=2, c=3"),
    # capitals of units, currencies
    ("5 MΩ", "5 M\\Omega"), ("5 MΩ", "5000 kΩ"), ("2 MeV", "2000 keV"), ("5 MHz", "5 mhz"),
    ("5 GB", "5000 MB"),
    ("5", "$5"), ("$5", "5 dollars"), ("US$5", "5 USD"), ("\\$5", "$5.00"),
    ("$5 million", "5,000,000 dollars"),
    ("€5", "5 euros"), ("5€", "€5"), ("50 cents", "$0.50"), ("$5 per hour", "5 dollars/hour"),
    ("$5$ cm", "5 cm"),
    ("$\\$5$", "5 dollars"), ("$1,250", "1250"),
    # quotes around the whole, primes
    ('"red"', "red"), ("'A'", "a"), ('"red', "red"), ("f''(x)", "f″(x)"), ("f^{\\prime}", "f'"), ("5'", "5′"),
    ("angle ABC = 30°", "∠ABC = 30°"), ("cat, dog", "cat and dog"), ("2 or 3", "2 and 3"),
]
DIFFERENT = [
    ("94.2", "94"), ("5 cm", "5 m"), ("5 cm", "5 cm^2"), ("0.012", "0.01"), ("15", "5"), ("-5", "5"),
    ("5x", "5"), ("2+3", "5"), ("6.2", "2π"), ("0.33", "1/3"), ("", "5"),
    ("(1, 2)", "(2, 1)"), ("(1, 2)", "[1, 2]"), ("1, 2, 3", "1, 2"), ("1, 2", "1"), ("red", "dark red"),
    ("x+1", "x-1"), ("Joint-CNN", "CNN"), ("1,234", "1.234"), ("40°", "40%"), ("€5", "¥5"), ("3-4", "-1"),
    ("1" * 600, "1" * 601), ("\\frac{1}{2}", "12"), ("12", "1, 2"), ("yes", "no"), ("x", "y"),
    ("3 1/2", "31/2"), ("5", ""), ("a, b", "ab"), ("1e3", "1e4"), ("5 kg", "5 g"), ("?", "!"), ("*", ""),
    ("1990s", "1990"),
    # whole numbers, dates and codes compare exactly
    ("2000000", "2000001"), ("39916800", "39916801"), ("20250228", "20250301"),
    ("12345678901", "12345678902"),
    ("5,000,000", "5,000,001"), ("2024-01-02", "2024-01-03"), ("007", "7"), ("12:30", "12:31"), ("4!", "4"),
    ("1000000.5", "1000000.6"), ("0.0000001", "0.0000002"), ("2018", "\\sqrt{2018^2+2}"),
    # mixed numbers, brackets, grouping
    ("3\\frac{1}{4}", "31/4"), ("3\\frac{1}{4}", "0.75"), ("(12,345)", "12345"), ("[640,480]", "640480"),
    ("(1, 4]", "(1, 4)"), ("[0, 5)", "[0, 5]"), ("{1, 2}", "{1, 3}"), ("{1, 1, 2}", "{1, 2, 2}"),
    ("(1,2), (3,4)", "(1,3), (2,4)"), ("1, 2", "2, 1"),
    # alternatives
    ("2 or 3", "2"), ("\\pm 2", "2"), ("x=2 or x=3", "x=2 or x=4"), ("2 or 2", "2 or 3"),
    ("P=(1,2)", "(2,1)"), ("P = (1, 2)", "Q = (1, 2)"), ("x=2, 3", "y=2, 3"),
    # names, relations and units count
    ("x = 5", "y = 5"), ("AB = 7", "BC = 7"), ("x > 3", "x < 3"), ("x > 3", "x ≥ 3"), ("x_1 = 2", "x_2 = 2"),
    ("y = 2x", "y = 3x"), ("3 apples", "3 oranges"), ("5 m/s", "5 km/h"), ("40%", "4"), ("5厘米", "5米"),
    ("100 °C", "100 °F"), ("5 cm", "50 cm"), ("5 W", "5 V"), ("三角形", "正方形"), ("12元", "€12"),
    ("5 MW", "5 mW"),
    # words that change a number are no unit of it
    ("5 is not the answer", "5"), ("5 is wrong", "5"), ("5 is too small", "5"), ("5 isn't it", "5"),
    ("5 unless x", "5"), ("5 times n", "5"), ("5 plus n", "5"), ("5 minus n", "5"), ("5 over pi", "5"),
    ("5 squared", "5"), ("5 factorial", "5"), ("5 less than x", "5"), ("5 at most", "5"), ("5 dozen", "5"),
    ("5 tenths", "5"), ("5 hundredths", "5"), ("2 thirds", "2"), ("two dozen", "2"), ("3 quarters", "3"),
    ("5 hundred thousand", "500"), ("5 twenty", "5"), ("5 nineteen", "5"), ("5 per 100", "5"),
    ("5 sin x", "5"),
    ("5 log n", "5"), ("5 y", "5"), ("not x = 5", "x = 5"), ("x = 5 unless y = 3", "3"),
    # a letter that may be a variable
    ("5n", "5"), ("2m", "2"), ("3t", "3"), ("2h", "2"), ("4s^2", "4"), ("6v", "6"), ("2j", "2"),
    ("2h/3", "2"),
    ("2mg", "2"), ("3ω", "3"),
    # named values in another order, or as alternatives
    ("3, 2", "x=2, y=3"), ("3 and 2", "x=2, y=3"), ("3, 1, 2", "a=1, b=2, c=3"), ("x=1, y=2, z=3", "3, 2, 1"),
    ("x = 2 or y = 3", "x=2, y=3"), ("apples = 2, pears = 3", "apples = 3, pears = 2"),
    ("x=1, y=2 or x=3, y=4", "x=1, y=4 or x=3, y=2"), ("cat or dog", "cat and dog"),
    # capitals of units, currencies, primes
    ("5 MeV", "5 meV"), ("5 MV", "5 mV"), ("5 MΩ", "5 mΩ"), ("5\\,\\mathrm{MN}", "5\\,\\mathrm{mN}"),
    ("5 MHz", "5 mHz"), ("5 GB", "5 Gb"), ("5 Mg", "5 mg"), ("5 MA", "5 mA"), ("5 MJ", "5 mJ"),
    ("5 M\\Omega", "5 m\\Omega"), ("MN = 5", "MA = 5"),
    ("$5", "€5"), ("5 dollars", "5 euros"), ("5 dollars", "5 apples"), ("$5", "5 cents"), ("£5", "$5"),
    ("5€", "£5"), ("\\$5", "5 cm"), ("$5 million", "$5"),
    ("5\"", "5'"), ("30'", "30°"), ("6'", "6 in"), ("A'", "A"), ("f'", "f"), ("f''", "f'"),
    ("f'(x)=x", "f(x)=x"),
    ("angle ABC = 30", "angle ABD = 30"), ("f(10)=5", "f(11)=5"),
]


@pytest.mark.parametrize("one, other", EQUAL)
def test_same_answer(one, other):
    assert same_answer(one, other) and same_answer(other, one)


@pytest.mark.parametrize("one, other", DIFFERENT)
def test_different_answers(one, other):
    assert not same_answer(one, other) and not same_answer(other, one)


@pytest.mark.parametrize("given, gold, right", [
    # The reference was rounded: to its last digit, if it has three or more.
    ("3.14159", "3.14", True), ("2π", "6.28", True), ("\\sqrt{2}", "1.414", True), ("94.248", "94.2", True),
    ("1/3", "0.333", True), ("3.15", "3.14", False), ("94.3", "94.2", False), ("1.415", "1.414", False),
    ("2.46", "2.5", False), ("0.46", "0.5", False), ("94", "94.2", False), ("12/23", "0.5", False),
    # The answer was rounded: five digits of a root, π or a fraction are enough.
    ("6.2832", "2π", True), ("0.33333", "1/3", True), ("1.7320", "\\sqrt{3}", True), ("0.333", "1/3", False),
    ("1.7321", "3", False), ("6.2852", "2π", False), ("3.14", "3.14159", False),
    # Nothing was rounded; floats have their dust.
    ("5.0", "5", True), ("5", "5.0", True), ("0.1", "0.10", True), ("0.30000000000000004", "0.3", True),
    ("0.0000001", "1/3000000", False), ("5.2", "5", False), ("5.0001", "5", False), ("5", "4.9", False),
    # A reference without % is a share if it is below 1.
    ("0.25%", "0.25", False), ("25%", "0.25", True), ("0.3", "0.3%", True), ("50%", "50", True)])
def test_a_tolerance_is_that_of_the_digits_that_are_stated(given, gold, right):
    assert same_answer(given, gold) is right


# -------------------------------------------------------------------------------------------- any text at all

@settings(max_examples=400, deadline=None)
@given(anything, anything)
def test_same_answer_is_reflexive_and_normalise_idempotent(one, other):
    assert normalise(normalise(one)) == normalise(one)
    assert same_answer(one, one) and same_answer(one, normalise(one))
    assert same_answer(one, other) in (True, False)
    value = number(one)
    assert value is None or abs(value) < float("inf")


@given(st.floats(allow_nan=False, allow_infinity=False, width=32))
def test_numbers_as_python_writes_them(value):
    assert number(repr(value)) == value and same_answer(f"{Decimal(repr(value)):e}", repr(value))


@given(st.integers(), st.integers())
def test_whole_numbers_compare_exactly(one, other):
    assert same_answer(f"{one:,}", str(one)) and same_answer(str(one), str(other)) is (one == other)


def test_as_a_program():
    out = subprocess.run([sys.executable, "-m", "judges.equality", "\\frac12", "0.5"], cwd=ROOT, timeout=60,
                         capture_output=True, text=True)
    assert out.stdout == "1/2\n0.5\nTrue\n"
