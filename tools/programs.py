"""Errors of every program of this project: one line on stderr, and an exit code.

    2    bad input
    3    stopped while running: an unreliable verifier, a server that went away, a full disk, nothing that can
         be learnt; finished work is kept
    130  Ctrl-C; 143: SIGTERM
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from data import DataError
from reward import JudgeError, VerifierUnreliable


class Stopped(RuntimeError):
    """The program has to stop, although its input was right when it began; what is finished is kept."""

    def __init__(self, message: str, code: int = 3):
        super().__init__(message)
        self.code = code


class CannotWrite(Stopped):
    """A disk that is full, read-only or gone."""


def first_line(error: Exception, lines: int = 1) -> str:
    """The first line of an error message, or the first few as one; messages of libraries may have many, and
    blank ones."""
    found = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(found[:lines]) or type(error).__name__


@contextmanager
def one_line_errors(goes_on: str = "") -> Iterator[None]:
    """Wraps the body of a main().  `goes_on` is appended to the line "stopped: ..."."""
    try:
        yield
    except (DataError, JudgeError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except (VerifierUnreliable, Stopped, FloatingPointError) as error:
        print(f"stopped: {error}{goes_on}", file=sys.stderr)
        sys.exit(3)
    except KeyboardInterrupt:
        sys.exit(130)
