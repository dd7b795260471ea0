"""How a run stops on its way: a signal, a verifier that gives up, a full disk.  All ranks stop together.

SIGTERM (a queue takes the machine back), SIGINT (Ctrl-C) and SIGHUP (the terminal is gone) end sampling,
judging and evaluation where they are; an update, and whatever is being written, is finished first.  A second
signal ends the process at once.
"""

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from data import DataError
from policy import all_gather
from reward import VerifierUnreliable
from tools.programs import Stopped

TOGETHER = 2.0           # seconds within which two signals are one: launchers hand on what all have been sent


class Signals:
    """What has arrived, and whether the process may be interrupted where it is just now."""

    def __init__(self):
        self.number, self.since = 0, 0.0
        self.may_interrupt = False

    def arrive(self, number: int, _frame) -> None:
        now = time.monotonic()
        if not self.number:
            self.number, self.since = number, now
            if self.may_interrupt:
                raise KeyboardInterrupt                # no Exception, which a library might take for its own
        elif now > self.since + TOGETHER:
            os.write(2, b"\nstopped at once, by a second signal; --resume goes on from a checkpoint\n")
            os._exit(128 + number)


signals = Signals()                                                       # handlers belong to the process


@contextmanager
def watch_signals() -> Iterator[None]:
    """From here on a signal is heard in interruptible() only, and a second one at once."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)}
    heard = [number for number, handler in before.items() if handler is not signal.SIG_IGN]      # nohup's
    signals.number = 0
    for number in heard:
        signal.signal(number, signals.arrive)
    try:
        yield
    finally:
        for number in heard if not signals.number else ():    # a launcher's second one may be on its way
            signal.signal(number, before[number])


def on_all_ranks(work: Callable, *arguments):
    """work(*arguments) on every rank -> this rank's result.  What stops it on one is raised on all, so that
    none waits for ever."""
    result, failure = None, None
    try:
        result = work(*arguments)
    except (DataError, VerifierUnreliable, FloatingPointError, Stopped, OSError) as error:
        failure = error
    except KeyboardInterrupt:
        number = signal.Signals(signals.number or signal.SIGINT)
        failure = Stopped(number.name, 128 + number)
    failures = [error for error in all_gather(failure) if error is not None]
    if failures:
        raise failures[0]
    return result


def interruptible(work: Callable, *arguments, shared_engine: bool = False):
    """on_all_ranks() within a run: a signal to any rank, or data that can no longer be read, is Stopped on
    all.  Not for work that changes weights or files, which would be left half-done.  Ranks that share an
    engine wait for each other in the middle of it: they finish the work, and stop then."""
    def watched():
        signals.may_interrupt = not shared_engine
        try:
            result = work(*arguments)
        except DataError as error:
            raise Stopped(str(error)) from None
        finally:
            signals.may_interrupt = False
        if signals.number:                                # it came before, or nothing could be interrupted
            raise KeyboardInterrupt
        return result
    return on_all_ranks(watched)
