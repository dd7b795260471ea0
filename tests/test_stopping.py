"""Runs that stop on their way: SIGTERM, Ctrl-C, a verifier that gives up, a full disk.

Guards against: a step that was done and is lost, a resumed run that is not the run it claims to be, half a
checkpoint that stays behind, a rank or a process that waits for ever, a traceback in a user's face.
"""

import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import ALONE, ROOT
from helpers import arguments, assert_same_run, json_rows, last_checkpoint, metrics, train

import contextrl
from data import DataError
from policy import Policy
from reward import VerifierUnreliable, side_by_side
from sampler import HFEngine
from tools.files import append_rows, write_whole
from tools.programs import CannotWrite, Stopped
from training.run_folder import RunFolder
from training.stopping import on_all_ranks


def wait_until(found, process: subprocess.Popen) -> None:
    """Until found() is true."""
    deadline = time.time() + 120
    while not found():
        assert process.poll() is None and time.time() < deadline
        time.sleep(0.05)


def start(*words: str, ranks: int = 1) -> subprocess.Popen:
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    return subprocess.Popen([sys.executable, *(torchrun if ranks > 1 else []), *map(str, words)], cwd=ROOT,
                            env=ALONE, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def told(process: subprocess.Popen) -> list[str]:
    """Lines of stderr of a process that is about to end, without the progress bar."""
    lines = process.communicate(timeout=60)[1].replace("\r", "\n").splitlines()
    bars = ("it/s", "s/it", "?it")
    return [line for line in lines if line.strip() and not any(bar in line for bar in bars)]


def rows_of(run: Path) -> int:
    file = run / "metrics.jsonl"
    return file.read_bytes().count(b"\n") if file.exists() else 0


# ---------------------------------------------------------------------------------------------------- signals

@pytest.fixture(autouse=True)
def handlers():
    """A run that was stopped by a signal leaves its own in place: its process is about to end."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number, code", [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_keeps_the_last_whole_step(world, tmp_path, number, code):
    run = tmp_path / "run"
    process = start("contextrl.py", *arguments(world / "train.jsonl", run, steps=200, save_every=150))
    wait_until(lambda: rows_of(run) > 3, process)
    process.send_signal(number)
    time.sleep(0.2)
    process.send_signal(number)                              # a launcher hands on what all have been sent
    assert told(process) == [f"stopped: {number.name}; --resume goes on from the last checkpoint"]
    assert process.returncode == code
    step = metrics(run)[-1]["step"]
    assert [folder.name for folder in (run / "checkpoints").iterdir()] == [f"step-{step:06d}"]
    train(world / "train.jsonl", run, "--resume", steps=200, save_every=150, stop_after=step + 1)
    assert [row["step"] for row in metrics(run)] == list(range(step + 2))


# Where it happens, and in which call of the method (evaluations: 1, 2 at the start, 3 in step 2, 4, 5 at the
# end; rows: metrics 0, rollouts 1, metrics 1, ...) -> whole steps
PLACES = {"sampling": (HFEngine, "generate", 5, 1), "an update": (Policy, "update", 2, 2),
          "evaluation": (contextrl, "evaluate_queries", 3, 2),
          "the last evaluation": (contextrl, "evaluate_queries", 5, 3),
          "the first evaluation": (contextrl, "evaluate_queries", 1, 0),
          "writing rows": (RunFolder, "log", 3, 2), "writing a checkpoint": (RunFolder, "save", 1, 2)}


@pytest.fixture(scope="module")
def uninterrupted(world, tmp_path_factory) -> tuple[Path, dict]:
    settings = {"method": "grpo", "steps": 3, "eval_every": 2, "save_every": 2,
                "eval_data": world / "heldout.jsonl"}
    return train(world / "train.jsonl", tmp_path_factory.mktemp("whole") / "run", **settings), settings


def at_call(monkeypatch, owner, method: str, number: int, happens) -> None:
    """happens() at the start of the number-th call."""
    real, calls = getattr(owner, method), []

    def watched(*given, **more):
        calls.append(given)
        if len(calls) == number:
            happens()
        return real(*given, **more)
    monkeypatch.setattr(owner, method, watched)


def resumes_to_the_same(world, run: Path, uninterrupted, whole_steps: int) -> None:
    whole, settings = uninterrupted
    checkpoints = sorted(folder.name for folder in (run / "checkpoints").iterdir())
    assert checkpoints[-1:] == ([f"step-{whole_steps:06d}"] if whole_steps else [])
    assert not list(run.rglob(".*")) and not (run / "summary.json").exists()
    for _ in range(2):                                                      # the second finds nothing to do
        train(world / "train.jsonl", run, "--resume", **settings)
        assert_same_run(whole, run)
    assert (run / "summary.json").exists()


@pytest.mark.parametrize("owner, method, call, whole_steps", PLACES.values(), ids=PLACES)
def test_wherever_a_signal_comes_the_resumed_run_is_the_same(world, tmp_path, monkeypatch, uninterrupted,
                                                             owner, method, call, whole_steps):
    with monkeypatch.context() as patch, pytest.raises(Stopped, match="SIGTERM"):
        at_call(patch, owner, method, call, lambda: os.kill(os.getpid(), signal.SIGTERM))
        train(world / "train.jsonl", tmp_path / "run", **uninterrupted[1])
    resumes_to_the_same(world, tmp_path / "run", uninterrupted, whole_steps)


@pytest.mark.parametrize("call, whole_steps", [(3, 2), (4, 3), (5, 3)])
def test_a_verifier_that_gives_up_in_an_evaluation(world, tmp_path, monkeypatch, uninterrupted, call,
                                                   whole_steps):
    def gives_up():
        raise VerifierUnreliable("no answer")
    with monkeypatch.context() as patch, pytest.raises(VerifierUnreliable):
        at_call(patch, contextrl, "evaluate_queries", call, gives_up)
        train(world / "train.jsonl", tmp_path / "run", **uninterrupted[1])
    resumes_to_the_same(world, tmp_path / "run", uninterrupted, whole_steps)


SLEEPING = """
import time
from pathlib import Path

def judge(query, response):
    if Path(__file__).with_name("run").joinpath("rollouts.jsonl").exists():
        Path(__file__).with_name("asked").touch()
        time.sleep(600)
    return float(len(response) % 2)
"""


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_call_of_a_judge_keeps_nobody_waiting(world, tmp_path, ranks):
    (tmp_path / "judge.py").write_text(SLEEPING)
    process = start("contextrl.py", *arguments(world / "train.jsonl", tmp_path / "run", save_every=100,
                                               verifier=tmp_path / "judge.py"), ranks=ranks)
    wait_until((tmp_path / "asked").exists, process)
    process.terminate()                                   # torchrun hands it on to both, and waits for 30 s
    lines = told(process)
    assert sum(line.startswith("stopped: SIGTERM; ") for line in lines) == 1
    assert ranks == 2 or (len(lines) == 1 and process.returncode == 143)
    assert last_checkpoint(tmp_path / "run").name == "step-000001"


def test_a_signal_to_one_of_two_ranks_is_one_to_both(world, tmp_path):
    (tmp_path / "judge.py").write_text("""
import os, signal

calls = []

def judge(query, response):
    calls.append(response)
    if os.environ["RANK"] == "1" and len(calls) == 2 * 8 + 1:                         # in the third step
        os.kill(os.getpid(), signal.SIGTERM)
    return float(len(response) % 2)
""")
    words = arguments(world / "train.jsonl", tmp_path / "run", steps=5, method="grpo",
                      verifier=tmp_path / "judge.py")
    process = start("contextrl.py", *words, ranks=2)
    lines = told(process)
    assert process.returncode == 1                                                    # torchrun's own
    assert [line for line in lines if line.startswith(("stopped", "error")) or "contextrl.py\"" in line] == [
        "stopped: SIGTERM; --resume goes on from the last checkpoint"]                # no traceback of ours
    assert last_checkpoint(tmp_path / "run").name == "step-000002"
    assert [row["step"] for row in metrics(tmp_path / "run")] == [0, 1, 2]


def test_a_second_signal_ends_an_update_that_does_not_end(world, tmp_path):
    words = list(map(str, arguments(world / "train.jsonl", tmp_path / "run", steps=2)))
    process = start("-c", f"""
import sys, time
from pathlib import Path
import contextrl, policy

def endless(*_):
    Path({str(tmp_path / "began")!r}).touch()
    while True:
        time.sleep(0.1)

policy.Policy.update = endless
sys.argv = {["contextrl.py", *words]!r}
contextrl.main()
""")
    wait_until((tmp_path / "began").exists, process)
    process.terminate()
    with pytest.raises(subprocess.TimeoutExpired):                        # an update is not torn
        process.wait(3)
    process.terminate()
    assert told(process) == ["stopped at once, by a second signal; --resume goes on from a checkpoint"]
    assert process.returncode == 143 and not list((tmp_path / "run" / "checkpoints").iterdir())


def test_calls_under_way_are_not_waited_for():
    def judge(number):
        if number == 1:
            raise VerifierUnreliable("away")
        time.sleep(3)
    began = time.monotonic()
    with pytest.raises(VerifierUnreliable):
        side_by_side(judge, [(number,) for number in range(100)], threads=4)
    assert time.monotonic() - began < 2.5


def test_neither_at_the_end_of_the_process(world, tmp_path):
    (tmp_path / "judge.py").write_text("""
import threading, time

first = threading.Lock()

def judge(query, response):
    if first.acquire(blocking=False):
        time.sleep(1)
        raise ValueError("a bug")
    time.sleep(600)
""")
    process = start("contextrl.py", *arguments(world / "train.jsonl", tmp_path / "run",
                                               verifier=tmp_path / "judge.py"))
    line, = told(process)
    assert process.returncode == 3 and "judge.py:9: ValueError: a bug" in line


def test_a_signal_that_is_ignored_stays_ignored(world, tmp_path):
    """Scripts start what they leave in the background with Ctrl-C ignored, nohup with SIGHUP ignored."""
    before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGHUP)}
    try:
        with pytest.MonkeyPatch.context() as patch:
            for number in before:
                at_call(patch, HFEngine, "generate", 1, lambda number=number: os.kill(os.getpid(), number))
            train(world / "train.jsonl", tmp_path / "run", steps=1)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert [row["step"] for row in metrics(tmp_path / "run")] == [0, 1]


def test_a_picture_that_goes_away_costs_no_step(world, tmp_path):
    """All ranks stop, what has been trained is kept, and the run goes on when the picture is back."""
    shutil.copy(world / "train.jsonl", tmp_path / "train.jsonl")
    shutil.copytree(world / "images", tmp_path / "images")
    (tmp_path / "judge.py").write_text("""
from pathlib import Path

HERE = Path(__file__).parent

def judge(query, response):
    rows = HERE / "run" / "metrics.jsonl"
    if rows.exists() and rows.read_bytes().count(b"\\n") == 3:                          # in the third step
        try:
            open(HERE / "once", "x").close()
            (HERE / "images").rename(HERE / "away")
        except FileExistsError:
            pass
    return float(len(response) % 2)
""")
    settings = {"steps": 8, "save_every": 100, "verifier": tmp_path / "judge.py"}
    words = arguments(tmp_path / "train.jsonl", tmp_path / "run", **settings)
    process = start("contextrl.py", *words, ranks=2)
    lines = told(process)
    assert process.returncode == 1 and sum("cannot read image" in line for line in lines) == 1, lines
    saved = last_checkpoint(tmp_path / "run").name
    assert saved in ("step-000002", "step-000003")                  # what was in memory still served step 3
    (tmp_path / "away").rename(tmp_path / "images")
    train(tmp_path / "train.jsonl", tmp_path / "run", "--resume", **settings, stop_after=4)
    assert [row["step"] for row in metrics(tmp_path / "run")] == [0, 1, 2, 3, 4]


# ------------------------------------------------------------------------------------------------ a full disk

@pytest.fixture
def stopped(monkeypatch, capsys):
    """-> stopped(arguments): runs main() in process, which has to end with exit code 3 -> its line."""
    def call(words) -> str:
        monkeypatch.setattr(sys, "argv", ["contextrl.py", *map(str, words)])
        with pytest.raises(SystemExit) as stop:
            contextrl.main()
        lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("stopped: ")]
        assert stop.value.code == 3 and len(lines) == 1
        return lines[0]
    return call


@pytest.mark.parametrize("file", ["metrics.jsonl", "rollouts.jsonl"])
def test_a_full_disk_is_one_line(world, tmp_path, stopped, monkeypatch, file):
    """The file leads to /dev/full, where every write fails as on a full disk."""
    real, run = RunFolder.open, tmp_path / "run"

    def with_a_full_disk(self):
        real(self)
        (run / file).symlink_to("/dev/full")
    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "open", with_a_full_disk)
        line = stopped(arguments(world / "train.jsonl", run, steps=1))
    assert line.startswith(f"stopped: cannot write {run / file}: No space left on device; --resume")
    (run / file).unlink()
    train(world / "train.jsonl", run, "--resume", steps=1)
    assert [row["step"] for row in metrics(run)] == [0, 1]


@pytest.mark.parametrize("bytes_a_file, named", [(10**6, "checkpoint {run}/checkpoints/.step-000002.partial"),
                                                 (60, "{run}/images")])
def test_what_does_not_fit_does_not_stay_and_the_last_whole_checkpoint_does(world, tmp_path, stopped, named,
                                                                            bytes_a_file):
    """A limit on the size of a file stands for a full disk: weights have megabytes, a picture 100 bytes."""
    settings = {"steps": 3, "save_every": 1, "method": "grpo"}
    whole = train(world / "train.jsonl", tmp_path / "whole", **settings)
    run = train(world / "train.jsonl", tmp_path / "run", **settings, stop_after=1)
    rows, limits = json_rows(run / "metrics.jsonl"), resource.getrlimit(resource.RLIMIT_FSIZE)
    real = contextrl.RunFolder.open

    def with_less_room(self):
        real(self)
        resource.setrlimit(resource.RLIMIT_FSIZE, (bytes_a_file, limits[1]))
    contextrl.RunFolder.open = with_less_room
    try:
        line = stopped(arguments(world / "train.jsonl", run, "--resume", **settings))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        contextrl.RunFolder.open = real
    assert line.startswith(f"stopped: cannot write {named.format(run=run)}: ") and "File too large" in line
    assert [folder.name for folder in (run / "checkpoints").iterdir()] == ["step-000001"]
    assert json_rows(run / "metrics.jsonl")[:len(rows)] == rows
    train(world / "train.jsonl", run, "--resume", **settings)
    assert_same_run(whole, run)
    assert not list(run.rglob(".*"))


def test_what_cannot_be_written_is_named_and_leaves_nothing_behind(tmp_path):
    (tmp_path / "folder").mkdir()
    for write in (lambda: write_whole(tmp_path / "folder", "text"),
                  lambda: append_rows(tmp_path / "folder", [{}])):
        with pytest.raises(CannotWrite, match=r"^cannot write .*/folder: Is a directory$") as refused:
            write()
        assert refused.value.code == 2
    assert [file.name for file in tmp_path.iterdir()] == ["folder"]


@pytest.mark.parametrize("raised, becomes, told", [
    (DataError("a row"), DataError, "a row"), (VerifierUnreliable("away"), VerifierUnreliable, "away"),
    (Stopped("too long"), Stopped, "too long"), (FloatingPointError("NaN"), FloatingPointError, "NaN"),
    (CannotWrite("full"), CannotWrite, "full"), (KeyboardInterrupt(), Stopped, "SIGINT"),
    (ZeroDivisionError("ours"), ZeroDivisionError, "ours")])
def test_what_stops_one_rank_is_raised_on_all(raised, becomes, told):
    def work():
        raise raised
    with pytest.raises(becomes, match=told):
        on_all_ranks(work)
    assert on_all_ranks(divmod, 7, 2) == (3, 1)
