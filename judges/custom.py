"""A verifier of your own: one function in a file.  For training, evaluation and data building alike:

    --verifier my_reward.py

The file holds `judge(query, response)`, which returns a reward.Verdict, or a number, which is the reward:
above 0 the response counts as right, so that its query needs no stage 2.  It is called from several threads.
It may be the whole of

    def judge(query, response):
        return float(query.answer in response)
"""

import importlib.util
import math
import sys
import traceback
from dataclasses import replace
from numbers import Real
from pathlib import Path
from typing import Any

import numpy

from data import DataError, Query
from reward import Verdict, VerdictStatus, VerifierUnreliable, side_by_side


class FunctionVerifier:
    """Verdicts of one function.  An error in it stops the run: it is a bug, not a wrong answer."""

    def __init__(self, file: str, threads: int = 16):
        self.file, self.threads = file, threads
        spec: Any = importlib.util.spec_from_file_location("verifier_of_yours", file)
        # Dataclasses look their module up in sys.modules.
        module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
        try:
            spec.loader.exec_module(module)
        except (Exception, SystemExit) as error:                  # a file of yours may raise anything
            raise DataError(f"cannot load verifier {file}: {where_in(file, error)}") from None
        self.function = getattr(module, "judge", None)
        if not callable(self.function):
            raise DataError(f"verifier {file} has no function judge(query, response)")

    def judge(self, queries: list[Query], responses: list[str]) -> list[Verdict]:
        return side_by_side(self.judge_one, list(zip(queries, responses, strict=True)), self.threads)

    def judge_one(self, query: Query, response: str) -> Verdict:
        try:
            value = self.function(query, response)
            reward = value.reward if isinstance(value, Verdict) else value
            finite = isinstance(reward, (Real, numpy.bool_)) and math.isfinite(reward)
        except (Exception, SystemExit) as error:                  # as above; raised again with one line
            raise VerifierUnreliable(f"{where_in(self.file, error)}, for query {query.id}") from None
        if isinstance(value, Verdict) and (finite or value.status is VerdictStatus.FAILED):
            return value if value.value is None else replace(value, correct=value.value > 0)
        if not finite:
            told = " ".join(repr(value).split())[:80]
            raise VerifierUnreliable(f"{self.file}: judge() returned {told} for query {query.id}, not a "
                                     "Verdict or a finite number")
        # float(): numbers of numpy cannot be written as JSON.
        return Verdict(VerdictStatus.JUDGED, correct=value > 0, consistent=True, value=float(value))

    def metrics(self) -> dict[str, float]:
        return {}


def where_in(file: str, error: BaseException) -> str:
    """Line of the file, kind and message of an error: one line."""
    place = Path(file).resolve()
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if Path(frame.filename).resolve() == place]
    if isinstance(error, SyntaxError) and Path(error.filename or "").resolve() == place:
        lines = [error.lineno]                        # else it is in what the file imports, or evaluates
    message = " ".join(str(getattr(error, "msg", None) or error).split())[:200]
    return f"{file}{f':{lines[-1]}' if lines else ''}: {type(error).__name__}: {message}"
