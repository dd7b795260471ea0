"""contextrl.py end to end: whole runs of the shipped start policy on a few pictures,
from command line to files.

Guards against: a resumed, killed, replayed or two-rank run that is not the run it claims to be; retries that
are shown or trained under the wrong prompt; switches that switch nothing; a judge that fails and is taken for
a wrong answer.
"""

import json
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
from conftest import ALONE, MODEL, ROOT
from helpers import K, ScriptedJudge, arguments, assert_same_run, json_rows, last_checkpoint, metrics, train
from PIL import Image
from safetensors.torch import load_file

import contextrl
import toy
from data import Processor, batch_order, load_queries, retry_message, save_queries
from grpo import Member
from policy import Policy, Row
from reward import Verdict, Verifier
from sampler import HFEngine
from training import parts


@pytest.fixture
def judged_by(monkeypatch):
    """-> judged_by(make): from now on make() is the training verifier of every run."""
    def use(make):
        monkeypatch.setattr(parts, "open_verifiers", lambda *_: (make(), toy.ToyVerifier()))
    return use


@pytest.fixture
def scripted(judged_by, monkeypatch):
    """Training verdicts by script, and whatever a retry says, it is independent."""
    judged_by(ScriptedJudge)
    monkeypatch.setattr(contextrl, "is_independent", lambda text: True)


@pytest.fixture
def trained_groups(monkeypatch) -> list:
    """The groups of every update, as the trainer gets them."""
    seen, update = [], Policy.update

    def spy(self, groups, *rest):
        seen.append(groups)
        return update(self, groups, *rest)
    monkeypatch.setattr(Policy, "update", spy)
    return seen


@pytest.fixture
def requests(monkeypatch) -> list:
    """Every request to the engine, call by call: stage 1 and stage 2 of each step."""
    seen, generate = [], HFEngine.generate

    def spy(self, requests, temperature=None):
        seen.append(requests)
        return generate(self, requests, temperature)
    monkeypatch.setattr(HFEngine, "generate", spy)
    return seen


# ------------------------------------------------------------------------------------------ record and replay

def test_a_recording_trains_what_the_live_run_trained(world, tmp_path, scripted, judged_by):
    live = train(world / "train.jsonl", tmp_path / "live", steps=1)
    recorded = train(world / "train.jsonl", tmp_path / "recorded", "--rollout_only", steps=1)
    assert not list(recorded.rglob("*.safetensors"))                       # it trained nothing

    judged_by(lambda: None)                                                # a replay asks no judge
    replayed = train(world / "train.jsonl", tmp_path / "replayed", steps=1,
                     rollouts_from=recorded / "rollouts.jsonl")
    assert_same_run(live, replayed)
    row, = metrics(live)[1:]
    assert row["groups/online"] == row["groups/mixed"] == 2
    assert row["grad_norm"] > 0 and row["context_gap"] != 0


def test_a_replay_samples_nothing(world, tmp_path, requests):
    recorded = train(world / "hard.jsonl", tmp_path / "recorded", "--rollout_only", steps=1)
    assert requests
    requests.clear()
    train(world / "hard.jsonl", tmp_path / "replayed", steps=1, rollouts_from=recorded / "rollouts.jsonl")
    assert not requests


def test_a_recording_is_complete(world, tmp_path, scripted):
    run = train(world / "train.jsonl", tmp_path / "run", "--rollout_only", steps=2)
    queries = {query.id: query for query in load_queries(world / "train.jsonl")}
    rows = json_rows(run / "rollouts.jsonl")

    def pixels(file) -> bytes:
        return Image.open(file).tobytes()
    assert [row["step"] for row in rows] == [1] * 4 + [2] * 4
    for row in rows:
        query = queries[row["query"]]
        assert (row["question"], row["solution"], row["answer"], row["family"]) == (
            query.question, query.solution, query.answer, query.family)
        assert [pixels(run / image) for image in row["images"]] == [pixels(image) for image in query.images]
        assert len(row["stage1"]) == K and len(row["stage2"]) == (K if row["kind"] == "mixed" else 0)
        for member in [*row["stage1"], *row["stage2"]]:
            assert 0 < len(member["ids"]) == len(member["logprobs"]) <= 24
            assert all(logprob <= 0 for logprob in member["logprobs"])
            assert (member["advantage"] is None) == (not member.get("kept", True))      # trained on, or not
        trained = [m["advantage"] for m in [*row["stage1"], *row["stage2"]] if m["advantage"] is not None]
        assert row["kind"] in ("online", "mixed") and abs(sum(trained)) < 1e-5


def test_lambda_of_a_replay_scales_mixed_groups_only(world, tmp_path, scripted):
    half = train(world / "train.jsonl", tmp_path / "half", steps=1, mixed_scale=0.5)
    full = train(world / "train.jsonl", tmp_path / "full", steps=1, mixed_scale=1.0,
                 rollouts_from=half / "rollouts.jsonl")
    kinds = set()
    for a, b in zip(json_rows(half / "rollouts.jsonl"), json_rows(full / "rollouts.jsonl"), strict=True):
        assert (a["query"], a["kind"]) == (b["query"], b["kind"])
        kinds.add(a["kind"])
        for m, n in zip([*a["stage1"], *a["stage2"]], [*b["stage1"], *b["stage2"]], strict=True):
            assert m["ids"] == n["ids"]
            if m["advantage"] is not None:
                factor = 2 if a["kind"] == "mixed" else 1
                assert n["advantage"] == pytest.approx(factor * m["advantage"], rel=1e-12) and m["advantage"]
    assert kinds == {"online", "mixed"}
    assert metrics(half)[1]["grad_norm"] != metrics(full)[1]["grad_norm"]


# -------------------------------------------------------------------------------------------------- two ranks

def test_two_ranks_are_the_same_run(world, tmp_path):
    settings = {"steps": 2, "eval_data": world / "heldout.jsonl"}
    alone = train(world / "train.jsonl", tmp_path / "alone", **settings)
    command = arguments(world / "train.jsonl", "", **settings)      # no output_dir: the ranks agree on a name
    place = command.index("--output_dir")
    del command[place:place + 2]
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    done = subprocess.run([sys.executable, "-m", "torch.distributed.run", "--standalone",
                           "--nproc-per-node", "2",
                           str(ROOT / "contextrl.py"), *command],
                          cwd=elsewhere, env=ALONE, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("self-check of the first step") == 1 and done.stdout.count("report:") == 1
    both, = (elsewhere / "runs").iterdir()
    assert (both / "summary.json").exists() and (both / "report.html").exists()
    assert json.loads((both / "config.json").read_text())["queries_per_step"] == 4

    one, two = metrics(alone), metrics(both)
    assert [row["step"] for row in two] == [0, 1, 2]
    exact = ("eval", "eval_greedy", "reward", "tokens_sampled", "trained_tokens", "retries",
             "reports", "hard_share",
             "groups/online", "groups/mixed", "groups/all_positive", "groups/all_negative", "learning_rate")
    for a, b in zip(one, two, strict=True):
        assert a.keys() == b.keys()
        for name in exact:
            assert a.get(name) == b.get(name), name
        for name in set(a) - set(exact):
            close = None if a[name] is None else pytest.approx(a[name], rel=1e-4, abs=1e-4)
            assert b[name] == close, name
    assert any(row.get("trained_tokens") for row in two)

    def samples(run: Path) -> list:
        return [(row["step"], row["query"], [m["ids"] for m in [*row["stage1"], *row["stage2"]]])
                for row in json_rows(run / "rollouts.jsonl")]
    assert samples(alone) == samples(both)        # in the batch's order too: a recording trains the same step


# -------------------------------------------------------------------------------------- the method's switches

def test_a_query_that_comes_twice_in_a_step_is_sampled_anew(world, tmp_path, requests):
    """Where one epoch ends and the next begins; the same seeds would count the same samples twice."""
    save_queries(load_queries(world / "hard.jsonl")[:3], tmp_path / "three.jsonl")
    seed = next(s for s in range(100) if batch_order(3, 0, s)[2] == batch_order(3, 1, s)[0])
    run = train(tmp_path / "three.jsonl", tmp_path / "run", "--rollout_only", method="grpo",
                seed=seed, steps=2,
                queries_per_step=2)
    first, second = [row["query"] for row in json_rows(run / "rollouts.jsonl")][2:]
    assert first == second
    last = [call for call in requests if call][-1]
    seeds = [seed for request in last for seed in request.seeds]
    assert len(set(seeds)) == len(seeds) == 2 * K


def test_contextrl_without_stage_2_is_grpo(world, tmp_path):
    grpo = train(world / "train.jsonl", tmp_path / "grpo", method="grpo", steps=3)
    without = train(world / "train.jsonl", tmp_path / "without", "--no_stage2", method="contextrl", steps=3)
    assert_same_run(grpo, without)
    rows = metrics(without)[1:]
    assert any(row["trained_tokens"] for row in rows) and all(row["retries"] == 0 for row in rows)
    full = train(world / "train.jsonl", tmp_path / "full", method="contextrl", steps=3)
    assert sum(row["retries"] for row in metrics(full)[1:]) > 0          # the switch did switch something off


def test_retries_see_query_own_try_and_own_report(world, tmp_path, requests, trained_groups):
    """With the real policy and the exact verifier: what stage 2 is shown, and what becomes of its answers."""
    run = train(world / "hard.jsonl", tmp_path / "run", steps=1, queries_per_step=8)
    processor = Processor(MODEL)
    queries = {query.id: query for query in load_queries(world / "hard.jsonl")}
    rows, (first, second), (groups,) = json_rows(run / "rollouts.jsonl"), requests, trained_groups
    assert len(first) == 8 and len(second) == metrics(run)[1]["retries"] > 0

    retries = iter(second)
    for row, group in zip(rows, groups, strict=True):
        original = processor.prompt(queries[row["query"]])
        assert group.name == row["query"] and group.prompt.ids == original.ids
        assert bool(row["stage2"]) == (not any(m["correct"] for m in row["stage1"]))
        for failed in row["stage1"] if row["stage2"] else []:
            shown = next(retries).prompt
            seen = original.ids + failed["ids"]
            assert shown.ids[:len(seen)] == seen and shown.images == original.images
            message = retry_message(failed["report"], toy.RETRY_PROMPT)
            assert message in processor.decode(shown.ids[len(seen):])
            assert queries[row["query"]].solution not in processor.decode(shown.ids)
    assert any(m["report"] for row in rows for m in row["stage1"])


def test_rolled_back_members_keep_their_ids_under_the_original_prompt(world, tmp_path, scripted,
                                                                      trained_groups):
    run = train(world / "hard.jsonl", tmp_path / "run", steps=1)
    processor = Processor(MODEL)
    queries = {query.id: query for query in load_queries(world / "hard.jsonl")}
    rows, (groups,) = json_rows(run / "rollouts.jsonl"), trained_groups
    assert [row["kind"] for row in rows] == ["mixed", "online"] * 2
    for row, group in zip(rows, groups, strict=True):
        kept = [m for m in row["stage2"] if m["kept"]]
        assert len(kept) == (K // 2 if row["kind"] == "mixed" else 0)      # every second retry was right
        assert group.prompt.ids == processor.prompt(queries[row["query"]]).ids
        assert [m.ids for m in group.members] == [m["ids"] for m in [*row["stage1"], *kept]]
        assert [m.rolled_back for m in group.members] == [False] * K + [True] * len(kept)


def test_the_gradient_norm_is_not_that_of_an_empty_minibatch(world, tmp_path, scripted):
    run = train(world / "hard.jsonl", tmp_path / "run", steps=1, queries_per_step=1, minibatches=2)
    row = metrics(run)[1]
    assert row["groups/mixed"] == 1 and row["trained_tokens"] > 0   # one group: the second minibatch is empty
    assert row["grad_norm"] > 0


def test_without_reports_no_retry_is_shown_one(world, tmp_path, requests):
    run = train(world / "hard.jsonl", tmp_path / "run", "--no_report", steps=1)
    processor, reports = Processor(MODEL), [m["report"] for row in json_rows(run / "rollouts.jsonl")
                                            for m in row["stage1"] if m["report"]]
    assert reports and len(requests[1]) == metrics(run)[1]["retries"] > 0
    for request in requests[1]:
        shown = processor.decode(request.prompt.ids)
        assert retry_message("", toy.RETRY_PROMPT) in shown and not any(report in shown for report in reports)


def test_a_judge_that_sees_the_answer_only_pays_lucky_answers(world, tmp_path):
    settings = {"steps": 1, "queries_per_step": 12}
    strict, blind = (train(world / "shortcut.jsonl", tmp_path / context, "--rollout_only",
                           verifier_context=context,
                           **settings) for context in ("solution", "answer"))
    lucky = 0
    for a, b in zip(json_rows(strict / "rollouts.jsonl"), json_rows(blind / "rollouts.jsonl"), strict=True):
        for m, n in zip(a["stage1"], b["stage1"], strict=True):
            assert m["ids"] == n["ids"]                                    # same samples, other judge
            if m["answer_right"] and not m["correct"]:
                lucky += n["correct"]
    assert lucky > 0
    assert metrics(strict)[1]["reward"] < metrics(blind)[1]["reward"]
    assert metrics(strict)[1]["false_positive_share"] > metrics(blind)[1]["false_positive_share"]


def test_sft_brings_the_references_closer(world, tmp_path):
    run = train(world / "hard.jsonl", tmp_path / "run", method="sft", steps=1,
                queries_per_step=12, warmup_steps=1)
    processor, queries = Processor(MODEL), load_queries(world / "hard.jsonl")

    def loss(model: str) -> float:
        policy = Policy(str(model), processor, reference=False)
        rows = [Row(processor.prompt(q), [Member(processor.encode_response(q.solution), [], 1.0)])
                for q in queries]
        with torch.no_grad():
            return -policy.logprobs(policy.pack(rows))[0].mean().item()
    assert loss(last_checkpoint(run)) < loss(MODEL) - 1e-3


# -------------------------------------------------------------------------------------------- what is written

def test_the_run_folder(world, tmp_path):
    run = train(world / "train.jsonl", tmp_path / "run", steps=2, save_every=1,
                eval_data=world / "heldout.jsonl")
    config = json.loads((run / "config.json").read_text())
    assert set(config) == {f.name for f in fields(contextrl.Config)}
    assert (config["steps"], config["group_size"], config["kl_coef"], config["clip_high"]) == (
        2, K, 0.01, 0.2)

    summary = json.loads((run / "summary.json").read_text())
    rows = metrics(run)
    assert summary["start"] == rows[0]["eval"] and summary["end"] == rows[-1]["eval"]
    shares = {"process_accuracy", "answer_accuracy", "false_positive_share"}
    for part in (summary["start"], summary["end"]):
        assert shares <= set(part) and set(part["families"]) == {"ordinary", "shortcut", "balanced", "hard"}
        assert all(set(family) == shares for family in part["families"].values())
        assert all(0 <= s[name] <= 1 for s in [part, *part["families"].values()] for name in shares)
    assert summary["tokens_sampled"] == sum(row["tokens_sampled"] for row in rows[1:]) > 0

    page = (run / "report.html").read_text()
    assert "</" in page and "contextrl" in page
    assert [c.name for c in sorted((run / "checkpoints").iterdir())] == ["step-000001", "step-000002"]
    assert not [f for f in run.rglob(".*")]                                # nothing half-written is left


def test_families_of_ones_own_are_in_the_overall_accuracy(world, tmp_path):
    save_queries([replace(query, family="mine") for query in toy.heldout_queries(size=2)],
                 tmp_path / "heldout.jsonl")
    run = train(world / "train.jsonl", tmp_path / "run", "--rollout_only", steps=1,
                eval_data=tmp_path / "heldout.jsonl")
    start = metrics(run)[0]["eval"]
    assert start["answer_accuracy"] == start["families"]["mine"]["answer_accuracy"] > 0


def test_a_checkpoint_is_an_ordinary_model_to_start_from(world, tmp_path):
    first = train(world / "train.jsonl", tmp_path / "first", steps=1)
    model = last_checkpoint(first)
    second = train(world / "train.jsonl", tmp_path / "second", steps=1, model=model, method="sft")
    assert metrics(second)[1]["kl"] == 0 and last_checkpoint(second).name == "step-000001"
    assert Processor(str(model)).prompt(toy.make_query("hard", 0, "train", "half")).ids == (
        Processor(MODEL).prompt(toy.make_query("hard", 0, "train", "half")).ids)


def test_settings_from_a_file(world, tmp_path):
    out = tmp_path / "from file"
    settings = {"model": MODEL, "data": str(world / "train.jsonl"), "output_dir": str(out),
                "queries_per_step": 4,
                "group_size": K, "max_new_tokens": 24, "minibatches": 1, "eval_every": 0,
                "device": "cpu", "steps": 1,
                "report": False}
    (tmp_path / "settings.json").write_text(json.dumps(settings))
    contextrl.train(contextrl.read_config([str(tmp_path / "settings.json")]))
    assert_same_run(out, train(world / "train.jsonl", tmp_path / "from flags", "--no_report", steps=1))


@pytest.mark.parametrize("strange", ["\u2028", "\u0085"], ids=["line separator", "next line"])
def test_a_line_break_that_json_does_not_escape_loses_nothing(world, tmp_path, monkeypatch, strange):
    """JSONL is split at \\n only: str.splitlines() also splits at these,
    which json.dumps leaves as they are."""
    queries = [replace(query, question=f"{query.question} {strange} ?")
               for query in toy.train_queries(size=8)]
    save_queries(queries, tmp_path / "data.jsonl")
    whole = [(query.id, query.question) for query in queries]
    monkeypatch.setattr(parts, "load_train", lambda name: queries)   # not from the file: below
    run = train(world / "train.jsonl", tmp_path / "run", steps=2, stop_after=1)
    train(world / "train.jsonl", tmp_path / "run", "--resume", steps=2)
    assert [row["step"] for row in json_rows(run / "rollouts.jsonl")] == [1] * 4 + [2] * 4
    train(world / "train.jsonl", tmp_path / "replay", steps=2, rollouts_from=run / "rollouts.jsonl")
    assert [(query.id, query.question) for query in load_queries(tmp_path / "data.jsonl")] == whole


# ------------------------------------------------------------------------------------------- judges that fail

def test_a_dead_judge_teaches_nothing_and_stops_the_run(world, tmp_path, judged_by, monkeypatch, capsys):
    def dead(messages):
        raise TimeoutError("no answer")
    judged_by(lambda: Verifier(dead, max_failed_share=0.99))           # gives up after 64 verdicts: in step 4
    out = tmp_path / "run"
    monkeypatch.setattr(sys, "argv",
                        ["contextrl.py", *arguments(world / "train.jsonl", out, steps=6, save_every=1)])
    with pytest.raises(SystemExit) as stop:
        contextrl.main()
    told = [line for line in capsys.readouterr().err.replace("\r", "\n").splitlines() if "stopped: " in line]
    assert stop.value.code == 3 and len(told) == 1
    assert told[0].startswith("stopped: ") and "64 of the last 64 verdicts failed" in told[0]
    assert "TimeoutError" in told[0] and "--resume" in told[0]

    rows = metrics(out)
    assert [row["step"] for row in rows] == [0, 1, 2, 3]
    for row in rows[1:]:
        assert row["reward"] is None and row["false_positive_share"] is None
        assert row["failed_verdicts"] == 4 * K
        assert row["groups/too_small"] == 4 and row["hard_share"] == 0 and row["retries"] == 0
        assert row["trained_tokens"] == 0 and row["grad_norm"] == 0
    members = [m for row in json_rows(out / "rollouts.jsonl") for m in row["stage1"]]
    assert all((m["verdict"], m["error"], m["advantage"]) == ("failed", "TimeoutError", None)
               for m in members)
    assert last_checkpoint(out).name == "step-000003"
    start, now = (load_file(folder / "model.safetensors") for folder in (Path(MODEL), last_checkpoint(out)))
    assert all(torch.equal(start[name].float(), now[name]) for name in start)

    judged_by(toy.ToyVerifier)                                             # the judge is back
    train(world / "train.jsonl", out, "--resume", steps=6, save_every=1)
    assert [row["step"] for row in metrics(out)] == [0, 1, 2, 3, 4, 5, 6]
    assert metrics(out)[:4] == rows and all(row["reward"] is not None for row in metrics(out)[4:])


def test_one_failed_verdict_is_left_out_of_its_group(world, tmp_path, judged_by):
    class OneFails(ScriptedJudge):
        """Member 0 of each group has no verdict; of the others one is right, in every second query."""

        def verdict(self, member, query, second_stage):
            assert not second_stage, "a group with a failed verdict is not known to be hard"
            return (Verdict.failed("TimeoutError") if member == 0
                    else Verdict.judged(member == 1 and query % 2 == 1))

    judged_by(OneFails)
    run = train(world / "hard.jsonl", tmp_path / "run", steps=1)
    row, rollouts = metrics(run)[1], json_rows(run / "rollouts.jsonl")
    assert (row["failed_verdicts"], row["retries"], row["hard_share"]) == (4, 0, 0)
    assert row["reward"] == 2 / (4 * (K - 1))                         # a mean over verdicts, not over samples
    assert [r["kind"] for r in rollouts] == ["all_negative", "online"] * 2
    assert all(r["stage1"][0]["advantage"] is None for r in rollouts)
    right, *wrong = [m["advantage"] for m in rollouts[1]["stage1"][1:]]
    assert right == pytest.approx(2 ** 0.5, rel=1e-5)
    assert wrong == pytest.approx([-(0.5 ** 0.5)] * 2, rel=1e-5)
