"""Bad settings, data, models and folders: exit code 2 and ONE line on stderr that starts with "error: ".

Guards against: a traceback in a user's face, a line that does not name the culprit, a mistake that is found
only after the run has begun or is not found at all, and a run folder left behind (or harmed) by a run that
never started.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import contextrl
import toy
from data import DataError, save_queries
from tools.programs import CannotWrite, Stopped, one_line_errors
from training.checkpoint import loading

ROOT = Path(__file__).resolve().parent.parent
MODEL = ROOT / "toy" / "checkpoint"
ALONE = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"}


@pytest.fixture(scope="session")
def small_world(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("small_world")
    save_queries(toy.train_queries(size=8), folder / "train.jsonl")
    return folder


@pytest.fixture(scope="session")
def finished_run(small_world, tmp_path_factory) -> Path:
    """A run folder with a checkpoint, beside the copy of the model it was started from; for tests to copy."""
    place = tmp_path_factory.mktemp("finished")
    shutil.copytree(MODEL, place / "model")
    contextrl.train(contextrl.read_config(flags(small_world / "train.jsonl", place / "run",
                                                model=place / "model")))
    return place


def flags(data: Path, out: Path, *more, model: Path = MODEL) -> list[str]:
    """A command line that works; what comes later counts."""
    small = "--steps 1 --queries_per_step 4 --group_size 2 --max_new_tokens 8 --eval_every 0 --device cpu"
    return list(map(str, ["--model", model, "--data", data, "--output_dir", out, *small.split(), *more]))


@pytest.fixture
def refused(monkeypatch, capsys):
    """-> refused(arguments): runs main() in process and returns its one line."""
    def call(arguments) -> str:
        monkeypatch.setattr(sys, "argv", ["contextrl.py", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            contextrl.main()
        return one_line(stop.value.code, capsys.readouterr().err)
    return call


def one_line(code: int, stderr: str) -> str:
    lines = stderr.splitlines()
    assert code == 2 and len(lines) == 1 and lines[0].startswith("error: "), (code, stderr)
    return lines[0]


def files(folder: Path) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in sorted(folder.rglob("*")) if f.is_file()}


def test_the_command_line_that_is_spoilt_below_works(small_world, tmp_path):
    run = contextrl.train(contextrl.read_config(flags(small_world / "train.jsonl", tmp_path / "run")))
    assert (run / "summary.json").exists()


# --------------------------------------------------------------------------------------------------- settings

SETTINGS = [                           # what is added to a command line that works -> what the line must name
    ("--method ppo", "method"),
    ("--no_such_flag 1", "no_such_flag"),
    ("--steps many", "steps"),
    ("--steps 0", "steps"),
    ("--group_size 1", "group_size"),
    ("--mixed_scale 0", "mixed_scale"),
    ("--mixed_scale 1.5", "mixed_scale"),
    ("--mixed_scale nan", "mixed_scale"),
    ("--temperature 0", "temperature"),
    ("--temperature nan", "temperature"),
    ("--temperature inf", "temperature"),
    ("--kl_coef -0.1", "kl_coef"),
    ("--kl_coef nan", "kl_coef"),
    ("--learning_rate 0", "learning_rate"),
    ("--learning_rate nan", "learning_rate"),
    ("--queries_per_step 0", "queries_per_step"),
    ("--max_new_tokens 0", "max_new_tokens"),
    ("--minibatches 0", "minibatches"),
    ("--clip_low 1", "clip_low"),
    ("--clip_high nan", "clip_high"),
    ("--max_pixels 0", "max_pixels"),
    ("--save_every 0", "save_every"),
    ("--stop_after -1", "stop_after"),
    ("--seed -1", "seed"),
    ("--method dapo --refill_rounds 0", "refill_rounds"),
    ("--method dapo --overlong_buffer 0", "overlong_buffer"),
    ("--verifier_context everything", "verifier_context"),
    ("--device tpu", "device"),
    ("--method sft --rollout_only", "sft"),
    ("--rollout_only --rollouts_from x.jsonl", "rollouts_from"),
    ("--rollouts_from no_such_recording.jsonl", "no_such_recording.jsonl"),
]


@pytest.mark.parametrize("added, named", SETTINGS, ids=[added for added, _ in SETTINGS])
def test_setting(small_world, tmp_path, refused, added, named):
    out = tmp_path / "run"
    assert named in refused(flags(small_world / "train.jsonl", out, *added.split()))
    assert not out.exists()


def test_cuda_without_cuda(small_world, tmp_path, refused, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "CUDA" in refused(flags(small_world / "train.jsonl", tmp_path / "run", "--device", "cuda"))
    assert not (tmp_path / "run").exists()


def test_resume_without_a_folder(refused):
    assert "--output_dir" in refused(["--resume"])


CONFIG_FILES = {                        # content of the file (None: there is none) -> what the line must name
    "missing": (None, "settings.json"),
    "not JSON": ('{"steps": 3', "settings.json"),
    "not an object": ("[1, 2]", "settings.json"),
    "unknown key": ('{"stepz": 3}', "stepz"),
    "text for a number": ('{"steps": "many"}', "steps"),
    "half a step": ('{"steps": 2.5}', "steps"),
    "unknown method": ('{"method": "ppo"}', "method"),
    "text for a switch": ('{"stage2": "maybe"}', "stage2"),
}


@pytest.mark.parametrize("content, named", CONFIG_FILES.values(), ids=CONFIG_FILES)
def test_settings_file(small_world, tmp_path, refused, content, named):
    file, out = tmp_path / "settings.json", tmp_path / "run"
    if content is not None:
        if content.startswith('{"') and content.endswith("}"):            # everything else in it works
            good = {"model": str(MODEL), "data": str(small_world / "train.jsonl"),
                    "output_dir": str(out), "steps": 1,
                    "queries_per_step": 4, "group_size": 2, "max_new_tokens": 8, "eval_every": 0,
                    "device": "cpu"}
            content = json.dumps(good | json.loads(content))
        file.write_text(content)
    assert named in refused([file])
    assert not out.exists()


# ------------------------------------------------------------------------------------------------------- data

def row(**changes) -> dict:
    query = toy.make_query("ordinary", 0, "train", "half")
    good = {"id": "a", "question": query.question, "solution": query.solution, "answer": query.answer,
            "facts": query.facts, "family": "ordinary"}
    return {name: value for name, value in (good | changes).items() if value is not None}


DATA = {                                      # lines of the file -> what the error must name
    "query without solution": ([row(solution=None)], "solution"),
    "empty answer": ([row(answer=" ")], "answer"),
    "unknown field": ([row(sollution="red 3")], "sollution"),
    "broken line": (['{"id": "b", "ques'], "data.jsonl:1"),
    "not an object": (["[1, 2]"], "data.jsonl:1"),
    "no line": ([], "empty"),
    "missing image": ([row(images=["nothing.png"])], "nothing.png"),
    "corrupt image": ([row(images=["corrupt.png"])], "corrupt.png"),
    "images no list": ([row(images="corrupt.png")], "images"),
    "placeholder in the question": ([row(question="<|image_pad|> ?")], "query a"),
    "no facts for the toy verifier": ([row(facts=None)], "facts"),
    "half the facts": ([row(facts={"answer": "5"})], "facts"),
    "facts no object": ([row(facts="red 3")], "facts"),
    "family no text": ([row(family=3)], "family"),
}


@pytest.mark.parametrize("lines, named", DATA.values(), ids=DATA)
def test_data(tmp_path, refused, lines, named):
    file, out = tmp_path / "data.jsonl", tmp_path / "run"
    file.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines))
    (tmp_path / "corrupt.png").write_bytes(b"\x89PNG\r\n\x1a\n and then nothing of use")
    assert named in refused(flags(file, out, "--eval_data", file))
    assert not out.exists()


def test_bad_rows_among_good_ones_do_not_end_a_run(tmp_path, capsys):
    file = tmp_path / "data.jsonl"
    file.write_text("\n".join(map(json.dumps, [row(), row(), row(id="b", family=3), row(id="c")])))
    contextrl.train(contextrl.read_config(flags(file, tmp_path / "run")))
    lines = capsys.readouterr().err.splitlines()
    assert any("data.jsonl:2: id 'a' appears twice" in line for line in lines)
    assert any(line.startswith("2 bad rows skipped, 2 read") for line in lines)


def test_half_an_image_is_found_before_the_run_begins(tmp_path, refused):
    file, out = tmp_path / "data.jsonl", tmp_path / "run"
    file.write_text(json.dumps(row(images=["half.jpg"])))
    Image.effect_noise((64, 64), 50).save(tmp_path / "half.jpg")
    (tmp_path / "half.jpg").write_bytes((tmp_path / "half.jpg").read_bytes()[:900])
    assert refused(flags(file, out)).endswith(f"query a: cannot read image {tmp_path}/half.jpg (OSError)")
    assert not out.exists()


def test_data_file_that_is_no_text(tmp_path, refused):
    (tmp_path / "data.jsonl").write_bytes(b"\xff\xfe\x00 \x80")
    assert "data.jsonl" in refused(flags(tmp_path / "data.jsonl", tmp_path / "run"))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("where", ["--data", "--eval_data"])
def test_missing_data_file(small_world, tmp_path, refused, where):
    assert "nothing.jsonl" in refused(flags(small_world / "train.jsonl", tmp_path / "run", where,
                                            tmp_path / "nothing.jsonl"))
    assert not (tmp_path / "run").exists()


# ------------------------------------------------------------------------------------------------------ model

def edit_config(model: Path, **changes) -> None:
    config = json.loads((model / "config.json").read_text())
    for name, value in changes.items():
        part, _, inner = name.partition("__")
        if inner:
            config[part][inner] = value
        else:
            config[part] = value
    (model / "config.json").write_text(json.dumps(config))


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:file.stat().st_size // 2])


def drop_a_weight(model: Path) -> None:
    weights = load_file(model / "model.safetensors")
    weights.pop(next(name for name in weights if name.endswith("mlp.down_proj.weight")))
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})


MODELS = {                                    # how a folder that works is spoilt
    "missing": shutil.rmtree,
    "empty": lambda model: [file.unlink() for file in model.iterdir()],
    "no config": lambda model: (model / "config.json").unlink(),
    "broken config": lambda model: cut(model / "config.json"),
    "truncated weights": lambda model: cut(model / "model.safetensors"),
    "no weights": lambda model: (model / "model.safetensors").unlink(),
    "a weight is missing": drop_a_weight,
    "weights of another size": lambda model: edit_config(model, text_config__intermediate_size=64),
    "no tokenizer": lambda model: [file.unlink() for file in model.glob("tokenizer*")],
    "broken tokenizer": lambda model: cut(model / "tokenizer.json"),
    "no chat template": lambda model: (model / "chat_template.jinja").unlink(),
    "no image processor": lambda model: (model / "preprocessor_config.json").unlink(),
    "text only": lambda model: (model / "config.json").write_text(json.dumps({"model_type": "qwen3"})),
    "unknown type": lambda model: edit_config(model, model_type="qwen99"),
}


@pytest.mark.parametrize("spoil", MODELS.values(), ids=MODELS)
def test_model(small_world, tmp_path, refused, spoil):
    model, out = tmp_path / "model", tmp_path / "run"
    shutil.copytree(MODEL, model)
    spoil(model)
    assert str(model) in refused(flags(small_world / "train.jsonl", out, model=model))
    assert not out.exists()


# ------------------------------------------------------------------------------------------------ run folders

def test_output_dir_under_a_file(small_world, tmp_path, refused):
    (tmp_path / "file").write_text("not a folder")
    for out in (tmp_path / "file", tmp_path / "file" / "run"):
        assert str(out) in refused(flags(small_world / "train.jsonl", out))


def test_output_dir_that_holds_a_run(small_world, finished_run, refused):
    before = files(finished_run / "run")
    assert "already holds a run" in refused(flags(small_world / "train.jsonl", finished_run / "run"))
    assert files(finished_run / "run") == before


def deeper(model: Path) -> None:
    """Another architecture in the same place."""
    from transformers import AutoConfig, Qwen3VLForConditionalGeneration

    config = AutoConfig.from_pretrained(MODEL)
    config.text_config.num_hidden_layers = 2
    Qwen3VLForConditionalGeneration(config).save_pretrained(model)


def wider(model: Path) -> None:
    """The same names of weights, other shapes."""
    from transformers import AutoConfig, Qwen3VLForConditionalGeneration

    config = AutoConfig.from_pretrained(MODEL)
    config.text_config.intermediate_size = 64
    Qwen3VLForConditionalGeneration(config).save_pretrained(model)


def checkpoint(place: Path) -> Path:
    return max((place / "run" / "checkpoints").glob("step-*"))


RESUMES = {                           # how (folder with run/ and model/) is spoilt -> what the line must name
    "another model": (lambda place: deeper(place / "model"), "the content of model has changed"),
    "another size": (lambda place: wider(place / "model"), "the content of model has changed"),
    "half a trainer file": (
        lambda place: cut(checkpoint(place) / "trainer/00000-of-00001.safetensors"), "step-000001"),
    "no trainer file": (lambda place: (checkpoint(place) / "trainer/00000-of-00001.safetensors").unlink(),
                        "step-000001"),
    "truncated state": (lambda place: cut(checkpoint(place) / "state.json"), "state.json"),
    "truncated config": (lambda place: cut(place / "run" / "config.json"), "config.json"),
}


@pytest.fixture
def stopped_run(finished_run, small_world, tmp_path) -> Path:
    """A run whose config names the model beside it, stopped after step 1 of 2,
    with a later row to be cut off."""
    shutil.copytree(finished_run / "model", tmp_path / "model")
    shutil.copytree(finished_run / "run", tmp_path / "run")
    file = tmp_path / "run" / "config.json"
    config = json.loads(file.read_text()) | {"model": str(tmp_path / "model"),
                                             "output_dir": str(tmp_path / "run")}
    file.write_text(json.dumps(config | {"steps": 2}, indent=2))
    return tmp_path


def resume(place: Path, data: Path, *more) -> list[str]:
    return flags(data, place / "run", "--resume", "--steps", 2, *more, model=place / "model")


def test_the_resume_that_is_spoilt_below_works(small_world, stopped_run):
    contextrl.train(contextrl.read_config(resume(stopped_run, small_world / "train.jsonl")))
    assert checkpoint(stopped_run).name == "step-000002"


@pytest.mark.parametrize("spoil, named", RESUMES.values(), ids=RESUMES)
def test_resume(small_world, stopped_run, refused, spoil, named):
    spoil(stopped_run)
    metrics = (stopped_run / "run" / "metrics.jsonl").read_bytes()
    assert named in refused(resume(stopped_run, small_world / "train.jsonl"))
    assert (stopped_run / "run" / "metrics.jsonl").read_bytes() == metrics
    assert checkpoint(stopped_run).name == "step-000001"


CHANGED = ["--group_size 4", "--seed 1", "--method grpo", "--learning_rate 1e-5", "--steps 3", "--no_stage2"]


@pytest.mark.parametrize("changed", CHANGED)
def test_resume_with_a_changed_setting(small_world, stopped_run, refused, changed):
    before = files(stopped_run / "run")
    line = refused(resume(stopped_run, small_world / "train.jsonl", *changed.split()))
    assert {"--no_stage2": "stage2"}.get(changed, changed.split()[0].strip("-")) in line
    assert files(stopped_run / "run") == before


# ------------------------------------------------------------------------------------------------- recordings

RECORDINGS = {                       # how the rows of a good recording are changed -> what the line must name
    "broken line": (lambda rows: [*rows, '{"step": 1, "que'], "recording.jsonl:5"),
    "not a row": (lambda rows: [*rows, "3"], "recording.jsonl:5"),
    "no row": (lambda rows: [], "empty"),
    "query not in the data": (lambda rows: [*rows, rows[0] | {"query": "q99"}], "q99"),
    "row without samples": (lambda rows: [*rows, {"step": 1, "query": rows[0]["query"]}], "recording"),
    "unknown status": (
        lambda rows: [rows[0] | {"stage1": [rows[0]["stage1"][0] | {"status": "?"}]}], "recording"),
    "log-probs missing": (lambda rows: [rows[0] | {"stage1": [rows[0]["stage1"][0] | {"logprobs": []}] * 2}],
                          "recording"),
    "too few steps": (lambda rows: [row | {"step": 9} for row in rows], "step"),
}


@pytest.mark.parametrize("spoil, named", RECORDINGS.values(), ids=RECORDINGS)
def test_recording(small_world, finished_run, tmp_path, refused, spoil, named):
    file, out = tmp_path / "recording.jsonl", tmp_path / "replay"
    rows = [json.loads(line) for line in (finished_run / "run" / "rollouts.jsonl").read_text().splitlines()]
    file.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in spoil(rows)))
    assert named in refused(flags(small_world / "train.jsonl", out, "--rollouts_from", file))
    assert not out.exists()


@pytest.mark.parametrize("message, told", [
    ("1 validation error for ModelConfig\n  Value error, 8192 is more than 4096\n\n    See https://\n more",
     "1 validation error for ModelConfig Value error, 8192 is more than 4096 See https://"),
    ("one line", "one line"), ("\n", "ValueError")])
def test_of_a_librarys_error_more_than_its_heading_is_told(message, told):
    with pytest.raises(DataError) as error, loading("model m"):
        raise ValueError(message)
    assert str(error.value) == f"cannot load model m: {told}"


@pytest.mark.parametrize("error, code, line", [
    (DataError("no such file"), 2, "error: no such file\n"), (OSError("disk full"), 2, "error: disk full\n"),
    (Stopped("the server is away"), 3, "stopped: the server is away; go on\n"),
    (CannotWrite("cannot write x", 2), 2, "error: cannot write x\n"),
    (FloatingPointError("NaN"), 3, "stopped: NaN; go on\n"), (KeyboardInterrupt(), 130, "")])
def test_how_a_program_ends(capsys, error, code, line):
    with pytest.raises(SystemExit) as end, one_line_errors("; go on"):
        raise error
    assert end.value.code == code and capsys.readouterr().err == line


# --------------------------------------------------------------------------- the same in a process of its own

def alone(*command, cwd: Path = ROOT) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, *map(str, command)], cwd=cwd, env=ALONE,
                          capture_output=True, text=True,
                          timeout=120)


def test_process_with_a_bad_setting(tmp_path):
    done = alone(ROOT / "contextrl.py", "--mixed_scale", "1.5", cwd=tmp_path)
    assert "mixed_scale" in one_line(done.returncode, done.stderr) and not done.stdout
    assert not list(tmp_path.iterdir())                       # no runs/ either


@pytest.mark.parametrize("how", ["truncated weights", "unknown type"])
def test_process_with_a_bad_model(small_world, tmp_path, how):
    """Libraries warn on their own; here nothing of that may be left."""
    model = tmp_path / "model"
    shutil.copytree(MODEL, model)
    MODELS[how](model)
    done = alone("contextrl.py", *flags(small_world / "train.jsonl", tmp_path / "run", model=model))
    assert str(model) in one_line(done.returncode, done.stderr)
    assert not (tmp_path / "run").exists()


def test_queries_that_cannot_be_split_over_ranks(small_world, tmp_path):
    done = alone("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "contextrl.py",
                 *flags(small_world / "train.jsonl", tmp_path / "run", "--queries_per_step", 3))
    assert done.returncode != 0
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and "queries_per_step" in errors[0] and "2 ranks" in errors[0]
    assert "exitcode  : 2" in done.stderr                     # torchrun's own summary
    assert not (tmp_path / "run").exists()
