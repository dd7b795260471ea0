"""Errors of every program of this project: one line on stderr, and an exit code.

    2    bad input
    3    stopped while running: an unreliable verifier, a server that went away, a full disk, nothing that can
         be learnt; finished work is kept
    130  Ctrl-C; 143: SIGTERM

Under torchrun what stops a run is raised on all ranks (training/stopping.py), and rank 0 says it.
"""

import os
import sys
import threading
import time
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


def leave(code: int) -> None:
    """sys.exit(), except that calls of a judge which are under way in threads are not waited for."""
    deadline = time.monotonic() + 1.0
    others = [t for t in threading.enumerate() if not t.daemon and t is not threading.main_thread()]
    for thread in others:
        thread.join(max(0.0, deadline - time.monotonic()))
    if any(thread.is_alive() for thread in others):
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def first_line(error: Exception, lines: int = 1) -> str:
    """The first line of an error message, or the first few as one; messages of libraries may have many, and
    blank ones."""
    found = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(found[:lines]) or type(error).__name__


@contextmanager
def one_line_errors(goes_on: str = "") -> Iterator[None]:
    """Wraps the body of a main().  `goes_on` is appended to the line "stopped: ..."."""
    rank = int(os.environ.get("RANK", 0))
    try:
        yield
    except (DataError, JudgeError, OSError) as error:
        if rank:             # most errors are those of all ranks: rank 0 says it and torchrun ends the others
            time.sleep(5)
        print(f"error{f' on rank {rank}' if rank else ''}: {error}", file=sys.stderr)
        sys.exit(2)
    except (VerifierUnreliable, Stopped, FloatingPointError) as error:
        code = getattr(error, "code", 3)
        if rank == 0:
            print(f"error: {error}" if code == 2 else f"stopped: {error}{goes_on}", file=sys.stderr)
        leave(code)
    except KeyboardInterrupt:
        leave(130)
