"""Errors of every program of this project: one line on stderr, and an exit code.

    2    bad input
    3    stopped while running, because the verifier is unreliable: finished work is kept
    130  Ctrl-C
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from data import DataError
from reward import JudgeError, VerifierUnreliable


def first_line(error: Exception) -> str:
    """First line of an error message that is not blank; messages of libraries may have many."""
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__).strip()


@contextmanager
def one_line_errors(goes_on: str = "") -> Iterator[None]:
    """Wraps the body of a main().  `goes_on` is appended to the line "stopped: ..."."""
    try:
        yield
    except (DataError, JudgeError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except VerifierUnreliable as error:
        print(f"stopped: {error}{goes_on}", file=sys.stderr)
        sys.exit(3)
    except KeyboardInterrupt:
        sys.exit(130)
