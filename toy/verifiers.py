"""Two verifiers of the built-in world: an exact one, and a fallible one that misreads pictures and words."""

import json
import re

from data import Query
from judges.answers import boxed
from reward import Verdict, has_revision_cue
from sampler import Request, seed_of
from toy.world import (
    FACTS,
    MADE_UP,
    MISCONCEPTION,
    NOUNS,
    OPERATORS,
    PREAMBLES,
    Problem,
    answer_text,
    combine,
)

NO_CLAIM = {"looks so", *(p.rstrip(" ;") for p in PREAMBLES)}       # steps without a claim about the picture
CLAIM = re.compile(r"^([a-z]+) (\d+)$")


def can_judge(query: Query) -> bool:
    """Whether the exact verifier can judge responses to this query."""
    return set(query.facts) >= FACTS


def boxed_answer(text: str) -> str:
    """Final answer of a response: the content of the last box, "" if there is none or it is not closed."""
    return (boxed(text) or "").strip()


class ToyVerifier:
    """The exact verifier: it compares a response with the facts of the picture.  `judge` has the signature of
    a language-model judge.

    context 'solution'  the answer is right, a result is stated, and every claim is true of the picture
    context 'answer'    the answer is right; the report cannot name a step
    context 'none'      the response is consistent with itself
    A report names what is wrong, never what is right.
    """

    def __init__(self, context: str = "solution"):
        self.context = context

    def judge(self, queries: list[Query], texts: list[str]) -> list[Verdict]:
        return [self.judge_one(query, text) for query, text in zip(queries, texts, strict=True)]

    def judge_one(self, query: Query, text: str) -> Verdict:
        return self.judge_facts(query.facts, text)

    def metrics(self) -> dict[str, float]:
        return {}

    def judge_facts(self, facts: dict, text: str) -> Verdict:
        answer = boxed_answer(text)
        steps = [s.strip() for s in re.sub(r"\\boxed\{[^{}]*\}", "", text).split(";") if s.strip()]
        steps = [s for s in steps if s not in NO_CLAIM]
        claims = [CLAIM.match(step) for step in steps]
        results = [int(c[2]) for c in claims if c and c[1] in OPERATORS]
        contradicts = answer and results and answer != answer_text(results[-1], facts["threshold"])
        if has_revision_cue(text) or contradicts:
            return Verdict.judged(correct=False, consistent=False)
        if self.context == "none":
            return Verdict.judged(bool(answer and results), report="the steps do not lead to an answer")
        if self.context == "answer":
            return Verdict.judged(answer == facts["answer"], report="the final answer is wrong")
        errors = [] if results else ["no result is shown"]
        for number, claim in enumerate(claims, start=1):
            error = self._error(facts, claim, [int(c[2]) for c in claims[:number - 1] if c and c[1] in NOUNS])
            if error:
                errors.append(f"step {number} is wrong : {error}")
        if answer != facts["answer"] and not errors:
            errors = ["no final answer" if not answer else "the final answer does not follow"]
        return Verdict.judged(correct=not errors, report=" , ".join(errors))

    def _error(self, facts: dict, claim, counts: list[int]) -> str:
        """The error of one step, or "".  A result that follows from wrong counts is not a second error."""
        if not claim:
            return "it is not clear"
        word, number = claim[1], int(claim[2])
        if word in NOUNS:
            if word not in facts["nouns"]:
                misread = [w for w in facts["words"] if w in MADE_UP]
                return f"{misread[0]} is not {word}" if misread else f"{word} is not asked"
            true = facts["counts"][facts["nouns"].index(word)]
            return "" if number == true else f"{word} is not {number}"
        if word not in OPERATORS:
            return "it is not clear"
        if word != facts["operator"]:
            misread = facts["operator_word"]
            return f"{misread} is not {word}" if misread not in OPERATORS else f"{word} is not asked"
        true = combine(word, counts) if len(counts) == len(facts["counts"]) else facts["value"]
        return "" if number == true else f"{word} is not {number}"


class FallibleVerifier:
    """A simulated language-model judge that makes mistakes: `batch` takes conversations with the usual judge
    prompt and returns JSON texts.

    A checkpoint describes the picture to it, sampled at temperature 1 and so sometimes wrongly; it holds the
    warm start's misconceptions about made-up words; and a reference in the prompt overrides its own reading.
    From a reference answer alone it can tell that a response is wrong, but not which step.
    """

    def __init__(self, engine, processor):
        self.engine, self.processor, self.seen = engine, processor, {}

    def batch(self, conversations: list[list[dict]]) -> list[str]:
        images = {m[0]["content"][0]["image"] for m in conversations} - self.seen.keys()
        requests = [Request(self.processor.prompt(Query("look", [image], "describe ?", "-", "-")),
                            [seed_of("onlooker", image)]) for image in images]
        for image, (sample,) in zip(images, self.engine.generate(requests, temperature=1.0), strict=True):
            cells = [tuple(cell.split()) for cell in sample.text.split(" ; ")]
            self.seen[image] = tuple(cell if len(cell) == 2 else None for cell in cells)
        return [self.verdict(m[0]["content"][0]["image"], m[0]["content"][-1]["text"]) for m in conversations]

    def verdict(self, image, text: str) -> str:
        question, response = read_judge_prompt(text)
        told = {level: found[1] for level in ("answer", "solution")
                if (found := re.search(rf"\nReference {level}:\n(.*)\n", text))}
        facts = self.beliefs(self.seen[image], question, told.get("solution"))
        if told.get("answer", facts["answer"]) != facts["answer"]:
            verdict = ToyVerifier("answer").judge_facts(facts | {"answer": told["answer"]}, response)
        else:
            verdict = ToyVerifier("solution").judge_facts(facts, response)
        return json.dumps({"Analysis": "", "Self-Consistency": int(verdict.consistent),
                           "Correctness": int(verdict.correct), "Mistake Report": verdict.report})

    @staticmethod
    def beliefs(scene, question: str, solution: str | None) -> dict:
        """Facts as this judge perceives and reads them; claims of a reference solution override them."""
        words, threshold = re.fullmatch(r"(?:how many|is) (.*?)(?: over (\d+))? \?", question).groups()
        nouns, operator = words.split()[::2], words.split()[1]
        facts = Problem(scene, nouns, operator, int(threshold) if threshold else None).facts(MISCONCEPTION)
        claims = [c for c in map(CLAIM.match, (solution or "").split(" ; ")) if c]
        for place, claim in enumerate(c for c in claims if c[1] in NOUNS):
            facts["nouns"][place], facts["counts"][place] = claim[1], int(claim[2])
        result = next((c for c in claims if c[1] in OPERATORS), None)
        if result:
            facts["operator"], facts["value"] = result[1], int(result[2])
            facts["answer"] = answer_text(facts["value"], facts["threshold"])
        return facts


def read_judge_prompt(text: str) -> tuple[str, str]:
    """-> (question, response) of a judge prompt; the response stands between two equal boundary lines."""
    question = re.search(r"\n\nQuestion:\n(.*?)\n\n(?:Reference|Generated solution:)", text, re.DOTALL)[1]
    boundary = re.search(r"\n(=====[0-9a-f]{16}=====)\n\n[^\n]*Your JSON object:$", text)[1]
    return question, text.split(f"\n{boundary}\n")[1]
