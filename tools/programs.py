"""What every program of this project does with an error: one line on stderr, and an exit code.

    2    bad input: nothing was begun, nothing is lost
    3    stopped on the way: what was done is kept, the same command goes on
    130  Ctrl-C
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from data import DataError
from reward import JudgeError, VerifierUnreliable


def first_line(error: Exception) -> str:
    """Libraries explain themselves at length; the first line that says something is enough."""
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__).strip()


@contextmanager
def one_line_errors(goes_on: str = "") -> Iterator[None]:
    """Around a main().  `goes_on` is said after "stopped: ..."."""
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
