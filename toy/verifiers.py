"""Two verifiers of the built-in world: one that knows what the picture shows, and one with eyes and beliefs
of its own."""

import json
import re

from data import Query
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

NO_CLAIM = {"looks so", *(p.rstrip(" ;") for p in PREAMBLES)}       # says nothing of the picture
CLAIM = re.compile(r"^([a-z]+) (\d+)$")
BOX = re.compile(r"\\boxed\{([^{}]*)\}")


def can_judge(query: Query) -> bool:
    """Whether the exact verifier can judge responses to this query."""
    return set(query.facts) >= FACTS


def boxed_answer(text: str) -> str:
    """Final answer of a response of this world: what is in the last box, "" without one."""
    found = BOX.findall(text)
    return found[-1].strip() if found else ""


class ToyVerifier:
    """Judges from what the picture shows.  Same type as a language-model judge: (queries, texts) -> verdicts.

    context 'solution'  right answer, the result stated, and every stated claim true of the picture
    context 'answer'    right answer is enough; the report cannot name a step
    context 'none'      the response agrees with itself
    A report names what is wrong and never what is right.
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
            counts = [int(c[2]) for c in claims[:number - 1] if c and c[1] in NOUNS]
            if error := self._error(facts, claim, counts):
                errors.append(f"step {number} is wrong : {error}")
        if answer != facts["answer"] and not errors:
            errors = ["no final answer" if not answer else "the final answer does not follow"]
        return Verdict.judged(correct=not errors, report=" , ".join(errors))

    def _error(self, facts: dict, claim, counts: list[int]) -> str:
        """What is wrong with one step, or "".  A result that follows from wrong counts is not a second
        mistake."""
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
    """A judge with eyes and beliefs of its own, behind the same prompt as any language model: batch(messages)
    -> texts.

    It sees the picture as a checkpoint describes it (at T = 1: sometimes wrongly), takes made-up words for
    what the warm start takes them, and believes the prompt more than itself.  Told the answer only, it can
    tell that it is wrong, not where.
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
        """Facts by one's own eyes and reading, overruled by what a solution states."""
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
    """-> (question, response) of a judge's prompt: the response stands between the two equal boundary
    lines."""
    question = re.search(r"\n\nQuestion:\n(.*?)\n\n(?:Reference|Generated solution:)", text, re.DOTALL)[1]
    boundary = re.search(r"\n(=====[0-9a-f]{16}=====)\n\n[^\n]*Your JSON object:$", text)[1]
    return question, text.split(f"\n{boundary}\n")[1]
