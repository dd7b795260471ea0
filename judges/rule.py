"""The reference's final answer is all that counts: verdicts without a judge."""

from data import Query
from judges.answers import matches
from reward import Verdict, VerifierLike


def answers_match(query: Query, response: str) -> bool:
    """Rule check of the final answer; with Query.facts["choices"] (letter -> text) an option's text counts
    too."""
    return matches(response, query.answer, query.facts.get("choices"))


class RuleVerifier:
    """The level "answer" without a judge: R = 1 iff the final answer is the reference's.  It writes no
    reports, so a retry is told only that its try was wrong."""

    def judge(self, queries: list[Query], responses: list[str]) -> list[Verdict]:
        return [self.judge_one(query, response) for query, response in zip(queries, responses, strict=True)]

    def judge_one(self, query: Query, response: str) -> Verdict:
        return Verdict.judged(answers_match(query, response))

    def metrics(self) -> dict[str, float]:
        return {}


class RuleFirst:
    """Queries whose facts hold {"rule": true} are judged by rule (a context pair asked as a query, say), all
    others by `verifier`."""

    def __init__(self, verifier: VerifierLike):
        self.verifier, self.rule = verifier, RuleVerifier()

    def judge(self, queries: list[Query], responses: list[str]) -> list[Verdict]:
        pairs = list(zip(queries, responses, strict=True))
        others = [pair for pair in pairs if not pair[0].facts.get("rule")]
        verdicts = iter(self.verifier.judge(*map(list, zip(*others))) if others else [])
        return [self.rule.judge_one(*pair) if pair[0].facts.get("rule") else next(verdicts) for pair in pairs]

    def judge_one(self, query: Query, response: str) -> Verdict:
        return (self.rule if query.facts.get("rule") else self.verifier).judge_one(query, response)

    def metrics(self) -> dict[str, float]:
        return self.verifier.metrics()
