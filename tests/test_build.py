"""python -m recipe.build: what is read, dropped and kept; the same result for the same input, also after
kills.

Guards against: rows that are lost without a word, copies and benchmark pictures that slip through, answers
that do not belong to their question or solution, and a resumed build that differs from an uninterrupted one.
"""

import json
import shutil
import signal
import subprocess
import sys
import threading
from argparse import Namespace
from collections import Counter
from functools import partialmethod
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from conftest import ALONE, MODEL, ROOT
from safetensors.torch import load_file, save_file

import contextrl
import toy
from data import Query, load_queries
from judges.rule import RuleVerifier
from judges.server import OpenAIChat
from recipe import build, sampling, stages
from recipe.finevision import finevision_turns
from reward import JudgeError, Verdict, VerifierUnreliable
from toy.sample import finevision_sample, write_subset

FLAGS = ["--policy", "toy", "--verifier", "toy", "--teacher", MODEL, "--max_new_tokens", "32", "--min_words",
         "4", "--instruction", "", "--per_class", "50", "--samples", "2"]


@pytest.fixture(scope="module")
def sample(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("finevision")
    finevision_sample(folder, size=8)
    return folder


@pytest.fixture(scope="module")
def built(sample, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("built")
    assert run([str(out), "--finevision", str(sample), *FLAGS]) == 0
    return out


def run(arguments: list[str]) -> int:
    """The program in this process -> its exit code."""
    try:
        build.main(arguments)
    except SystemExit as end:
        return end.code
    return 0


def rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def contents(out: Path) -> dict[str, bytes]:
    return {str(f.relative_to(out)): f.read_bytes() for f in sorted(out.rglob("*")) if f.is_file()}


# ------------------------------------------------------------------------------------------ the whole build

def test_every_turn_is_either_kept_or_dropped_with_a_reason(sample, built):
    turns = Counter(turn["subset"] for _, turn in finevision_turns(str(sample)))
    kept, dropped = rows(built / "train.jsonl"), rows(built / "dropped.jsonl")
    ids = [row["id"] for row in kept + dropped]
    assert len(ids) == len(set(ids)) == turns.total()
    assert all(row["why"] and row["stage"] in build.ORDER for row in dropped)
    counts = json.loads((built / "manifest.json").read_text())["counts"]
    for subset, n in turns.items():
        assert counts[subset]["read"] == n == counts[subset]["kept"] + sum(counts[subset]["dropped"].values())
    table = [line.strip("| ").split(" | ") for line in (built / "funnel.md").read_text().splitlines()[2:]]
    lines = {line[0]: list(map(int, line[1:])) for line in table[2:2 + len(turns) + 1]}
    assert lines["all"] == [sum(column) for column in zip(*(lines[s] for s in turns))]
    assert lines["all"][0] == turns.total() and lines["all"][-1] == len(kept)
    assert all(a >= b for line in lines.values() for a, b in zip(line, line[1:]))
    reasons = {(row["stage"], row["why"]) for row in dropped}
    assert {("shape", "several pictures"), ("shape", "no picture"), ("shape", "no texts"),
            ("answer", "no final answer"), ("rating", "relevance below 4"),
            ("picture", "picture cannot be read"),
            ("picture", "picture is not in the file"), ("unique", "same question and picture as another"),
            ("answers", "solved 2 of 2 times")} <= reasons


def test_what_is_kept_can_be_trained_on(built, tmp_path, monkeypatch):
    queries = load_queries(built / "train.jsonl")
    kinds = Counter((query.family, query.facts["solution_kind"]) for query in queries)
    assert kinds["toy_worked", "native"] and kinds["toy_short+vqa", "generated"]
    assert {name for _, name in kinds} == {"native", "generated"}
    verifier = toy.ToyVerifier("answer")
    for query in queries:
        facts = query.facts
        assert facts["licence"] and facts["samples"] == 2 and facts["solved"] in (0, 1)
        kind = "yes_no" if query.answer in ("yes", "no") else "number"
        assert facts["answer_type"] == ("letter" if facts["choices"] else kind)
        assert facts["choices"] is None or facts["choices"][query.answer] == facts["answer"]
        if facts["solution_kind"] == "generated":
            assert verifier.judge_one(query, query.solution).correct
        assert "<image" not in query.question and "Hint" not in query.question and "xxx" not in query.question
    out = tmp_path / "run"
    monkeypatch.setattr(sys, "argv", ["contextrl.py", "--model", MODEL, "--data", str(built / "train.jsonl"),
                                      "--output_dir", str(out), "--steps", "1", "--queries_per_step", "2",
                                      "--group_size", "2", "--max_new_tokens", "32", "--eval_every", "0",
                                      "--device", "cpu"])
    contextrl.main()
    assert (out / "summary.json").exists()


# Runs a build that kills itself in the middle of writing a stage: half of a chunk is on disk then.
KILLED = """
import json, os, signal, sys
from recipe import build

build.CHUNK, stage = 4, sys.argv[1]
append, calls = build.append_rows, 0

def dying(file, rows):
    global calls
    calls += file.name.startswith(stage)
    if calls == 2:
        text = b"".join(json.dumps(row).encode() + b"\\n" for row in rows)
        with open(file, "ab") as out:
            out.write(text[:len(text) // 2])
        os.kill(os.getpid(), signal.SIGKILL)
    append(file, rows)

build.append_rows = dying
build.main(sys.argv[2:])
"""


def test_killed_in_every_stage_and_resumed_is_the_same(sample, tmp_path, monkeypatch):
    """One build is killed in each stage, one after the other; in the end nothing tells it from an
    uninterrupted one."""
    monkeypatch.setattr(build, "CHUNK", 4)
    command = [str(tmp_path / "out"), "--finevision", f"{sample}:toy_choices(mathv360k),toy_worked", *FLAGS]
    whole = tmp_path / "whole"
    assert run([str(whole), *command[1:]]) == 0
    for stage in ("01", "02", "03", "04", "05", "06", "train"):
        done = subprocess.run([sys.executable, "-c", KILLED, stage, *command], cwd=ROOT, env=ALONE,
                              timeout=120, capture_output=True, text=True)
        assert done.returncode == -signal.SIGKILL, (stage, done.stderr)
    assert run(command) == 0
    assert contents(tmp_path / "out") == contents(whole)
    before = contents(whole)
    assert run([str(whole), *command[1:]]) == 0                    # finished: the same again, from the files
    assert contents(whole) == before


def test_another_setting_in_the_same_folder_is_refused(sample, built, capsys):
    before = contents(built)
    assert run([str(built), "--finevision", str(sample), *FLAGS, "--seed", "1"]) == 2
    line, = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and "other settings (seed)" in line and contents(built) == before


@pytest.mark.parametrize("changed, named", [
    (["--finevision", "nothing_here"], "nothing_here"), (["--finevision", "{sample}:toy_none"], "toy_none"),
    (["--benchmarks", "{sample}/toy_worked"], "a column image"), (["--benchmarks", "nowhere"], "nowhere"),
    (["--policy", "nowhere"], "nowhere"), (["--verifier", "http://localhost:1"], "http://localhost:1"),
    (["--verifier", "judge"], "--verifier judge"), (["--caps", "x=3"], "--caps x"),
    (["--finevision", "no/hub:a,b", "--caps", "a=1,c=3"], "--caps c: no such subset; there are a, b"),
    (["--finevision", "no/hub"], "on the hub? name subsets: no/hub:subset,subset"),
])
def test_bad_arguments_are_one_line(sample, tmp_path, capsys, changed, named):
    arguments = [text.format(sample=sample) for text in changed]
    command = [str(tmp_path / "out"), "--finevision", str(sample), *FLAGS, *arguments]
    assert run(command) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("error: ") and named in line, line
    assert (tmp_path / "out").exists() == named.startswith("a column")    # which is found out in stage 3


def test_limit_is_rows_of_each_subset_and_the_seed_chooses_files(tmp_path, picture):
    for part in range(6):
        write_subset(tmp_path / "x", [
            {"images": [{"bytes": picture(40, 40), "path": None}], "facts": ["{}"],
             "texts": [{"user": f"{part}-{i}", "assistant": "1"}]} for i in range(3)])
        (tmp_path / "x" / "train-00000-of-00001.parquet").rename(tmp_path / "x" / f"train-{part}.parquet")

    def users(*more) -> list[str]:
        return [turn["user"] for _, turn in finevision_turns(str(tmp_path / "x"), *more)]

    assert users() == [f"{part}-{i}" for part in range(6) for i in range(3)]
    first = users(0, 4)
    assert len(first) == 4 and first == users(0, 4) and first[:3] == [f"{first[0][0]}-{i}" for i in range(3)]
    assert len({tuple(users(seed, 4)) for seed in range(9)}) > 3


class Servers(BaseHTTPRequestHandler):
    """Policy and judge: a prompt with a verdict's schema is a judge's."""

    asked: list[dict] = []
    models = ["m"]
    away = False                                        # every answer is an error of the moment

    def log_message(self, *text):
        pass

    def reply(self, value: dict, status: int = 200) -> None:
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        self.reply({"object": "list", "data": [{"id": name} for name in self.models]})

    def do_POST(self):
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.asked.append(request)
        if self.away:
            return self.reply({"error": {"message": "out of memory"}}, 500)
        text = request["messages"][0]["content"][-1]["text"]
        if "response_format" in request:
            right = int("step" in text.split("Generated")[-1])
            content = json.dumps({"Analysis": "", "Self-Consistency": 1, "Correctness": right,
                                  "Mistake Report": ""})
        else:
            content = ["step one ; step two ; \\boxed{1}", "no idea at all"][request["seed"] % 2]
        self.reply({"id": "x", "object": "chat.completion", "created": 0, "model": "m", "choices": [
            {"index": 0, "message": {"role": "assistant", "content": content}, "finish_reason": "stop"}]})


@pytest.fixture
def servers(monkeypatch):
    """-> their URL; a call is tried again at once."""
    Servers.asked.clear()
    monkeypatch.setattr(sampling.SamplingClient, "__init__", partialmethod(OpenAIChat.__init__, backoff=0.01))
    monkeypatch.setattr(ThreadingHTTPServer, "request_queue_size", 128)           # else connections are reset
    with ThreadingHTTPServer(("127.0.0.1", 0), Servers) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def test_servers_sample_and_judge(sample, tmp_path, servers):
    """Policy and judge behind URLs: seeds and temperature go out, the judge is told the answer, verdicts
    count."""
    flags = ["--policy", servers, "--verifier", servers, "--samples", "2", "--min_words", "4"]
    assert run([str(tmp_path), "--finevision", f"{sample}:toy_worked", *flags]) == 0
    samples = [request for request in Servers.asked if "response_format" not in request]
    to_judge = [request for request in Servers.asked if "response_format" in request]
    assert len({request["seed"] for request in samples}) == len(samples) and samples[0]["temperature"] == 1.0
    assert all("Reference answer" in r["messages"][0]["content"][-1]["text"] for r in to_judge) and to_judge
    solved = Counter(row.get("solved", 2) for row in rows(tmp_path / "04-answers.jsonl"))
    assert set(solved) <= {0, 1, 2} and solved[1]


def test_a_policy_that_goes_away_stops_the_build_and_the_same_command_goes_on(sample, tmp_path, servers,
                                                                               monkeypatch, capsys):
    command = [str(tmp_path), "--finevision", f"{sample}:toy_worked", "--policy", servers, "--verifier",
               "rule", "--samples", "2", "--min_words", "4"]
    monkeypatch.setattr(Servers, "away", True)
    assert run(command) == 3
    line = capsys.readouterr().err.splitlines()[-1]
    assert line == "stopped: 04-answers: HTTP 500: out of memory; the same command goes on"
    assert not (tmp_path / "04-answers.jsonl").exists()
    monkeypatch.setattr(Servers, "away", False)
    assert run(command) == 0


def test_one_of_several_models_at_a_server(sample, tmp_path, servers, monkeypatch, capsys):
    """Policy, teacher and judge are three models of one server; the judge reads words of yours."""
    monkeypatch.setattr(Servers, "models", ["small", "large", "examiner"])
    words = tmp_path / "judge.txt"
    words.write_text("Is it right?\n{question}\n{answer}\nGenerated: {response}")
    command = [str(tmp_path / "out"), "--finevision", f"{sample}:toy_worked,toy_short+vqa", "--samples", "2",
               "--min_words", "4", *(f"--{role}={servers}" for role in ("policy", "teacher", "verifier"))]
    named = ["--policy_model", "small", "--teacher_model", "large", "--judge_model", "examiner"]
    assert run(command) == 2
    assert "serves small, large, examiner: name the one to ask" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert run([*command, *named, "--judge_prompt", str(words)]) == 0
    assert {request["model"] for request in Servers.asked} == {"small", "large", "examiner"}
    for request in Servers.asked:
        text = request["messages"][0]["content"][-1]["text"]
        assert text.startswith("Is it right?") == (request["model"] == "examiner")
    words.write_text(words.read_text() + "\nThink twice.")              # other words: other data
    assert run([*command, *named, "--judge_prompt", str(words)]) == 2
    assert "other settings (verifier)" in capsys.readouterr().err
    for flags, told in [(["--policy", "toy", *named], "--policy_model small needs a server"),
                        (["--verifier", "rule", *named], "--judge_model examiner needs a judge"),
                        (["--verifier", "rule", *named[:4], "--judge_prompt", str(words)], "needs a judge")]:
        assert run([*command, *flags]) == 2 and told in capsys.readouterr().err


@pytest.mark.parametrize("text, right", [("\\boxed{B}", True), ("So it is \\boxed{30}", True),
                                         ("\\boxed{20}", False), ("\\boxed{A}", False)])
def test_an_answer_is_judged_alike_while_data_are_built_and_in_training(tmp_path, text, right):
    row = dict.fromkeys(build.FACTS) | {
        "id": "a", "images": [], "question": "Find x.", "solution": "x is 30. \\boxed{B}", "answer": "B",
        "subset": "s", "choices": {"A": "20", "B": "30"}, "facts": {}}
    args = Namespace(samples=2, out=tmp_path, instruction="")
    for query in (sampling.query_of_row(row, args), Query(**build.train_row(row, args))):
        assert RuleVerifier().judge_one(query, text).correct == right


def test_other_weights_in_the_same_folder_are_refused(sample, tmp_path, capsys):
    model = shutil.copytree(MODEL, tmp_path / "model")
    command = [str(tmp_path / "out"), "--finevision", f"{sample}:toy_worked", *FLAGS, "--limit", "1",
               "--policy", str(model)]
    assert run(command) == run(command)
    capsys.readouterr()
    weights = load_file(model / "model.safetensors")
    save_file({name: -tensor for name, tensor in weights.items()}, model / "model.safetensors")
    assert run(command) == 2 and "other settings (policy)" in capsys.readouterr().err


def test_vllm_takes_no_more_context_than_the_model_has(sample, tmp_path):
    """2,048 new tokens and room for a prompt are more than the 4,096 of the built-in model.  A process of its
    own: an engine that goes would take the process group of another test's engine along."""
    done = subprocess.run([sys.executable, "-m", "recipe.build", tmp_path, "--finevision",
                           f"{sample}:toy_worked", "--limit", "2", "--policy", "toy", "--verifier", "toy",
                           "--min_words", "4", "--samples", "1", "--engine", "vllm"], cwd=ROOT, env=ALONE,
                          timeout=150, capture_output=True, text=True)
    assert (tmp_path / "04-answers.jsonl").exists(), done.stderr


def test_a_function_of_yours_judges(sample, tmp_path, capsys):
    """--verifier NAME.py: its verdicts count, also in the stage of references; an error in it stops the
    build."""
    file, out = tmp_path / "my_reward.py", tmp_path / "out"
    file.write_text("def judge(query, response):\n    return float(query.answer in response)\n")
    command = [str(out), "--finevision", f"{sample}:toy_worked", *FLAGS, "--verifier", str(file)]
    assert run(command) == 0
    solved = Counter(row.get("solved", 2) for row in rows(out / "04-answers.jsonl"))
    assert solved[2] and solved.total() > solved[2]
    file.write_text("def judge(query, response):\n    return 1 / 0\n")
    assert run(command) == 2 and "other settings (verifier)" in capsys.readouterr().err
    assert run([str(tmp_path / "other"), *command[1:]]) == 3
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("stopped: ") and "my_reward.py:2: ZeroDivisionError" in line
    assert line.endswith("the same command goes on")


# -------------------------------------------------------------------------------------------------- balance

@pytest.mark.parametrize("whole", [0, 63, 64, 65, 128])
def test_a_line_that_was_cut_off_is_written_again(tmp_path, whole):
    part = tmp_path / "01-read.part"
    part.write_bytes(b"{}\n" * whole + b'{"id": "half')
    assert build.finished_rows(part) == whole - whole % 64
    assert part.read_bytes() == b"{}\n" * (whole - whole % 64)


def test_prompts_that_are_refused_end_a_build_only_if_there_are_many():
    class Refuses(sampling.SamplingClient):
        def __init__(self):
            pass

        def sample(self, query, seed):
            return JudgeError("HTTP 400", "too long")

    few, many = ([Query(str(i), [], "?", "-", "-") for i in range(n)] for n in (1, 9))
    assert [str(t) for t in sampling.sample_texts(Refuses(), few, 1, ())[0]] == ["HTTP 400: too long"]
    with pytest.raises(JudgeError):
        sampling.sample_texts(Refuses(), many, 1, ())


def test_a_judge_that_is_away_for_a_chunk_drops_nothing(tmp_path):
    class Away:
        def judge(self, queries, texts):
            return [RuleVerifier().judge_one(*pair) if i else Verdict.failed("HTTP 500")
                    for i, pair in enumerate(zip(queries, texts))] if self.one else [
                        Verdict.failed("HTTP 500") for _ in texts]

    class Writes:
        def generate(self, requests):
            raise AssertionError

    judge, args = Away(), Namespace(samples=2, out=tmp_path, instruction="")
    batch = [{"id": str(i), "images": [], "question": "?", "choices": None, "solution": "5", "answer": "5",
              "subset": "s", "facts": {}} for i in range(3)]
    for judge.one, ends in ((True, False), (False, True)):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sampling, "sample_texts",
                          lambda sampler, queries, n, key: [["\\boxed{5}"] * n for _ in queries])
            if ends:
                with pytest.raises(VerifierUnreliable, match="6 of 6 verdicts failed"):
                    list(sampling.sample_and_judge(batch, Writes(), judge, (), args))
            else:
                whys = [why for *_, why in sampling.sample_and_judge(batch, Writes(), judge, (), args)]
                assert whys == ["a verdict failed", "", ""]


def test_two_builds_do_not_share_a_folder(sample, built, capsys):
    import fcntl

    with open(built / "lock", "w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        assert run([str(built), "--finevision", str(sample), *FLAGS]) == 2
    assert capsys.readouterr().err == f"error: another build is at work in {built}\n"


def test_caps_and_classes(tmp_path):
    """40 rows of each class 0, 1, 2 in subset x and 10 of class 0 and 3 in y; classes are cut to the
    smallest."""
    sizes = (("x", 0, 40), ("x", 1, 40), ("x", 2, 40), ("y", 0, 10), ("y", 3, 10))
    given = [{"id": f"{s}{c}{i}", "subset": s, "solved": c, "images": [], "question": "", "solution": "",
              "answer": ""} for s, c, n in sizes for i in range(n)]
    (tmp_path / "05-references.jsonl").write_text("".join(json.dumps(row) + "\n" for row in given))

    def classes(per_class, seed=0, **caps) -> tuple[Counter, set]:
        args = Namespace(out=tmp_path, seed=seed, caps=caps, per_class=per_class)
        out = [row for row in stages.balance(args)(given) if "why" not in row]
        return Counter((row["subset"], row["solved"]) for row in out), {row["id"] for row in out}

    counts, names = classes(1000, x=31)
    assert sorted(counts[("x", c)] for c in range(3)) == [10, 10, 11]
    assert counts["y", 0] == counts["y", 3] == 10
    assert classes(1000, x=31)[1] == names != classes(1000, 1, x=31)[1]
    counts, _ = classes(None)
    assert [sum(n for (_, c), n in counts.items() if c == k) for k in range(4)] == [10] * 4
    counts, _ = classes(25)
    assert [sum(n for (_, c), n in counts.items() if c == k) for k in range(4)] == [25, 25, 25, 10]


def test_a_verdict_that_failed_is_not_guessed(tmp_path):
    class Broken:
        def judge(self, queries, texts):
            return [Verdict.failed("HTTP 500") if q.id == "b" else Verdict.judged(True) for q in queries]

    batch = [{"id": name, "subset": "s", "images": [], "question": "?", "choices": None, "solution": "s",
              "answer": "1", "facts": {}} for name in "ab"]
    two = [Namespace(status="completed", text="1")] * 2
    writer = Namespace(generate=lambda requests: [two for _ in requests],
                       processor=Namespace(prompt=lambda query: query))
    args = Namespace(out=tmp_path, samples=2, instruction="")
    out = list(sampling.sample_and_judge(batch, writer, Broken(), (0,), args))
    assert [why for *_, why in out] == ["", "a verdict failed"]
