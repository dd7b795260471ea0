"""The verifier: sees the FULL reference solution, returns a verdict and a mistake report (section 3.1).

One call per response.  The judge answers one JSON object: Analysis, Self-Consistency, Correctness, Mistake
Report. The reward is 1 iff Correctness is 1: no format reward, no partial credit.  How much the judge is told
is one switch:

    none       question, picture and response only
    answer     + the reference answer                     (ordinary RLVR; paper, appendix figure A-1)
    solution   + the whole reference solution             (ContextRL; paper, appendix figure A-2)

What is said to it stands in prompts/judge_<context>.txt.  `Verifier` = prompt builder + strict parser +
failure policy around any callable chat(messages) -> text.  An empty response, or one that speaks like a
revision, is negative without a judge.  The response is untrusted text: it is fenced by a boundary it cannot
know, and only the judge's own output is parsed.

A judge that fails is NOT a wrong answer.  What cannot be read is asked for once more; then the verdict has
status FAILED and reward None: its response is left out of the group and of every mean, its query gets no
stage 2, and it is counted by reason.  If too many of the last verdicts failed the run stops.

A verifier of your own needs what `VerifierLike` lists, or is one function in a file: see judges/custom.py.

    python reward.py --prompt DATA.jsonl [--context answer]    what a judge would read for the first query
    python reward.py --parse < JUDGE_OUTPUT                    the verdict that is read from a judge's text
"""

import argparse
import hashlib
import json
import math
import re
import sys
import threading
import time
from collections import Counter, deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Protocol

from data import DataError, Query, fill_prompt, load_queries, read_prompt

CONTEXTS = ("none", "answer", "solution")
PROMPTS = Path(__file__).resolve().parent / "prompts"


class JudgeError(RuntimeError):
    """A call of a chat backend gave nothing usable: becomes a FAILED verdict, counted under `name`."""

    def __init__(self, name: str, detail: str = ""):
        super().__init__(f"{name}: {detail}" if detail else name)
        self.name = name                  # short and stable: "HTTP 500", "connection reset", ...


class VerifierUnreliable(RuntimeError):
    """Too many failed verdicts: training on what is left would be training on noise."""


class VerdictStatus(StrEnum):
    JUDGED = "judged"
    FAILED = "failed"                 # time-out, broken output: infrastructure, not a wrong answer


@dataclass
class Verdict:
    """What the verifier says of one response."""

    status: VerdictStatus
    correct: bool = False
    consistent: bool = False          # the response agrees with itself and has no cue of being a revision
    report: str = ""                  # mistake report; "" if correct, not consistent, failed or leaking
    analysis: str = ""
    error: str = ""               # why it FAILED
    leaked: bool = False          # the report gave the answer away and was dropped
    value: float | None = None    # a reward of your own rule other than 0 or 1; `correct` is then value > 0

    @property
    def reward(self) -> float | None:
        """R of the paper, 1.0 or 0.0, or your own `value`; None for a failed judge, never 0.0."""
        if self.status is VerdictStatus.FAILED:
            return None
        return float(self.correct) if self.value is None else self.value

    @classmethod
    def judged(cls, correct: bool, consistent: bool = True, report: str = "", analysis: str = "",
               ) -> "Verdict":
        keep = consistent and not correct            # a report exists only for a consistent, wrong response
        return cls(VerdictStatus.JUDGED, correct, consistent, report if keep else "", analysis)

    @classmethod
    def failed(cls, error: str) -> "Verdict":
        return cls(VerdictStatus.FAILED, error=error)


class VerifierLike(Protocol):
    """What training, evaluation and data building ask of a verifier."""

    def judge(self, queries: list[Query], responses: list[str]) -> list[Verdict]:
        """One verdict per (query, response), in order.  A verdict that could not be had is
        Verdict.failed(why); too many of them: VerifierUnreliable."""

    def judge_one(self, query: Query, response: str) -> Verdict:
        """The same for one, called from several threads at once."""

    def metrics(self) -> dict[str, float]:
        """Counts since the last call, for metrics.jsonl: always the same keys, on every rank; or {}."""


# ----------------------------------------------------------------------------------------------- what is said

# Cues of the paper's template: a text with one of them answers a reviewer, not the question.
REVISION_CUES = ("you are absolutely right", "thank you for your review", "i apologize for my mistake",
                 "re-analyze", "reconstruct", "re-examine")
# Openers that are known to be accepted by language-model judges although they say nothing.
EMPTY_OPENERS = {"solution", "thought process", "let's solve this problem step by step", "answer",
                 "final answer"}


def has_revision_cue(text: str) -> bool:
    lowered = text.lower()
    return any(cue in lowered for cue in REVISION_CUES)


# Mentions of the earlier try or of the review.  The judge has the paper's cue rule; this is our second net
# for retries, a plain text check (the paper names the criterion but not its test).
MENTIONS = ("earlier answer", "previous answer", "previous attempt", "earlier attempt", "previous response",
            "earlier response", "first attempt", "last attempt", "mistake report", "the report", "the review",
            "your review", "reviewer", "as you said", "you pointed out")


def is_independent(text: str) -> bool:
    """True if a retry could have been written without having seen the failed try or the report (section 3.2).

    >>> is_independent("3 + 2 = 5, so \\\\boxed{5}"), is_independent("The reviewer is right: 3 + 2 = 5")
    (True, False)
    """
    lowered = text.lower()
    return not any(mention in lowered for mention in MENTIONS)


def says_nothing(text: str) -> bool:
    """Empty, punctuation only, or an opener without content: negative, and no judge is asked."""
    plain = re.sub(r"[^\w' ]+|_", " ", text.replace("’", "'")).strip().lower()
    return not re.search(r"\w", plain) or " ".join(plain.split()) in EMPTY_OPENERS


# ------------------------------------------------------------------------------------------------- the prompt

# For backends with structured output.  The texts have no maxLength on purpose: it is max_tokens that ends a
# judge which runs on.  Measured with xgrammar and 152k tokens: a maxLength makes the grammar compile in 9 s
# instead of 0.05 s, and the mask of every single token takes 12 ms of the server's CPU instead of 0.2 ms.
VERDICT_SCHEMA: dict[str, Any] = {
    "type": "object", "additionalProperties": False,
    "required": ["Analysis", "Self-Consistency", "Correctness", "Mistake Report"],
    "properties": {"Analysis": {"type": "string"}, "Self-Consistency": {"type": "integer", "enum": [0, 1]},
                   "Correctness": {"type": "integer", "enum": [0, 1]}, "Mistake Report": {"type": "string"}}}


def plain_text(text: str) -> str:
    """Special tokens of chat templates (<|im_end|>, </think>, ...), spelt out in ordinary ones, would become
    real in the judge's tokenizer: end its turn, open another, add a place for an image."""
    return re.sub(r"<(?=\||/?think|/?tool_|/?vision|start_of_|end_of_)", "< ", text)


PROMPT_FIELDS = ("question", "response", "answer", "solution", "cues", "reminder")


def judge_prompt(context: str, file: str = "") -> str:
    """The template of a context level, or of a file of yours.  Named fields in braces; {question} and
    {response} must be there, {answer} and {solution} only if the judge is to know them."""
    return read_prompt(file or PROMPTS / f"judge_{context}.txt", PROMPT_FIELDS, ("question", "response"))


def judge_messages(query: Query, response: str, template: str, again: bool = False) -> list[dict]:
    """Chat messages for one verdict: the images, then one text.  Image parts carry the path or bytes of the
    query.

    `again`: the first output could not be read.  The same words would bring the same output at temperature 0.
    """
    # The boundary depends on the response: no response can hold its own.
    boundary = "=====" + hashlib.sha256(response.encode()).hexdigest()[:16] + "====="
    text = fill_prompt(
        template, question=plain_text(query.question), answer=plain_text(query.answer),
        solution=plain_text(query.solution), response=f"{boundary}\n{plain_text(response)}\n{boundary}",
        cues=", ".join(f'"{cue}"' for cue in REVISION_CUES),
        reminder="An earlier output of yours was not exactly this object. " if again else "")
    return [{"role": "user", "content": [{"type": "image", "image": image} for image in query.images]
             + [{"type": "text", "text": text}]}]


# ------------------------------------------------------------------------------------------------- the parser

def unambiguous(pairs: list[tuple]) -> dict:
    """For json: a key that stands twice could be read either way."""
    if len(dict(pairs)) < len(pairs):
        raise ValueError("a key stands twice")
    return dict(pairs)


def parse_verdict(raw: str, response: str = "") -> Verdict:
    """Reads a judge's output strictly: it must END with one JSON object with the keys, scores 0 or 1.  Else
    FAILED.

    Thoughts, prose and a code fence may stand before it.  The object has to begin a line: newlines are
    escaped inside JSON texts, so what a judge quotes in its Analysis never does.  An object copied from the
    response does not count.
    """
    value = None
    parts = raw.split("</think>")
    for text in ("</think>".join(parts[i:]) for i in range(len(parts))):
        start = re.search(r"^[ \t]*\{", text, re.MULTILINE)
        if not start:
            continue
        at = start.end() - 1
        try:
            found, end = json.JSONDecoder(object_pairs_hook=unambiguous).raw_decode(text, at)
        except (ValueError, RecursionError):
            continue
        if text[end:].strip() in ("", "```"):
            if "".join(text[at:end].split()) in "".join(response.split()):
                return Verdict.failed("the verdict is copied from the response")
            value = found
            break
    if value is None:
        return Verdict.failed("not one JSON verdict")
    missing = [key for key in VERDICT_SCHEMA["required"][:3] if key not in value]
    if missing:
        return Verdict.failed(f"missing key {missing[0]}")
    scores = []
    for key in ("Self-Consistency", "Correctness"):
        score = value[key]
        if isinstance(score, bool) or score not in (0, 1, "0", "1") or isinstance(score, float):
            return Verdict.failed(f"{key} is neither 0 nor 1")
        scores.append(int(score))
    report = value.get("Mistake Report", "") or ""
    if not isinstance(report, str) or not isinstance(value["Analysis"], str):
        return Verdict.failed("a text field is not a text")
    consistent, correct = map(bool, scores)
    if correct and not consistent:
        return Verdict.failed("Correctness 1 with Self-Consistency 0")
    # JSON can spell half a character (\\ud800), which no file and no tokenizer takes.
    report, analysis = (text.encode("utf-8", "replace").decode() for text in (report, value["Analysis"]))
    return Verdict.judged(correct, consistent, report.strip(), analysis)


def report_leaks(report: str, query: Query, response: str) -> bool:
    """True if a report gives the answer away: states it, or copies the reference solution.

    >>> q = Query("q", [], "how many ?", "red 3 and blue 2 make 5", "5")
    >>> report_leaks("red is not 4", q, "red 4 ; 6"), report_leaks("it should be 5", q, "red 4 ; 6")
    (False, True)
    """
    def words(text: str) -> list[str]:
        return re.findall(r"\w+(?:\.\w+)*", text.lower())
    answer, solution = " ".join(words(query.answer)), words(query.solution)
    known = f" {' '.join(words(response + ' ' + query.question))} "
    stated = f" {' '.join(words(re.sub(r'(?i)step [0-9]+', 'step', report)))} "
    if answer and re.search(rf" (?:is|be|equals|answer|boxed|namely) {re.escape(answer)} ", stated):
        return True
    # Words like yes, no, A are too common to mean anything by themselves.
    telling = answer.isdigit() or len(answer) > 3
    if telling and f" {answer} " in stated and f" {answer} " not in known:
        return True
    window = min(8, max(len(solution), 4))
    runs = (" ".join(solution[i:i + window]) for i in range(len(solution) - window + 1))
    return any(run in stated and run not in known for run in runs)


# ----------------------------------------------------------------------------------------------- the verifier

def side_by_side(function, arguments, threads: int) -> list:
    """[function(*a) for a in arguments], on threads.  After the first exception nothing more is begun."""
    errors: list[Exception] = []

    def one(a):
        if not errors:
            try:
                return function(*a)
            except Exception as error:
                errors.append(error)                            # raised below
    with ThreadPoolExecutor(threads) as pool:
        results = list(pool.map(one, arguments))
    if errors:
        raise errors[0]
    return results


class Verifier:
    """A language-model judge behind `chat(messages) -> text`.  Counts everything that goes wrong.
    Thread-safe.

    `chat` raises JudgeError, TimeoutError or ConnectionError when a call gives nothing.  Text that is no
    verdict is asked for once more (`attempts`).  An engine in the same process may offer `batch(list of
    messages) -> list of text or exception`: judge() then makes one batch of everything, and a second one of
    what could not be read.

    If more than `max_failed_share` of the last `window` verdicts failed, VerifierUnreliable is raised at
    once: by n = floor(max_failed_share * window) + 1 failures, also before the window is full.  A dead judge
    is therefore asked for at most n + concurrency - 1 verdicts, `attempts` calls each, and for at most
    (ceil(n / concurrency) + 1) * attempts * (longest seconds of a call: chat.max_seconds) seconds.  (Batches
    are asked for whole.)  It then stays given up, and stops the pauses and retries of a backend that has
    stop().  The window is this object's: every rank has its own.
    """

    METRICS = ("verdicts", "by_rule", "calls", "asked_again", "failed", "leaked", "seconds", "http_retries",
               "prompt_tokens", "completion_tokens")

    def __init__(self, chat, context: str = "solution", concurrency: int = 16, max_failed_share: float = 0.2,
                 window: int = 64, attempts: int = 2, prompt_file: str = ""):
        if context not in CONTEXTS:
            raise ValueError(f"verifier context must be one of {', '.join(CONTEXTS)}, not {context!r}")
        self.chat, self.context, self.concurrency, self.attempts = chat, context, concurrency, attempts
        self.template = judge_prompt(context, prompt_file)
        self.max_failed_share, self.window = max_failed_share, window
        self.counts: Counter = Counter()                       # METRICS and "failed: <name>", since the start
        self.recent: deque[str] = deque(maxlen=window)          # name of the failure, "" for a verdict
        self.reported: dict[str, float] = {}
        self.last_error, self.lock = "", threading.Lock()
        self.given_up = ""                                     # why; whoever asks after that hears it at once

    def judge(self, queries: list[Query], responses: list[str]) -> list[Verdict]:
        """One verdict per (query, response), in order; calls run side by side."""
        if len(queries) != len(responses):
            raise ValueError(f"{len(queries)} queries but {len(responses)} responses")
        pairs = list(zip(queries, responses))
        if hasattr(self.chat, "batch"):
            return self._judge(pairs, self.chat.batch)
        return side_by_side(self.judge_one, pairs, self.concurrency)

    def judge_one(self, query: Query, response: str) -> Verdict:
        def ask(batch: list) -> list:
            try:
                return [self.chat(batch[0])]
            except (JudgeError, TimeoutError, ConnectionError) as error:
                return [error]
        return self._judge([(query, response)], ask)[0]

    def _judge(self, pairs: list[tuple[Query, str]], ask) -> list[Verdict]:
        if self.given_up:
            raise VerifierUnreliable(self.given_up)
        verdicts: list[Any] = [self._without_judge(response) for _, response in pairs]
        # The failure window is about the judge, so it has no place for these: a policy that says nothing
        # would hide a dead judge behind them.
        self._add(verdicts=len(pairs), by_rule=sum(v is not None for v in verdicts))
        asked = todo = [i for i, verdict in enumerate(verdicts) if verdict is None]
        for attempt in range(self.attempts if asked else 0):
            start = time.monotonic()
            outputs = ask([judge_messages(*pairs[i], self.template, again=attempt > 0) for i in todo])
            seconds = time.monotonic() - start
            self._add(calls=len(todo), asked_again=len(todo) if attempt else 0, seconds=seconds)
            unreadable = []
            for i, output in zip(todo, outputs, strict=True):
                verdicts[i] = self._read(*pairs[i], output)
                if verdicts[i].status is VerdictStatus.FAILED and isinstance(output, str):
                    unreadable.append(i)
            todo = unreadable
            if not todo:
                break
        for i in asked:
            self._count(verdicts[i])
        return verdicts

    def _without_judge(self, response: str) -> Verdict | None:
        if says_nothing(response) or (self.context == "solution" and has_revision_cue(response)):
            return Verdict.judged(correct=False, consistent=False)
        return None

    def _read(self, query: Query, response: str, output: str | Exception) -> Verdict:
        if isinstance(output, Exception):
            kind = type(output).__name__
            self.last_error = str(output) or kind
            return Verdict.failed(output.name if isinstance(output, JudgeError) else kind)
        verdict = parse_verdict(output, response)
        if verdict.status is VerdictStatus.FAILED:
            self.last_error = verdict.error
        if verdict.report and report_leaks(verdict.report, query, response):
            verdict.report, verdict.leaked = "", True
        return verdict

    def _add(self, **counts: float) -> None:
        with self.lock:
            self.counts.update(counts)

    def _count(self, verdict: Verdict) -> None:
        failed = verdict.status is VerdictStatus.FAILED
        self._add(failed=int(failed), leaked=int(verdict.leaked),
                  **{f"failed: {verdict.error}": 1} if failed else {})
        with self.lock:
            self.recent.append(verdict.error)
            bad = Counter(filter(None, self.recent))
        if failed and bad.total() > self.max_failed_share * self.window:
            why = ", ".join(f"{n} x {name}" for name, n in bad.most_common())
            self.given_up = (f"{bad.total()} of the last {len(self.recent)} verdicts failed ({why}; last: "
                             f"{self.last_error}); {self.stops_after()}")
            if hasattr(self.chat, "stop"):
                self.chat.stop()
            raise VerifierUnreliable(self.given_up)

    def stops_after(self) -> str:
        """The bound of the class's docstring, in words."""
        n = math.floor(self.max_failed_share * self.window) + 1
        text = f"the limit is {n - 1} of {self.window}"
        if hasattr(self.chat, "max_seconds"):
            seconds = (math.ceil(n / self.concurrency) + 1) * self.attempts * self.chat.max_seconds
            text += f", a dead verifier is noticed within {seconds:.0f} s"
        return text

    def metrics(self) -> dict[str, float]:
        """What was counted since the last call of this method.  Always the same keys, so ranks can be summed.

        seconds: of all calls, which run side by side.  The last three are 0 if the backend has no `counts` of
        them.
        """
        with self.lock:
            now = {name: float(self.counts[name]) for name in self.METRICS}
            for name in self.METRICS[-3:]:
                now[name] = float(getattr(self.chat, "counts", {}).get(name, 0))
            since = {f"judge/{name}": now[name] - self.reported.get(name, 0.0) for name in self.METRICS}
            self.reported = now
        return since


def main() -> None:
    parser = argparse.ArgumentParser(description="A judge's prompt, or what is read from its output.")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--prompt", metavar="DATA", help="print what a judge would read for the first query")
    what.add_argument("--parse", action="store_true", help="print the verdict read from a text on stdin")
    parser.add_argument("--context", choices=CONTEXTS, default="solution")
    parser.add_argument("--judge_prompt", default="", metavar="FILE", help="a template of yours")
    parser.add_argument("--response", help="with --prompt: what is judged; default: the reference solution")
    args = parser.parse_args()
    if args.parse:
        print(parse_verdict(sys.stdin.read()))
        return
    try:
        query, template = load_queries(args.prompt)[0], judge_prompt(args.context, args.judge_prompt)
    except DataError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    for part in judge_messages(query, args.response or query.solution, template)[0]["content"]:
        print(part["text"] if part["type"] == "text" else f"[image {part['image']}]")


if __name__ == "__main__":
    main()
