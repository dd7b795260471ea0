"""What the policy reads: the words of prompts, and options that are written into a text.

Two harnesses, named in every result: "ours" lets the policy reason and is right where the common harness has
plain bugs; "vlmevalkit" has that harness's prompts and rules, bugs included, so that numbers can be compared
with published ones.
"""

import re
from collections.abc import Sequence

from benchmarks.items import Benchmark, Item, texts, without_pictures

HARNESSES = ("ours", "vlmevalkit")

BOXED = "Think step by step, then put {what} in \\boxed{{}}."
LETTER = BOXED.format(what="the letter of the right option")
FINAL = BOXED.format(what="the final answer")
PUT_IN_BOX = {True: "Put the letter of the right option in \\boxed{}.",
              False: "Put the final answer in \\boxed{}."}
HARNESS_SELECT = "Please select the correct answer from the options above."


def prompt_of(item: Item, harness: str) -> str:
    return item.prompt if harness == "ours" else item.harness_prompt


def lines(*parts: str) -> str:
    return "\n".join(part for part in parts if part)


def listed(options: dict) -> str:
    return "\n".join(f"{letter}. {option}" for letter, option in options.items())


def lettered(string: str) -> dict:
    """Options that are written into one text: "A. 3; B. 4", "(A) 3 (B) 4", "A:40°\\nB:50°"; {} if none.

    >>> lettered("Which is it? A. one; B. two; C. No correct answer")
    {'A': 'one', 'B': 'two', 'C': 'No correct answer'}
    """
    marks = list(re.finditer(r"(?<![A-Za-z0-9])([A-J])\s*[.:)．：）、]\s*", string))
    best = []
    for start in range(len(marks)):
        run = []
        for mark in marks[start:]:
            if mark[1] == chr(ord("A") + len(run)):
                run.append(mark)
        if len(run) >= len(best):
            best = run
    ends = [mark.start() for mark in best[1:]] + [len(string)]
    options = {mark[1]: string[mark.end():end].strip().rstrip(",;；(（").strip()
               for mark, end in zip(best, ends)}
    return options if len(options) > 1 else {}


def option_letter(gold: str) -> str:
    """b, (B) and B. are B; anything else stays."""
    letter = re.fullmatch(r"[(\[]?([A-Ja-j])[)\]]?\.?", gold)
    return letter[1].upper() if letter else gold


def options_in(string: str, letters: str, gold: str) -> dict:
    """Options that are written into a text.  Only their letters are known where the picture has them, or
    where they are written in a way that we cannot read (so that the right one is missing)."""
    options = lettered(string)
    return options if set(gold.split(", ")) <= set(options) else dict.fromkeys(letters, "")


def prompt_templates(benchmark: Benchmark, items: list[Item], rows: Sequence[dict],
                     harness: str) -> list[str]:
    """The distinct prompts, the data's own texts replaced by their names: for the record of a run."""
    templates, rows = set(), without_pictures(benchmark, rows)
    for item in items[:200]:
        prompt = prompt_of(item, harness)
        if item.options:
            prompt = prompt.replace(listed(item.options), "{options}")
        strings = {name: lines(*map(str, value)) if isinstance(value, list) else value
                   for name, value in texts(rows[item.row]).items()}
        for name, content in sorted(strings.items(), key=lambda pair: -len(pair[1])):
            prompt = prompt.replace(content, f"{{{name}}}") if len(content) > 8 else prompt
        templates.add(prompt)
    return sorted(templates)
