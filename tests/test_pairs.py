"""Context pairs: loss, gradients, letters, the probe, and a run with them.

Guards against: a loss that thins GRPO's or depends on ranks or micro-batches, letters that give the answer
away by place, a probe that one order can fool.
"""

import gc
import io
import json
from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from conftest import MODEL, plain_logits
from helpers import (
    assert_same,
    assert_same_run,
    command,
    double,
    gradients,
    json_rows,
    make_rows,
    metrics,
    train,
)
from PIL import Image
from safetensors.torch import load_file, save_file

import contextrl
import toy
from context_pairs.loss import auxiliary_loss, context_loss, context_metrics, letter_row, margins, option_ids
from context_pairs.pairs import (
    ContextPair,
    deal_letters,
    drop_unaskable,
    query_of_pair,
    save_pairs,
    swap_options,
)
from context_pairs.probe import probe_pairs, selection_accuracy
from data import DataError, Processor, Query, load_queries, save_queries, user_turn
from judges.rule import RuleFirst, RuleVerifier
from policy import Auxiliary, Policy, UpdateSettings, micro_batches
from reward import Verifier


@pytest.fixture(scope="session")
def few() -> list[ContextPair]:
    return deal_letters(toy.train_pairs(10), seed=0)


def choices(some: list[ContextPair], processor: Processor) -> list:
    ids = option_ids(processor)
    return [letter_row(processor.prompt(query_of_pair(p)), ids[p.letter],
                       ids[swap_options(p).letter]) for p in some]


# ------------------------------------------------------------------------------------------------------- loss

def test_the_loss_by_hand_and_where_its_gradient_lives():
    right = torch.tensor([1.2, -1.2, 9.0, -9.0, 5.0], dtype=torch.float64, requires_grad=True)
    wrong = torch.zeros(5, dtype=torch.float64, requires_grad=True)
    loss, sums = context_loss(right, wrong)
    expected = [0.263282, 1.463282, 0.006715, 5.006715, 0.006715]
    assert loss.item() == pytest.approx(sum(expected), abs=1e-5)
    assert {k: v.item() for k, v in sums.items()} == {
        "context_pairs": 5, "context_loss": loss.item(), "context_right": 3,
        "context_margin": pytest.approx(5.0),
        "context_hopeless": 1}
    loss.backward()
    # d/dΔ = -σ(-Δ) inside the limits, 0 beyond BOTH: what is very wrong is not learnt, as published.
    assert right.grad.tolist() == pytest.approx([-0.231475, -0.768525, 0.0, 0.0, -0.006693], abs=1e-5)
    assert torch.equal(wrong.grad, -right.grad)
    right.grad = None
    context_loss(right, wrong, hard=False)[0].backward()
    assert right.grad.tolist() == pytest.approx([-0.231475, -0.768525, 0.0, -0.999877, -0.006693], abs=1e-5)


@pytest.mark.parametrize("hard", [True, False])
def test_the_loss_passes_gradcheck(hard):
    torch.manual_seed(0)
    both = [(4 * torch.randn(40, dtype=torch.float64)).requires_grad_() for _ in range(2)]
    assert torch.autograd.gradcheck(lambda a, b: context_loss(a, b, hard=hard)[0], both)


def test_margins_are_those_of_the_plain_model_also_where_images_stand_inside_the_text(checkpoint,
                                                                                      processor, few):
    policy = double(checkpoint, processor)
    policy.scorer.temperature = 0.7                         # of the samples; the margin is that of the logits
    words = [few[0], replace(few[1], prompt=""), replace(few[2], prompt="<image> and <image> ?")]
    texts = [ContextPair("t", "which ?", "red", "it is {B} red", "it is blue", "text", letter="B")]
    some = words + texts
    right, wrong = margins(policy, choices(some, processor))
    for i, pair in enumerate(some):
        query = query_of_pair(pair)
        prompt = processor.prompt(query)
        logits = plain_logits(policy.model, prompt.ids, prompt.images, processor)[-1]
        best = [logits[option_ids(processor)[letter]].max()
                for letter in (pair.letter, swap_options(pair).letter)]
        assert (right[i] - wrong[i]).item() == pytest.approx((best[0] - best[1]).item(), abs=1e-8)


def test_the_likelier_form_of_a_letter_counts(checkpoint, processor, few):
    policy = double(checkpoint, processor)
    prompt = processor.prompt(query_of_pair(few[0]))
    logits = plain_logits(policy.model, prompt.ids, prompt.images, processor)[-1]
    likely, unlikely, other = logits.topk(3)[1][0], logits.topk(3, largest=False)[1][0], logits.topk(3)[1][2]
    for forms in ([likely, unlikely], [unlikely, likely]):
        right, wrong = margins(policy, [letter_row(prompt, [int(i) for i in forms], [int(other)])])
        assert (right - wrong).item() == pytest.approx((logits[likely] - logits[other]).item(), abs=1e-8)


def test_the_gradient_is_that_of_the_definition_and_is_added_to_grpos(checkpoint, processor, picture, few):
    """GRPO's own gradient + λ/N Σ ∇ -log σ(clip(Δ)), from the plain model, whatever the number of either."""
    policy, rows = double(checkpoint, processor), make_rows(processor, picture)
    policy.gradient(rows, UpdateSettings())
    alone = gradients(policy)
    for some in (few[:1], few[:7]):
        added = auxiliary_loss(some, 0.3, processor)
        policy.gradient(rows, UpdateSettings(), auxiliary=added, extra=added.rows)
        got = gradients(policy)
        losses = []
        for pair in some:
            prompt = processor.prompt(query_of_pair(pair))
            logits = plain_logits(policy.model, prompt.ids, prompt.images, processor)[-1]
            right, wrong = (logits[option_ids(processor)[x]].max()
                            for x in (pair.letter, swap_options(pair).letter))
            losses.append(-torch.nn.functional.logsigmoid((right - wrong).clamp(-5, 5)))
        policy.optimizer.zero_grad()
        (0.3 * sum(losses) / len(losses)).backward()
        assert_same(got, {name: alone[name] + g for name, g in gradients(policy).items()}, 1e-9)


def test_the_gradient_does_not_depend_on_micro_batches(checkpoint, processor, picture, few):
    policy, rows, found = double(checkpoint, processor), make_rows(processor, picture), []
    for budget in (4096, 200, 1):
        sums = {}
        added = auxiliary_loss(few, 0.5, processor)
        policy.gradient(rows, UpdateSettings(micro_batch_tokens=budget), sums=sums, auxiliary=added,
                        extra=added.rows)
        found.append((gradients(policy), sums))
    for got, sums in found[1:]:
        assert_same(got, found[0][0], 1e-6)
        assert sums == pytest.approx(found[0][1], rel=1e-6)
    assert len(micro_batches(choices(few, processor), 1)) == len(few)           # a choice is never cut in two


def rank_of_two(rank: int, folder: str, checkpoint: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    policy = double(checkpoint, processor := Processor(checkpoint))
    some = deal_letters(toy.train_pairs(10), seed=0)
    settings_ = UpdateSettings(micro_batch_tokens=200, minibatches=2)
    odd = auxiliary_loss(some[:3], 0.5, processor)
    policy.gradient([], settings_, auxiliary=odd, extra=odd.rows)               # odd, and no group at all
    save_file({k: p.grad.full_tensor() for k, p in policy.model.named_parameters()},
              f"{folder}/gradient-{rank}")
    for step in (1, 2):
        metrics_ = policy.update([], step, settings_, auxiliary_loss(some[rank::2], 0.5, processor))
    save_file({k: torch.tensor(float("nan") if v is None else v, dtype=torch.float64)
               for k, v in metrics_.items()},
              f"{folder}/metrics-{rank}")
    save_file(dict(policy.weights()), f"{folder}/weights-{rank}")
    del policy
    gc.collect()
    dist.destroy_process_group()


def test_two_sharded_ranks_equal_one_process(checkpoint, processor, few, tmp_path):
    ranks = mp.spawn(rank_of_two, (str(tmp_path), checkpoint), nprocs=2, join=False)
    try:
        policy, odd = double(checkpoint, processor), auxiliary_loss(few[:3], 0.5, processor)
        policy.gradient([], UpdateSettings(), auxiliary=odd, extra=odd.rows)
        expected = gradients(policy)
        for step in (1, 2):
            one = policy.update([], step, UpdateSettings(minibatches=2), auxiliary_loss(few, 0.5, processor))
        for _ in range(2):
            if ranks.join(timeout=100):
                break
    finally:
        for process in ranks.processes:
            process.kill()
    assert one["context/loss"] > 0 and one["grad_norm"] > 0
    for rank in (0, 1):
        assert_same(load_file(tmp_path / f"gradient-{rank}"), expected, 1e-6)
        two = {k: v.item() for k, v in load_file(tmp_path / f"metrics-{rank}").items()}
        assert {k: v for k, v in two.items() if v == v} == pytest.approx(
            {k: v for k, v in one.items() if v is not None}, rel=1e-5, abs=1e-9)
        for name, tensor in load_file(tmp_path / f"weights-{rank}").items():
            torch.testing.assert_close(tensor, policy.model.state_dict()[name], rtol=0, atol=1e-5)


def test_a_few_pairs_can_be_learnt_by_the_loss_alone(processor, few):
    """The start policy cannot tell (both orders: about half), the trained one can."""
    policy = Policy(MODEL, Processor(MODEL), learning_rate=1e-3, total_steps=40, reference=False)
    some = few[:4]
    both = choices([p for pair in some for p in (pair, swap_options(pair))], policy.processor)
    soft = Auxiliary(both, 1.0, lambda policy, batch: context_loss(*margins(policy, batch), hard=False),
                     context_metrics)
    start = selection_accuracy(probe_pairs(policy, some))["accuracy"]
    for step in range(1, 61):
        policy.update([], step, UpdateSettings(), soft)
    end = selection_accuracy(probe_pairs(policy, some))
    assert start <= 0.75 and end["accuracy"] == 1.0 and end["right_in_both_orders"] == 1.0


# ------------------------------------------------------------------------------------------ letters and words

def test_half_of_the_pairs_get_each_letter_whatever_the_order_of_the_file():
    for n in (200, 201, 1000):
        dealt = deal_letters([ContextPair(f"p{i}", "q", "a", "x", "y", "text") for i in range(n)], seed=3)
        letters = Counter(p.letter for p in dealt)
        assert abs(letters["A"] - letters["B"]) <= 1                              # well within 1 %
        reversed_ = deal_letters(dealt[::-1], seed=3)
        assert {p.id: p.letter for p in reversed_} == {p.id: p.letter for p in dealt}
        other = {p.id: p.letter for p in deal_letters(dealt, seed=4)}
        assert 0.35 < np.mean([other[p.id] == p.letter for p in dealt]) < 0.65


def test_the_letter_names_the_place_of_the_supporting_context():
    pair = ContextPair("p", "how many ?", "3", b"right", b"wrong")
    assert query_of_pair(pair).images == [b"right", b"wrong"] and query_of_pair(pair).answer == "A"
    other = query_of_pair(swap_options(pair))
    assert other.images == [b"wrong", b"right"] and other.answer == "B"
    assert query_of_pair(pair).id != pair.id             # pairs and the queries they are made of run together
    text = query_of_pair(replace(pair, kind="text", supporting="{B} is {answer}", confounding="$ {A}",
                                 letter="B")).question
    # marks inside texts stay
    assert "Context A:\n$ {A}\n" in text and "Context B:\n{B} is {answer}\n" in text
    assert swap_options(swap_options(pair)) == pair
    # places of before
    marked = query_of_pair(replace(pair, question="<image> how many ?", answer="<image>3")).question
    assert marked.count("<image>") == 2 and "Question: how many ?\nAnswer: 3\n" in marked
    own = replace(pair, kind="text", supporting="x", confounding="{question}",
                  prompt="{question} {answer}: {A} or {B}")
    assert query_of_pair(own).question == "how many ? 3: x or {question}"
    stored = ContextPair("p", "", "", "", "", "prompt", "what is {answer} ?")
    assert query_of_pair(stored).question == "what is {answer} ?"


def test_images_stand_at_their_marks(processor, picture):
    images = [picture(64, 64, 1), picture(96, 64, 2)]
    parts = user_turn(Query("q", images, "A <image> B <image>", "-", "-"))["content"]
    assert [p.get("text", "image") for p in parts] == ["A ", "image", " B ", "image"]
    # not places, then: as before
    for question in ("no marks", "one <image> too few", "<image> <image> <image>"):
        parts = user_turn(Query("q", images, question, "-", "-"))["content"]
        assert [p.get("text", "image") for p in parts] == ["image", "image", question]
    ids = processor.prompt(Query("q", images, "A <image> B <image>", "-", "-")).ids
    letters = [processor.tokenizer(x, add_special_tokens=False)["input_ids"][0] for x in "AB"]
    where = [i for i, token in enumerate(ids) if token == processor.image_id]
    assert len(where) == 4 + 6 and ids.index(letters[0]) < where[0]
    assert any(where[3] < i < where[4] for i, token in enumerate(ids) if token == letters[1] or token == 481)


def test_both_letters_have_the_same_forms(processor, monkeypatch):
    def ids_of(text: str) -> list[int]:
        return processor.tokenizer(text, add_special_tokens=False)["input_ids"]

    assert len(ids_of(" A")) == 1 and len(ids_of(" B")) == 2         # so the form with a blank would favour A
    assert option_ids(processor) == {"A": ids_of("A"), "B": ids_of("B")}
    words = ["red", "blue"]                                                # these have both forms
    assert option_ids(processor, words) == {w: [*ids_of(w), *ids_of(f" {w}")] for w in words}
    with pytest.raises(DataError, match="no single tokens for the letters zx, qk"):
        option_ids(processor, ["zx", "qk"])


# ------------------------------------------------------------------------------------------------- whole runs

def test_a_step_asks_for_its_own_pairs_and_pays_the_supporting_one(few):
    """What contextrl.py hands to the trainer: the right letters, other pairs in every step,
    shares of the ranks."""
    processor = Processor(MODEL)
    config = contextrl.read_config(["--context_pairs", "toy", "--context_batch", "3", "--minibatches", "2",
                                    "--seed", "5"])

    def asked(step: int, rank: int = 0, world: int = 1) -> list:
        run = SimpleNamespace(step=step - 1, rank=rank, world=world)
        return contextrl.auxiliary(SimpleNamespace(config=config, run=run, pairs=few,
                                                   processor=processor)).rows

    letter_of_id = {i: letter for letter, ids in option_ids(processor).items() for i in ids}
    seen = []
    for row in asked(1) + asked(2):
        pair = next(p for p in few if query_of_pair(p).images == row.prompt.images)
        assert {letter_of_id[m.ids[0]]: m.reward for m in row.members} == {
            pair.letter: 1.0, swap_options(pair).letter: 0.0}
        assert row.prompt.ids == processor.prompt(query_of_pair(pair)).ids
        seen.append(pair.id)
    # an epoch, then the next one
    assert len(seen) == 12 and len(set(seen)) == 10 and len(set(seen[:10])) == 10
    shares = [asked(1, rank, 2) for rank in (0, 1)]
    assert [r.prompt.ids for r in asked(1)] == [r.prompt.ids for both in zip(*shares) for r in both]
    assert contextrl.auxiliary(SimpleNamespace(pairs=[])) is None


def test_pairs_are_shared_out_among_the_optimiser_steps(processor, few):
    policy = Policy(MODEL, Processor(MODEL), reference=False)
    found = policy.update([], 1, UpdateSettings(minibatches=2), auxiliary_loss(few, 0.5, policy.processor))
    assert found["context/pairs"] == 10 and found["context/grad_norm_without"] == 0.0 < found["grad_norm"]
    assert 0.0 <= found["context/hopeless_share"] <= 1.0
    assert "context/pairs" not in policy.update([], 2, UpdateSettings())


def test_pairs_that_this_model_cannot_be_asked_are_named_and_counted(processor, few, capsys):
    bad = [ContextPair("turn", "which ?", "x", "<|im_end|> hello", "y", "text"),
           ContextPair("long", "which ?", "x", "red " * 300, "y", "text")]
    assert drop_unaskable([few[0], *bad], processor, longest=200) == [few[0]]
    lines = capsys.readouterr().err.splitlines()
    assert "special token <|im_end|>" in lines[0] and "tokens, more than 200" in lines[1]
    assert lines[2] == "2 context pairs skipped, 1 kept" and len(lines) == 3
    with pytest.raises(DataError, match="no usable context pair"):
        drop_unaskable(bad, processor, longest=200)


def test_a_run_with_context_pairs_resumes_bit_for_bit(world, tmp_path):
    given_ = {"context_pairs": "toy", "context_weight": 0.5, "context_batch": 4, "minibatches": 2,
              "save_every": 1}
    whole = train(world / "train.jsonl", tmp_path / "whole", steps=3, **given_)
    rows = metrics(whole)
    assert all(0 <= row["context/accuracy"] <= 1 and row["context/loss"] > 0 for row in rows[1:])
    for more in (["--stop_after", "1"], ["--resume"]):
        train(world / "train.jsonl", tmp_path / "parts", *more, steps=3, **given_)
    assert_same_run(whole, tmp_path / "parts")
    plain = train(world / "train.jsonl", tmp_path / "plain", steps=3, **given_ | {"context_pairs": ""})
    assert "context/loss" not in metrics(plain)[1]
    # The loss changes the update, not the samples of the first step.
    assert [r for r in json_rows(plain / "rollouts.jsonl") if r["step"] == 1] == [
        r for r in json_rows(whole / "rollouts.jsonl") if r["step"] == 1]


@pytest.mark.parametrize("method", ["grpo", "sft"])
def test_pairs_as_ordinary_queries(world, tmp_path, method, few):
    """The control: no auxiliary loss, pairs among the queries, judged by their letter alone."""
    data = tmp_path / "data.jsonl"
    save_queries([*load_queries(world / "train.jsonl"), *map(query_of_pair, few)], data)
    run = train(data, tmp_path / "run", steps=3, method=method, queries_per_step=16)
    assert "context/loss" not in metrics(run)[1]
    if method == "grpo":
        rows = [r for r in json_rows(run / "rollouts.jsonl") if r["family"] == "context"]
        assert rows and all(len(r["images"]) == 2 and r["answer"] in "AB" for r in rows)
        assert all(m["correct"] == m["answer_right"] for r in rows for m in r["stage1"])


def test_every_verifier_judges_a_pair_by_its_letter(few):
    query = query_of_pair(replace(few[0], letter="B"))
    never = Verifier(lambda messages: pytest.fail("the judge was asked"))
    for verifier in (RuleFirst(toy.ToyVerifier()), RuleFirst(toy.ToyVerifier("none")), RuleVerifier(),
                     RuleFirst(never)):
        texts = ["B", "A", "the answer is B"]
        assert [v.correct for v in verifier.judge([query] * 3, texts)] == [True, False, True]
        assert [verifier.judge_one(query, text).correct for text in texts] == [True, False, True]


def test_only_pairs_are_judged_by_their_letter(few):
    """Among other queries, in any order; the judge is asked for the others,
    and its counts are those of the run."""
    pair, other = query_of_pair(replace(few[0], letter="B")), toy.make_query("ordinary", 0, "train", "half")
    judge = toy.ToyVerifier()
    asked = [(pair, "A"), (other, other.solution), (pair, "B"), (other, "B"), (other, "nonsense")]
    verdicts = RuleFirst(judge).judge([query for query, _ in asked], [text for _, text in asked])
    assert [v.correct for v in verdicts] == [False, True, True, False, False]
    assert [v.report for v in verdicts[1::2] + verdicts[4:]] == [
        judge.judge_one(query, text).report for query, text in asked[1::2] + asked[4:]]
    assert RuleFirst(judge).metrics() == judge.metrics()


def test_bad_settings_are_one_line(world, tmp_path, folder):
    cases = {("--context_pairs", "toy", "--context_batch", "0"): "--context_batch must be at least 1, not 0",
             ("--context_pairs", "toy", "--context_weight", "-1"):
                 "--context_weight must be at least 0, not -1.0",
             ("--context_pairs", "toy", "--rollout_only"):
                 "--rollout_only trains nothing: no --context_pairs",
             ("--context_pairs", str(folder / "none.jsonl")): f"data file not found: {folder}/none.jsonl"}
    for flags, line in cases.items():
        done = command("--output_dir", tmp_path / "run", *flags, name="contextrl.py")
        assert (done.returncode, done.stderr) == (2, f"error: {line}\n")
        assert not (tmp_path / "run").exists()


# ------------------------------------------------------------------------------------------------------ probe

def test_selection_by_hand():
    def record(name, letter, chosen):
        return {"id": name, "letter": letter, "chosen": chosen, "margin": 1.0 if letter == chosen else -1.0}

    always_a = [record(f"p{i}", letter, "A") for i in range(50) for letter in "AB"]
    found = selection_accuracy(always_a)
    assert (found["accuracy"], found["accuracy_A"], found["accuracy_B"], found["bias"]) == (
        0.5, 1.0, 0.0, 0.5)
    assert found["right_in_both_orders"] == 0.0 and found["interval"] == [0.5, 0.5] and found["margin"] == 0.0
    knows = [record(f"p{i}", letter, letter if i < 40 else "A") for i in range(50) for letter in "AB"]
    found = selection_accuracy(knows)
    assert found["accuracy"] == 0.9 and found["right_in_both_orders"] == 0.8
    assert found["bias"] == pytest.approx(0.1)
    assert 0.8 < found["interval"][0] < 0.9 < found["interval"][1] < 1.0
    uneven = selection_accuracy([record(f"p{i}", "A" if i < 6 else "B", "A" if i < 6 else "B")
                                 for i in range(8)])
    assert uneven["accuracy"] == 1.0 and uneven["bias"] == 0.0          # fixed orders, mostly A: not its bias
    fixed = selection_accuracy([record("p", "A", "A")])
    assert fixed["bias"] is None
    assert fixed["pairs_in_both_orders"] == 0
    assert fixed["right_in_both_orders"] is None and fixed["accuracy_B"] is None


def test_the_probe_asks_in_both_orders_and_in_one_where_it_is_fixed(checkpoint, processor, few):
    policy = double(checkpoint, processor)
    fixed = ContextPair("fixed", "", "", "", "", "prompt", "A: red. B: blue. Which ?", "B")
    records = probe_pairs(policy, [*few[:3], fixed], batch_size=2)
    assert [(r["id"], r["letter"]) for r in records] == [
        (p.id, p.letter) for pair in few[:3] for p in (pair, swap_options(pair))] + [("fixed", "B")]
    asked = [*(p for pair in few[:3] for p in (pair, swap_options(pair))), fixed]
    for record, pair in zip(records, asked, strict=True):
        right, wrong = margins(policy, choices([pair], processor))
        assert record["margin"] == pytest.approx((right - wrong).item())
        assert record["chosen"] == (pair.letter if record["margin"] > 0 else swap_options(pair).letter)


def test_the_probe_on_the_command_line(tmp_path, few):
    save_pairs(few, tmp_path / "pairs.jsonl")
    done = command("--pairs", tmp_path / "pairs.jsonl", "--out", tmp_path / "o" / "probe.json",
                   name="context_pairs.probe")
    assert done.returncode == 0 and done.stdout.startswith("selection accuracy 0."), done.stderr
    found = json.loads((tmp_path / "o" / "probe.json").read_text())
    assert found["pairs"] == 10 and len(found["records"]) == 20
    for wrong, line in ((["--model", tmp_path], "error: cannot load model"),
                        (["--pairs", "no.jsonl"], "error: data"),
                        (["--batch_size", 0], "error: --batch_size"), (["--out", tmp_path], "error: --out")):
        done = command(*wrong, name="context_pairs.probe")
        assert done.returncode == 2 and done.stderr.startswith(line) and done.stderr.count("\n") == 1


def test_built_in_pairs_differ_in_one_cell_which_decides():
    for pair in toy.heldout_pairs(30):
        noun = pair.question.split()[2]
        grids = []
        for image in (pair.supporting, pair.confounding):
            pixels = np.asarray(Image.open(io.BytesIO(image)).convert("RGB"), dtype=int)
            colour = np.array(toy.COLOURS[noun])
            near = (np.abs(pixels - colour).max(axis=2) < 30).reshape(3, 32, 3, 32).any(axis=(1, 3))
            grids.append(near)
        assert grids[0].sum() == 1 and grids[1].sum() == 0 and pair.answer == "1"
    train_, held = ({p.supporting for p in some} for some in (toy.train_pairs(50), toy.heldout_pairs(50)))
    assert not train_ & held
