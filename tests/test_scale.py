"""contextrl.py with the engines and judges of real runs: vLLM in every rank, verifiers over HTTP,
both together.

Guards against: a judge that fails and is taken for a wrong answer, a run that goes on without a judge or
stops without a checkpoint, an engine that samples with other weights than the trainer's, ranks that wait for
each other for ever.  vLLM is the CPU build; a run of two ranks is a torchrun of its own.
"""

import json
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))          # also a program: see the end

import pytest
import torch
from conftest import ALONE, MODEL, ROOT
from judge_server import JudgeServer

import contextrl
import judges.server
import toy
from data import Processor, load_queries
from grpo import Member
from policy import Policy, Row
from training.checkpoint import load_checkpoint

K = 4


def arguments(world: Path, out: Path, *flags: str, **settings) -> list[str]:
    settings = {"model": MODEL, "data": world / "train.jsonl", "output_dir": out, "queries_per_step": 4,
                "group_size": K, "max_new_tokens": 24, "eval_every": 0, "device": "cpu"} | settings
    return [*flags, *(str(part) for name, value in settings.items() for part in (f"--{name}", value))]


def run_here(monkeypatch, capsys, world: Path, out: Path, *flags: str, **settings) -> tuple[int, str]:
    """-> (exit code, last line of stderr that is not the progress bar)."""
    monkeypatch.setattr(sys, "argv", ["contextrl.py", *arguments(world, out, *flags, **settings)])
    code = 0
    try:
        contextrl.main()
    except SystemExit as stop:
        code = stop.code
    lines = [line for line in capsys.readouterr().err.replace("\r", "\n").split("\n") if line
             and "it/s" not in line
             and "/it" not in line]
    return code, lines[-1] if lines else ""


def torchrun(ranks: int, world: Path, out: Path, *flags: str, stops: bool = False, **settings) -> str:
    """-> what was printed to stderr."""
    done = subprocess.run([sys.executable, "-m", "torch.distributed.run", "--standalone",
                           "--nproc-per-node", str(ranks), "contextrl.py",
                           *arguments(world, out, *flags, **settings)],
                          cwd=ROOT, env=ALONE, capture_output=True, text=True, timeout=240)
    assert (done.returncode != 0) == stops, done.stderr[-3000:]
    return done.stderr


def rows(file: Path) -> list[dict]:
    return [json.loads(line) for line in file.read_text().split("\n") if line]


# --------------------------------------------------------------------------------------------- judges by HTTP

def test_a_verifier_that_misbehaves_in_a_third_of_the_calls(world, tmp_path, monkeypatch, capsys):
    """It ends, each failure is counted and logged, and no failed verdict has a share in any mean."""
    quick = judges.server.OpenAIChat

    def impatient(urls, model, timeout, **settings):
        return quick(urls, model, timeout, tries=2, backoff=0.01, max_wait=0.05, **settings)
    monkeypatch.setattr(judges.server, "OpenAIChat", impatient)
    out, exact = tmp_path / "run", toy.ToyVerifier()
    with JudgeServer(misbehave=0.3, hang=2.0, seed=5) as server:
        code, line = run_here(monkeypatch, capsys, world, out, verifier=server.url,
                              judge_timeout=0.5, steps=4,
                              judge_max_failed=0.6, queries_per_step=8)
        stats = dict(server.stats)
    assert code == 0, line
    assert sum(stats.get(mode, 0) > 0 for mode in stats) > 8              # all kinds of misbehaviour were met
    queries = {q.id: q for q in load_queries(world / "train.jsonl")}
    failed = 0
    for metrics in rows(out / "metrics.jsonl")[1:]:
        members = [(m, queries[r["query"]]) for r in rows(out / "rollouts.jsonl")
                   if r["step"] == metrics["step"]
                   for m in r["stage1"]]
        judged = [m for m, _ in members if m["verdict"] == "judged"]
        for m, query in members:
            if m["verdict"] == "failed":
                assert m["advantage"] is None and m["error"] and not m["correct"]
            else:
                assert m["correct"] == exact.judge_one(query, m["text"]).correct     # no lie has come through
        assert metrics["reward"] == pytest.approx(sum(m["correct"] for m in judged) / len(judged))
        assert metrics["failed_verdicts"] == metrics["judge/failed"]
        failed += metrics["failed_verdicts"]
        assert metrics["judge/http_retries"] > 0 and metrics["judge/prompt_tokens"] > 0
    assert failed > 0
    calls = rows(out / "judge-00000.jsonl")
    assert len(calls) == sum(m["judge/calls"] for m in rows(out / "metrics.jsonl")[1:])
    assert {call["status"] for call in calls} == {"ok", "failed"}


def test_a_dead_verifier_stops_a_run_and_a_live_one_goes_on(world, tmp_path, monkeypatch, capsys):
    out, settings = tmp_path / "run", {"judge_timeout": 5, "steps": 2, "eval_data": world / "heldout.jsonl"}
    with JudgeServer(misbehave=1.0, modes=("half content", "yes", "other keys")) as server:
        code, line = run_here(monkeypatch, capsys, world, out, verifier=server.url, **settings)
        asked = server.stats["calls"]
    assert code == 3 and line.startswith("stopped: 13 of the last 13 verdicts failed") and "--resume" in line
    assert asked <= (13 + 32 - 1) * 2                     # the stated bound: n + concurrency - 1, asked twice
    assert [p.name for p in (out / "checkpoints").iterdir()] == []         # nothing has been trained
    assert [row["step"] for row in rows(out / "metrics.jsonl")] == [0]

    code, line = run_here(monkeypatch, capsys, world, out, "--resume", **settings)     # with the toy verifier
    assert code == 2 and "verifier was" in line
    with JudgeServer() as server:                                                       # at another address
        code, line = run_here(monkeypatch, capsys, world, out, "--resume", verifier=server.url, **settings)
    assert code == 0, line
    assert [row["step"] for row in rows(out / "metrics.jsonl")] == [0, 1, 2]
    assert all(row["failed_verdicts"] == 0 for row in rows(out / "metrics.jsonl")[1:])


@pytest.mark.parametrize("verifier, told", [
    ("http://127.0.0.1:9", "http://127.0.0.1:9/v1 cannot be asked"), ("http:/nowhere", "nowhere"),
    ("http://host:99999", "bad URL"), ("no/such-model", "no/such-model"), ("ftp://host", "bad URL")])
def test_who_cannot_judge_is_told_at_once(world, tmp_path, monkeypatch, capsys, verifier, told):
    code, line = run_here(monkeypatch, capsys, world, tmp_path / "run", verifier=verifier,
                          engine="vllm", steps=1)
    assert code == 2 and line.startswith("error: ") and told in line
    assert not (tmp_path / "run").exists()


# ------------------------------------------------------------------------------------------------------- vLLM

def samples(run: Path) -> dict:
    return {(row["step"], row["query"]): [m["ids"] for m in row["stage1"] + row["stage2"]]
            for row in rows(run / "rollouts.jsonl")}


def test_two_ranks_with_vllm_one_engine_each_or_one_together(world, tmp_path):
    """The same samples, the same accuracies, and after every update engine and trainer agree to 1e-4."""
    settings = {"engine": "vllm", "max_context": 256, "steps": 3, "eval_data": world / "heldout.jsonl"}
    apart, together = tmp_path / "apart", tmp_path / "together"
    torchrun(2, world, apart, **settings)
    torchrun(2, world, together, "--barrier", tensor_parallel=2, **settings)
    for run in (apart, together):
        assert [row["step"] for row in rows(run / "metrics.jsonl")] == [0, 1, 2, 3]
        for row in rows(run / "metrics.jsonl")[1:]:
            assert row["engine_gap_max"] < 1e-4 and row["ratio_before_update"] == pytest.approx(1, abs=1e-5)
        assert len(rows(run / "rollouts.jsonl")) == 3 * 4        # each query once, however many ranks hold it
    assert any(row["trained_tokens"] for row in rows(apart / "metrics.jsonl")[1:])
    first = [{k: v for k, v in samples(run).items() if k[0] == 1} for run in (apart, together)]
    assert first[0] == first[1]
    one, other = (rows(run / "metrics.jsonl") for run in (apart, together))
    for a, b in zip(one[1:2], other[1:2], strict=True):
        assert a["reward"] == b["reward"] and a["grad_norm"] == pytest.approx(b["grad_norm"], rel=1e-3)

    # Two ranks wrote shards and one whole model.  It goes on in one process,
    # and it is the trainer's model in vLLM.
    torchrun(1, world, apart, "--resume", **settings)
    checkpoint = max((apart / "checkpoints").iterdir())
    assert checkpoint.name == "step-000003"
    assert len(list(checkpoint.glob("trainer/*-of-00002.safetensors"))) == 2
    done = subprocess.run([sys.executable, __file__, str(checkpoint)], cwd=ROOT, env=ALONE,
                          capture_output=True,
                          text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-3000:]
    assert float(done.stdout.split()[-1]) < 1e-4


@pytest.mark.parametrize("flags", [(), ("--barrier",)], ids=["continuous", "barrier"])
def test_a_dead_judge_stops_all_ranks_of_an_engine(world, tmp_path, flags):
    """Only the first rank of a tensor-parallel group asks;
    the other must not wait for an answer that never comes."""
    with JudgeServer(misbehave=1.0, modes=("yes",)) as server:
        told = torchrun(2, world, tmp_path, *flags, stops=True, engine="vllm", max_context=256,
                        tensor_parallel=2,
                        verifier=server.url, steps=2, queries_per_step=8)
        assert server.stats["calls"] <= (13 + 32 - 1) * 2
    assert told.count("stopped: 13 of the last 13 verdicts failed") == 1
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == []         # nothing has been trained


def exported(checkpoint: str) -> None:
    """Prints the largest |vLLM - trainer| log-prob of samples of an exported checkpoint (each reads its own
    files)."""
    from sampler import Request, VLLMEngine

    processor = Processor(checkpoint)
    trainer = Policy(MODEL, processor, reference=False)
    torch.manual_seed(0)
    for p in trainer.parameters.values():                        # all it has must come from the checkpoint
        p.data.normal_()
    load_checkpoint(trainer, Path(checkpoint))
    prompts = [processor.prompt(q) for q in toy.heldout_queries(size=2)]
    engine = VLLMEngine(checkpoint, processor, max_context=256)
    found = engine.generate([Request(p, [1, 2, 3]) for p in prompts])
    packed = trainer.pack([Row(p, [Member(s.ids, s.logprobs, None) for s in part])
                           for p, part in zip(prompts, found)])
    own = trainer.logprobs(packed)[0].tolist()
    shown = [v for part in found for s in part for v in s.logprobs]
    print(max(abs(a - b) for a, b in zip(own, shown, strict=True)))


if __name__ == "__main__":
    exported(sys.argv[1])
