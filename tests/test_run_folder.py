"""The run folder and its life: it belongs to one run, which one command starts and goes on with.

Guards against: two runs in one folder, a stop or a resume that changes numbers, rows of a killed run that
stay, a resume with other data or weights than the run began with.
"""

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import ALONE, MODEL, ROOT
from helpers import arguments, assert_same_run, json_rows, last_checkpoint, metrics, train
from safetensors.torch import load_file, save_file

import contextrl
from data import DataError
from training.run_folder import RunFolder

# ----------------------------------------------------------------------------------------- stop, kill, resume

@pytest.mark.parametrize("method, minibatches", [("contextrl", 2), ("dapo", 1)])
def test_a_stopped_run_goes_on_as_if_it_had_not_stopped(world, tmp_path, method, minibatches):
    settings = {"method": method, "minibatches": minibatches, "steps": 4,
                "eval_data": world / "heldout.jsonl"}
    whole = train(world / "train.jsonl", tmp_path / "whole", **settings)
    train(world / "train.jsonl", tmp_path / "parts", **settings, stop_after=2)
    assert [row["step"] for row in metrics(tmp_path / "parts")] == [0, 1, 2]
    assert not (tmp_path / "parts" / "summary.json").exists()
    parts = train(world / "train.jsonl", tmp_path / "parts", "--resume", **settings)

    assert_same_run(whole, parts)
    assert [row["step"] for row in metrics(parts)] == [0, 1, 2, 3, 4]
    assert any(row["trained_tokens"] for row in metrics(parts)[3:])    # something was learned after the break
    start, end = (load_file(folder / "model.safetensors") for folder in (Path(MODEL), last_checkpoint(parts)))
    assert any(not torch.equal(start[name].float(), end[name]) for name in start)
    cursor = json.loads((last_checkpoint(parts) / "state.json").read_text())["cursor"]
    assert cursor > 16 if method == "dapo" else cursor == 16               # DAPO drew more than 4 x 4 queries
    summaries = [json.loads((run / "summary.json").read_text()) | {"wall_seconds": 0}
                 for run in (whole, parts)]
    assert summaries[0] == summaries[1]

    train(world / "train.jsonl", tmp_path / "parts", "--resume", **settings)       # nothing left to do
    assert_same_run(whole, parts)


@pytest.mark.parametrize("survives", [None, "step-000002"])
def test_steps_after_the_last_checkpoint_are_done_again(world, tmp_path, survives):
    """Killed while a checkpoint was being written: rows of later steps are there, their weights are not."""
    whole = train(world / "train.jsonl", tmp_path / "whole", steps=4)
    killed = train(world / "train.jsonl", tmp_path / "killed", steps=4, save_every=2, stop_after=3)
    for checkpoint in (killed / "checkpoints").iterdir():
        if checkpoint.name != survives:
            checkpoint.rename(checkpoint.with_name(f".{checkpoint.name}.1"))     # the name of unfinished ones
    train(world / "train.jsonl", killed, "--resume", steps=4)
    assert_same_run(whole, killed)


def test_a_half_written_checkpoint_is_in_nobodys_way(world, tmp_path):
    run = train(world / "train.jsonl", tmp_path / "run", steps=2, stop_after=1)
    half = run / "checkpoints" / ".step-000002.partial"
    half.mkdir()
    (half / "model.safetensors").write_bytes(b"half")
    train(world / "train.jsonl", run, "--resume", steps=2)
    assert_same_run(train(world / "train.jsonl", tmp_path / "whole", steps=2), run)


def test_kill_dash_nine(world, tmp_path):
    settings = {"steps": 8, "save_every": 1}
    killed = tmp_path / "killed"
    process = subprocess.Popen([sys.executable, "contextrl.py",
                                *arguments(world / "train.jsonl", killed, **settings)],
                               cwd=ROOT, env=ALONE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.time() + 120
        file = killed / "metrics.jsonl"
        while not file.exists() or len(file.read_bytes().splitlines()) < 3:
            assert process.poll() is None and time.time() < deadline
            time.sleep(0.005)
    finally:
        process.kill()
    assert process.wait(30) == -signal.SIGKILL
    done = (killed / "metrics.jsonl").read_bytes().count(b"\n") - 1
    assert 2 <= done < 8
    with open(killed / "metrics.jsonl", "a") as file:
        file.write('{"step": 99, "rew')                                    # torn in the middle of a line
    with open(killed / "rollouts.jsonl", "ab") as file:
        file.write('{"step": 99, "question": "3 ×'.encode()[:-1])          # torn in the middle of a character

    train(world / "train.jsonl", killed, "--resume", **settings)
    assert_same_run(train(world / "train.jsonl", tmp_path / "whole", **settings), killed)


def test_a_model_from_the_hub_whose_weights_arrive_late(world, tmp_path):
    """`--model org/name` is no folder.  A cache with one such model stands for the hub; as in a download, the
    weights come when the policy is loaded."""
    cache, late = tmp_path / "cache" / "models--org--tiny", tmp_path / "late.safetensors"
    snapshot = cache / "snapshots" / "abc"
    shutil.copytree(MODEL, snapshot)
    (snapshot / "model.safetensors").rename(late)
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text("abc")
    for stop_after in (1, 2):
        words = arguments(world / "train.jsonl", tmp_path / "run", "--resume", steps=2, stop_after=stop_after,
                          model="org/tiny")
        done = subprocess.run([sys.executable, "-c", f"""
import sys
from pathlib import Path
import contextrl, training.parts

load_policy, late = training.parts.load_policy, Path({str(late)!r})

def downloaded(*given):
    if late.exists():
        late.rename({str(snapshot / "model.safetensors")!r})
    return load_policy(*given)

training.parts.load_policy = downloaded
sys.argv[1:] = {words}
contextrl.main()
"""], cwd=ROOT, timeout=120, env=ALONE | {"HF_HUB_CACHE": str(cache.parent), "HF_HUB_OFFLINE": "1"},
                              capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-1000:]
    assert steps_of(tmp_path / "run") == [0, 1, 2]


def steps_of(run: Path) -> list[int]:
    return [row["step"] for row in metrics(run)]


# ---------------------------------------------------------------------------------- a folder belongs to a run

def config_of(*words):
    return contextrl.read_config(list(map(str, words)))


def test_runs_of_the_same_second_have_folders_of_their_own(monkeypatch):
    monkeypatch.setattr(time, "strftime", lambda form: "20261127-120000")
    folders = {RunFolder(config_of(), 0, 1).folder for _ in range(20)}
    assert len(folders) == 20 and all(str(f).startswith("runs/20261127-120000-contextrl-") for f in folders)
    assert not any(folder.exists() for folder in folders)


@pytest.mark.parametrize("more", [[], ["--resume"]])
@pytest.mark.parametrize("second_came", ["before the folder was made", "later"])
def test_a_folder_in_which_a_run_is_at_work_takes_no_other(tmp_path, more, second_came):
    first = RunFolder(config_of("--output_dir", tmp_path / "run"), 0, 1)
    second = RunFolder(config_of("--output_dir", tmp_path / "run", *more), 0, 1)
    with first.held():
        if second_came == "later":
            first.open()
            with pytest.raises(DataError, match="another run is at work in"), second.held():
                pass                                                     # before anything large is loaded
        else:
            with second.held():
                first.open()
                with pytest.raises(DataError, match="another run is at work in"):
                    second.open()
    with RunFolder(config_of("--output_dir", tmp_path / "run", "--resume"), 0, 1).held():
        pass                                                                          # the lock is free again


@pytest.mark.parametrize("more", [[], ["--resume"]])
def test_a_run_that_came_and_went_meanwhile_is_noticed(tmp_path, more):
    first, second = (RunFolder(config_of("--output_dir", tmp_path / "run", *more), 0, 1) for _ in range(2))
    with second.held():
        with first.held():
            first.open()
            first.log({})
        with pytest.raises(DataError, match="holds a run by now"):
            second.open()


def test_a_jobs_log_is_not_in_the_way(world, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "slurm-17.out").write_text("queued\n")
    for stop_after in (1, 2):
        train(world / "train.jsonl", tmp_path / "run", "--resume", steps=2, stop_after=stop_after)
    assert steps_of(tmp_path / "run") == [0, 1, 2]
    assert (tmp_path / "run" / "slurm-17.out").read_text() == "queued\n"


# ------------------------------------------------------------------------ one command that starts and goes on

def test_one_command_starts_and_goes_on_and_is_harmless_at_the_end(world, tmp_path, capsys):
    whole = train(world / "train.jsonl", tmp_path / "whole", steps=3)
    run = tmp_path / "run"
    for stop_after in (1, 2, 3, 3):
        train(world / "train.jsonl", run, "--resume", steps=3, stop_after=stop_after)
        assert steps_of(run) == list(range(stop_after + 1))
    assert_same_run(whole, run)
    out = capsys.readouterr().out
    assert out.count(f"no checkpoint in {run} yet") == 1 and out.count(f"the run in {run} is complete") == 1


def test_a_recording_goes_on_where_it_stopped(world, tmp_path):
    whole = train(world / "train.jsonl", tmp_path / "whole", "--rollout_only", steps=3)
    run = tmp_path / "run"
    for stop_after in (2, 3):
        train(world / "train.jsonl", run, "--rollout_only", "--resume", steps=3, stop_after=stop_after)
        first = (run / "rollouts.jsonl").read_bytes()
        assert {row["step"] for row in json_rows(run / "rollouts.jsonl")} == {*range(1, stop_after + 1)}
    assert first == (whole / "rollouts.jsonl").read_bytes() and metrics(run) == metrics(whole)
    assert not list(run.rglob("*.safetensors"))                                   # nothing has been trained


def test_a_finished_recording_is_not_made_again(world, tmp_path, capsys):
    run = train(world / "train.jsonl", tmp_path / "run", "--rollout_only", "--resume", steps=1)
    before = {file: file.stat().st_mtime_ns for file in run.rglob("*")}
    train(world / "train.jsonl", run, "--rollout_only", "--resume", steps=1)
    assert {file: file.stat().st_mtime_ns for file in run.rglob("*")} == before
    assert f"the run in {run} is complete" in capsys.readouterr().out


def test_restarts_need_a_run_that_goes_on(world, tmp_path, monkeypatch):
    """Said when the launcher starts the run, not when it has to start it again."""
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "3")
    monkeypatch.chdir(tmp_path)
    for out in ("", tmp_path / "run"):
        with pytest.raises(DataError, match="--max-restarts needs --output_dir and --resume"):
            train(world / "train.jsonl", out, steps=1)
    assert not list(tmp_path.iterdir())


def test_files_of_others_are_not_in_the_way(world, tmp_path):
    run = train(world / "train.jsonl", tmp_path / "run", steps=2, stop_after=1)
    (run / "checkpoints" / ".DS_Store").touch()
    (run / "images" / ".ipynb_checkpoints").mkdir()
    (run / "images" / ".a.png.0123abcd").touch()                                     # ours, half-written
    train(world / "train.jsonl", run, "--resume", steps=2)
    assert (run / "checkpoints" / ".DS_Store").exists() and (run / "images" / ".ipynb_checkpoints").exists()
    assert not (run / "images" / ".a.png.0123abcd").exists() and steps_of(run) == [0, 1, 2]


def test_a_run_that_was_killed_before_its_first_row_is_a_run(world, tmp_path):
    run = train(world / "train.jsonl", tmp_path / "run", steps=2, stop_after=1)
    (run / "metrics.jsonl").unlink()
    with pytest.raises(DataError, match="already holds a run"):
        train(world / "train.jsonl", run, steps=2)
    with pytest.raises(DataError, match="--resume: learning_rate was"):
        train(world / "train.jsonl", run, "--resume", steps=2, learning_rate=1.0)


# ------------------------------------------------------------------------ what a run is made of is remembered

@pytest.fixture(scope="module")
def begun(world, tmp_path_factory) -> Path:
    """A folder with data, model, verifier and prompt of its own, and a run that stopped after step 1 of 2."""
    place = tmp_path_factory.mktemp("begun")
    for name in ("train.jsonl", "heldout.jsonl"):
        shutil.copy(world / name, place / name)
    shutil.copytree(world / "images", place / "images")
    shutil.copytree(MODEL, place / "model")
    (place / "judge.py").write_text("def judge(query, response):\n    return query.answer in response\n")
    (place / "retry.txt").write_text("{report} again\n---\nagain")
    resumed(place, stop_after=1)
    return place


def resumed(place: Path, **more) -> Path:
    settings = {"steps": 2, "model": place / "model", "eval_data": place / "heldout.jsonl",
                "verifier": place / "judge.py", "retry_prompt": place / "retry.txt"}
    return train(place / "train.jsonl", place / "run", "--resume", **settings | more)


def without_a_row(file: Path) -> None:
    file.write_text("".join(file.read_text().splitlines(keepends=True)[:-1]))


def with_other_words(file: Path) -> None:
    file.write_text(file.read_text().replace("how many", "count the"))


def other_weights(model: Path) -> None:
    weights = load_file(model / "model.safetensors")
    save_file({name: weight * 2 for name, weight in weights.items()}, model / "model.safetensors",
              metadata={"format": "pt"})


CHANGES = {                                     # what is done to the folder -> whose content has changed
    "a row is taken out": (lambda place: without_a_row(place / "train.jsonl"), "data"),
    "questions are other ones": (lambda place: with_other_words(place / "train.jsonl"), "data"),
    "a picture is another": (lambda place: [shutil.copy(ROOT / "assets/report.png", file)
                                            for file in (place / "images").glob("train-hard-0*")], "data"),
    "held-out data": (lambda place: without_a_row(place / "heldout.jsonl"), "eval_data"),
    "weights": (lambda place: other_weights(place / "model"), "model"),
    "the verifier": (lambda place: (place / "judge.py").write_text("def judge(q, r):\n    return 1\n"),
                     "verifier"),
    "words of stage 2": (lambda place: (place / "retry.txt").write_text("{report}\n---\nno"), "retry_prompt"),
}


@pytest.mark.parametrize("change, named", CHANGES.values(), ids=CHANGES)
def test_a_change_of_content_is_refused(begun, tmp_path, change, named):
    place = Path(shutil.move(begun, tmp_path / "away"))               # under the names that it was begun with
    shutil.copytree(place, begun)
    try:
        change(begun)
        before = (begun / "run" / "metrics.jsonl").read_bytes()
        with pytest.raises(DataError, match=f"--resume: the content of {named} has changed"):
            resumed(begun)
        assert (begun / "run" / "metrics.jsonl").read_bytes() == before
    finally:
        shutil.rmtree(begun)
        shutil.move(place, begun)


def test_the_run_that_is_spoilt_above_goes_on(begun):
    assert steps_of(resumed(begun)) == [0, 1, 2]
