"""Scoring rules of a common harness (VLMEvalKit), bugs included: for `--harness vlmevalkit`, to compare with
numbers that were made by it."""

import re

REFUSALS = ("Sorry, I can't help with images of people yet.", "I can't process this file.",
            "I'm sorry, but without the image provided", "Cannot determine the answer")


def letter(text: str, options: dict[str, str] | str = "ABCD") -> str | None:
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


def first_capital(text: str) -> str | None:
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


def yes_no(text: str) -> str | None:
    """HallusionBench: the word that is there, if the other is not.  "**Yes**" and "No: ..." are none."""
    plain = text.lower()
    for sign in ";/[]\"{}()=+\\_-><@`,?!":
        glued = f"{sign} " in text or f" {sign}" in text or re.search(r"\d,\d", text)
        plain = plain.replace(sign, "" if glued else " ")
    # Only the first 32 full stops: there, a flag stands where the count belongs.
    words = set(re.sub(r"\.(?!\d)", "", plain, count=32).split()) & {"yes", "no"}
    return words.pop() if len(words) == 1 else None


def wemath_letter(text: str) -> str | None:
    """We-Math without a judge: the first character after the last "Answer", or of the whole text."""
    rest = re.sub(r"[<>:.]", "", text.split("Answer")[-1]).strip()
    return rest[0] if rest and rest[0] in "ABCDEFGH" else None
