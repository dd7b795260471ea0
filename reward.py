"""The verifier: sees the FULL reference solution, returns a verdict and a mistake report (section 3.1).

One call per response, answered by one JSON object: Analysis, Self-Consistency, Correctness, Mistake Report.
The reward is 1 iff Correctness is 1: no format reward, no partial credit.  How much is told is one switch:

    none       question, picture and response only
    answer     + the reference answer                     (ordinary RLVR; paper, appendix figure A-1)
    solution   + the whole reference solution             (ContextRL; paper, appendix figure A-2)

What is said to it stands in prompts/judge_<context>.txt.  `Verifier` = prompt builder + strict parser +
failure policy around any callable chat(messages) -> text.  A response that is empty or speaks like a revision
is negative without a judge.  It is untrusted text: a boundary that it cannot know fences it.

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
import unicodedata
from collections import Counter, deque
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass
from enum import StrEnum
from fractions import Fraction
from pathlib import Path
from typing import Any, Protocol

from data import UNPRINTABLE, DataError, Query, fill_prompt, load_queries, read_prompt

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
    """Nothing but thoughts, punctuation or an opener: negative, and no judge is asked."""
    text = text.rpartition("</think>")[2].partition("<think>")[0]          # thoughts without an end are none
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
    """Chat messages for one verdict: the images (path or bytes, as in the query), then one text.

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


# Group 1: an escape of JSON's, unless it begins a LaTeX command.  Else a backslash that is meant as one.
BACKSLASH = re.compile(
    r"""(\\(?!r[a-z]|n(?:abla|e|eq|eg|u|ot|otin|i|leq|geq|mid|parallel|cong|sim|subseteq)(?![a-zA-Z])
             |t(?:ext[a-z]*|imes|heta|anh?|au|o|op|frac|binom|ilde|riangle[a-z]*|herefore|ag)(?![a-zA-Z]))
         (?:["\\/bfnrt]|u[0-9a-fA-F]{4}))|\\""", re.VERBOSE)
SLIPS = re.compile(r'"(?:[^"\\]|\\.)*+"?|\b(?:True|False|None)\b|,(?=\s*[}\]])', re.DOTALL)


def mended(text: str) -> str:
    """JSON as language models write it, made JSON: LaTeX with one backslash, Python's words, a last comma."""
    def piece(found: re.Match) -> str:
        if found[0][0] == '"':
            return BACKSLASH.sub(lambda part: part[1] or r"\\", found[0])
        return {"True": "true", "False": "false", "None": "null"}.get(found[0], "")
    return SLIPS.sub(piece, text)


def parse_verdict(raw: str, response: str = "") -> Verdict:
    """Reads a judge's output: one JSON object with the keys, scores 0 or 1, none behind it.  Else FAILED.

    Thoughts and prose may stand before it, words and special tokens behind it.  It is the first that begins a
    line, else the first at all: quotes are escaped inside JSON texts, so what a judge quotes in its Analysis
    is neither.  An object copied from the response does not count, nor a positive one if the response writes
    that key: a judge may have quoted it, careless of escapes.
    """
    # A verdict, and thoughts, may quote the end of thoughts.
    for text in (raw, raw.partition("</think>")[2], raw.rpartition("</think>")[2]):
        start = re.search(r"^[ \t]*\{", text, re.MULTILINE) or re.search(r"\{(?=\s*\")", text)
        if not start or "<think>" in text[:start.start()]:
            continue
        text = mended(text[start.end() - 1:])
        try:
            value, end = json.JSONDecoder(object_pairs_hook=unambiguous, strict=False).raw_decode(text)
        except (ValueError, RecursionError):
            continue
        if not re.search(r'[{}"]|</think>', text[end:]):
            break
    else:
        return Verdict.failed("not one JSON verdict")
    for key in ("Analysis", "Self-Consistency", "Correctness"):
        if key not in value:
            return Verdict.failed(f"missing key {key}")
        if key != "Analysis" and value[key] not in (0, 1, "0", "1"):            # True and 1.0 are 1
            return Verdict.failed(f"{key} is neither 0 nor 1")
    report = value.get("Mistake Report", "") or ""
    if not isinstance(report, str) or not isinstance(value["Analysis"], str):
        return Verdict.failed("a text field is not a text")
    consistent, correct = bool(int(value["Self-Consistency"])), bool(int(value["Correctness"]))
    if correct and not consistent:
        return Verdict.failed("Correctness 1 with Self-Consistency 0")
    copy, said = (re.sub(r"[\s\\]", "", part) for part in (text[:end], response))
    if copy in said or correct and '"Correctness":' in said:
        return Verdict.failed("the verdict is copied from the response")
    report, analysis = (text.translate(UNPRINTABLE) for text in (report, value["Analysis"]))
    return Verdict.judged(correct, consistent, report.strip(), analysis)


# What is spelt in several ways is spelt in one, so that texts can be compared word by word.
SPELLINGS: list[tuple] = [(re.compile(pattern), spelling) for pattern, spelling in [(" ?[/⁄] ?", "/"),
    (r"\\[dtc]?frac *(?:\{ *(-?[\d.]+) *\}|(\d)) *(?:\{ *([\d.]+) *\}|(\d))", r"\1\2/\3\4"),
    (r"\\(?:text|math|left|right|[dtc]?frac|cdot|times|circ)[a-z]*", " "), ("π", " pi "), ("−", "-"),
    (r"(?:\\?\bsqrt|√|根号|\bsquare root of) ?[({]? ?(\d+(?:\.\d+)?)", r" √\1 "), ("两", "二"),
    (r"(?<=\d)(?:,|\{,\}|\\,)(?=\d{3}(?!\d))", ""), (r"(?<!\w)\.(?=\d)", "0."), (r"(?<=[a-zA-Z])[_^]\{?", ""),
    (r"(?i)\b(?:negative|minus) (?=\d)|负(?=\d)", "-"), (r"(?i)\b(?:one[ -]|a )?half\b", "1/2"),
    (r"(?<!\w)[(\[]([A-Z])[)\]]", r" option \1 "), (r"(?i)\bchoice\b|选项|選択肢", " option "),
    (r"(?<![\d.])(\d\d?(?:\.\d+)?) ?\\?(?:%|percent\b)", lambda m: f"{m[1]}; {Fraction(m[1]) / 100} ")]]
NUMERALS = dict(zip([*"one two three four five six seven eight nine ten eleven twelve thirteen fourteen "
                     "fifteen sixteen seventeen eighteen nineteen twenty thirty forty fifty".split(),
                     *"二三四五六七八九十"], [*range(1, 21), 30, 40, 50, *range(2, 11)]))
# "The two lines", "two of the steps", 第三步, 三角形 count nothing, and "one" rarely does.
NUMERAL = re.compile(r"(?i)(\b(?:the|these|first|last|of|steps?) |[这那前后第一二三四五六七八九十])?"
                     rf"(\b(?:(?<=be )one|{'|'.join([*NUMERALS][1:-9])})\b(?! of\b| steps?\b)"
                     r"|[二三四五六七八九十](?=[个個つ只隻条條张張块人次]|\W|$))")
# Scripts that have no blanks between words fall into characters.
SIGNS = "\u0e00-\u0e7f\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af"
WORD = re.compile(r"(?:(?<![\w)}])-)?\d{1,40}(?:\.\d{1,40})?(?:(?: \d{1,40})?/\d{1,40})?|√[\d.]+"
                  rf"|[{SIGNS}]|[^\W\d_{SIGNS}][^\W_{SIGNS}]*")


def words(text: str) -> list[str]:
    """For comparison: 0.5, ½ and \\frac12 are "1/2", three is "3"; in small letters, but A is not a."""
    def spelt(word: str) -> str:
        try:
            return str(sum(map(Fraction, word.split()))) if word[-1].isdigit() else word     # "2 1/2" is 5/2
        except (ValueError, ZeroDivisionError):
            return word
    # NFKC makes full-width signs plain and ½ 1/2; with a blank before it, 2½ does not become 21/2.
    text = unicodedata.normalize("NFKC", re.sub(r"(?<=\d)(?=\\[dt]?frac|[¼-¾⅐-⅞²³¹⁰⁴-⁹])", " ", text))
    for pattern, spelling in SPELLINGS:
        text = pattern.sub(spelling, text)
    text = NUMERAL.sub(lambda found: found[0] if found[1] else str(NUMERALS[found[2].lower()]), text)
    return [spelt(word.lower() if len(word) > 1 else word) for word in WORD.findall(text)]


# Numbers of a report's own, and words that its sentences are made of.
LABELS = re.compile(r"(?im)\b(?:step|line|statement|claim|equation|figure)s? \(?\d+(?:(?:,| and|-) ?\d+)*"
                    r"|\b\d+(?:st|nd|rd|th)\b|(?:第|步骤) ?\d+|^[^\w\n]*\d+[.)] ")
COMMON = {*"yes no one all none both left right wrong true false correct incorrect".split(),
          "对", "错", "正 确", "错 误"}


def report_leaks(report: str, query: Query, response: str) -> bool:
    """True if a report gives the answer away, in any notation: states it, or copies the reference solution.

    >>> q = Query("q", [], "how many ?", "red 3 and blue 2 make 5", "5")
    >>> report_leaks("red is not 4", q, "red 4 ; 6"), report_leaks("it should be 5", q, "red 4 ; 6")
    (False, True)
    """
    answer, solution = " ".join(words(query.answer)), words(query.solution)
    said = f" {' '.join(words(response))} "
    known = f"{said}{' '.join(words(query.question))} "
    stated = f" {' '.join(words(LABELS.sub(' ', report)))} "
    choices = query.facts.get("choices") or {}
    letter = answer.removeprefix("option ").upper()
    if letter not in (choices or [*"ABCDEFGHIJ"]):
        letter = next((key for key, text in choices.items() if answer and words(text) == answer.split()), "")
    forms = {answer, letter, letter and f"option {letter}", " ".join(words(choices.get(letter, "")))} - {""}
    if "%" in query.answer:
        forms |= {*answer.split()}                                      # both ways to read it
    # A number with its unit, or the value of x, is also given away by the number alone.
    amounts = [re.fullmatch(r"(?:[^\W\d] )?(-?[\d/]+)(?: [^\W\d]\w*){0,5}", form) for form in forms]
    for form in forms | {amount[1] for amount in amounts if amount}:
        leads = "be|been|equals|answer|answer is|boxed|namely|choose|select|pick|选|選|答 案" + (
            "" if form in COMMON else "|is|are|es|est|ist|是|为|為|は")
        states = rf" (?:{leads}) (?:(?:the|a|an|about|option|择) )*{re.escape(form)} "
        if form == letter:
            states += rf"| but {form} | {form} (?:is (?:correct|right)|fits|not|option|正|是 正|が 正) "
        if re.search(states, stated) or stated == f" {form} ":
            return True
        # Words like yes, no, A are too common to mean anything by themselves.
        telling = any(map(str.isdigit, form)) or len(form) > 2 and form not in COMMON
        before = said if form.startswith("option ") else known         # a question may list its options
        if telling and f" {form} " in stated and f" {form} " not in before:
            return True
    window = min(16 if re.search(f"[{SIGNS}]", query.solution) else 8, max(len(solution), 4))
    runs = (f" {' '.join(solution[i:i + window])} " for i in range(len(solution) - window + 1))
    return any(run in stated and run not in known for run in runs)


# ----------------------------------------------------------------------------------------------- the verifier

def side_by_side(function, arguments, threads: int) -> list:
    """[function(*a) for a in arguments], on threads.  After an exception nothing is begun or waited for."""
    pool = ThreadPoolExecutor(threads)
    try:
        futures = [pool.submit(function, *a) for a in arguments]
        for future in wait(futures, return_when=FIRST_EXCEPTION).done:
            future.result()                                     # raises it
        return [future.result() for future in futures]
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


class Verifier:
    """A language-model judge behind `chat(messages) -> text`.  Counts what goes wrong.  Thread-safe.

    `chat` raises JudgeError, TimeoutError or ConnectionError when a call gives nothing.  Text that is no
    verdict is asked for once more (`attempts`).  An engine in the same process may offer `batch(list of
    messages) -> list of text or exception`: judge() then makes one batch of everything, and a second one of
    what could not be read.

    If more than `max_failed_share` of the last `window` verdicts failed, VerifierUnreliable is raised at
    once: by n = floor(max_failed_share * window) + 1 failures, also before the window is full.  A dead judge
    is asked for at most n + concurrency - 1 verdicts (batches: whole), `attempts` calls each, and for at most
    (ceil(n / concurrency) + 1) * attempts * (longest seconds of a call: chat.max_seconds) seconds.  It then
    stays given up, and calls the backend's stop().  Every rank has its own window.
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
        pairs = list(zip(queries, responses, strict=True))
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
        def by_rule(text: str) -> bool:
            return says_nothing(text) or self.context == "solution" and has_revision_cue(text)
        verdicts: list[Any] = [Verdict.judged(False, False) if by_rule(text) else None for _, text in pairs]
        # Not in the failure window: a policy that says nothing would hide a dead judge behind these.
        self._add(verdicts=len(pairs), by_rule=sum(v is not None for v in verdicts))
        asked = todo = [i for i, verdict in enumerate(verdicts) if verdict is None]
        for attempt in range(self.attempts if asked else 0):
            start = time.monotonic()
            outputs = ask([judge_messages(*pairs[i], self.template, again=attempt > 0) for i in todo])
            seconds = time.monotonic() - start
            self._add(calls=len(todo), asked_again=len(todo) if attempt else 0, seconds=seconds)
            for i, output in zip(todo, outputs, strict=True):
                verdicts[i] = self._read(*pairs[i], output)
            todo = [i for i, output in zip(todo, outputs)                       # what could not be read
                    if verdicts[i].status is VerdictStatus.FAILED and isinstance(output, str)]
            if not todo:
                break
        for i in asked:
            self._count(verdicts[i])
        return verdicts

    def _read(self, query: Query, response: str, output: str | Exception) -> Verdict:
        if isinstance(output, Exception):
            self.last_error = str(output) or type(output).__name__
            return Verdict.failed(output.name if isinstance(output, JudgeError) else type(output).__name__)
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
            if not self.given_up and failed and bad.total() > self.max_failed_share * self.window:
                why = ", ".join(f"{n} x {name}" for name, n in bad.most_common())
                self.given_up = (f"{bad.total()} of the last {len(self.recent)} verdicts failed ({why}; "
                                 f"last: {self.last_error}); {self.stops_after()}")
        if self.given_up:
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

        seconds: of all calls, which run side by side.  The last three are 0 if the backend counts none.
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
