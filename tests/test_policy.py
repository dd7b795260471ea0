"""policy.py: a group in one row is every (prompt, response) alone;
a gradient is the same however it is computed.

Guards against: siblings that see each other, positions that go on behind a sibling, sums divided twice over
ranks or micro-batches, the stage-2 log-prob trap, a resume that is not exact, an update without anything to
learn from.
"""

import copy
import gc
import json
import math
import random
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from conftest import response_logprobs
from helpers import SHAPES, assert_same, double, gradients, make_rows, online
from safetensors import SafetensorError
from safetensors.torch import load, load_file, save_file

import grpo
import toy
from data import Processor
from grpo import GroupKind, Member
from policy import Policy, Row, UpdateSettings, micro_batches
from sampler import HFEngine, Request
from training.checkpoint import load_checkpoint, save_checkpoint

# ----------------------------------------------------------------------------------------- one row, one group

def test_packed_rows_equal_every_prompt_and_response_alone(checkpoint, processor, picture):
    policy, rows = double(checkpoint, processor), make_rows(processor, picture)
    packed, entropy = policy.logprobs(policy.pack(rows))
    g = torch.randn(len(packed), generator=torch.Generator().manual_seed(0))
    (packed * g).sum().backward()
    got = gradients(policy)

    policy.optimizer.zero_grad()
    alone = torch.cat([response_logprobs(policy.model, row.prompt, m.ids, processor)
                       for row in rows for m in row.members])
    assert len(alone) == sum(len(m.ids) for row in rows for m in row.members)
    torch.testing.assert_close(packed, alone, atol=1e-12, rtol=0)
    (alone * g).sum().backward()
    assert_same(got, gradients(policy), 1e-6)               # the model itself has fp32 parts
    assert got["model.visual.patch_embed.proj.weight"].abs().max() > 0          # reaches the pixels


@pytest.mark.parametrize("dtype, digits", [(torch.float32, 1e-6), (torch.float64, 1e-12)])
def test_fused_log_probs_train_like_those_of_the_definition(checkpoint, processor, picture,
                                                            monkeypatch, dtype, digits):
    found = []
    monkeypatch.setattr(grpo, "CHUNK_ROWS", [50] * 2)
    for function in (grpo.token_logprob, partial(grpo.token_logprob, keep_bytes=0),
                     lambda h, weight, targets, temperature, _, forbidden:
                     grpo.naive_token_logprob(h, weight, targets, temperature, forbidden)):
        monkeypatch.setattr(grpo, "token_logprob", function)
        policy, rows, sums = Policy(checkpoint, processor, dtype=dtype), make_rows(processor, picture), {}
        policy.gradient(rows, UpdateSettings(kl_coef=0.3), sums=sums)
        found.append((gradients(policy), sums))
    for got, sums in found[:2]:
        assert_same(got, found[2][0], 10 * digits)
        assert sums == pytest.approx(found[2][1], rel=digits, abs=digits)


def test_micro_batches_keep_every_member_once_and_the_budget(processor, picture):
    rows = make_rows(processor, picture)
    for budget in (1, 64, 100, 4096):
        batches = micro_batches(rows, budget)
        members = [id(m) for batch in batches for row in batch for m in row.members]
        assert sorted(members) == sorted(id(m) for row in rows for m in row.members)
        for batch in batches:
            tokens = len(batch) * max(row.length for row in batch)
            assert tokens <= budget or (len(batch) == 1 and len(batch[0].members) == 1)
    assert len(micro_batches(rows, 1)) == 8 + 2 + 16 + 1 and len(micro_batches(rows, 4096)) == 1


# ------------------------------------------------------------------------------------ one gradient, many ways

@pytest.mark.parametrize("kl", [False, True], ids=["no KL", "KL"])
@pytest.mark.parametrize("token_mean", [False, True], ids=["response mean", "token mean"])
def test_the_gradient_does_not_depend_on_micro_batches(checkpoint, processor, picture, token_mean, kl):
    policy, rows = double(checkpoint, processor, perturbed=kl), make_rows(processor, picture)
    found = []
    for budget in (4096, 200, 64):
        sums = {}
        settings = UpdateSettings(token_mean=token_mean, kl_coef=0.3 if kl else 0.0,
                                  micro_batch_tokens=budget)
        policy.gradient(rows, settings, sums=sums)
        found.append((gradients(policy), sums))
    for other, sums in found[1:]:
        assert_same(other, found[0][0], 1e-6)
        assert sums == pytest.approx(found[0][1], rel=1e-5)


def test_the_gradient_is_the_mean_by_its_definition(checkpoint, processor, picture):
    """-1/M Σ_m 1/|y_m| Σ_t c_t A_m ∇logp_t + β KL, or 1/Σ|y_m| in front for the token mean; nothing clipped:
    ρ = 1."""
    policy, rows = double(checkpoint, processor, perturbed=True), make_rows(processor, picture, SHAPES[:2])
    members = [(row.prompt, m) for row in rows for m in row.members]
    for token_mean, selective in ((False, True), (True, False)):
        policy.gradient(rows, UpdateSettings(token_mean=token_mean, selective_kl=selective, kl_coef=0.3))
        got, terms = gradients(policy), []
        for prompt, m in members:
            logp = response_logprobs(policy.model, prompt, m.ids, processor)
            ref = response_logprobs(policy.reference.model, prompt, m.ids, processor)
            gap = logp.detach() - torch.tensor(m.logprobs)
            correction = 1.0 if m.rolled_back else gap.exp().clamp(max=2.0)         # cap 2
            k3 = (ref - logp).exp() - (ref - logp) - 1
            pays = 0.0 if m.rolled_back and selective else 0.3
            length = 1 if token_mean else len(m.ids)
            terms.append((-correction * m.advantage * logp + pays * k3).sum() / length)
        policy.optimizer.zero_grad()
        (sum(terms) / (sum(len(m.ids) for _, m in members) if token_mean else len(members))).backward()
        assert_same(got, gradients(policy), 3e-5)


def sharded(rank: int, folder: str, checkpoint: str, images: list) -> None:
    """One of two sharded processes.  Rows differ in pictures and lengths, and one has no picture at all."""
    torch.set_num_threads(1)
    grpo.CHUNK_ROWS = [7, 7]                                  # one process takes all log-probs at once
    grpo.token_logprob = partial(grpo.token_logprob, keep_bytes=7 * 1000 * 8)    # and keeps all, these do not
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    processor = Processor(checkpoint)

    def save(name: str, tensors: dict) -> None:
        save_file({k: getattr(v, "full_tensor", lambda v=v: v)() for k, v in tensors.items()},
                  f"{folder}/{name}-{rank}.safetensors")

    policy = double(checkpoint, processor, perturbed=False)
    rows = make_rows(processor, lambda w, h, seed: images[seed])
    # really shards
    assert all(p.to_local().shape[0] <= (p.shape[0] + 1) // 2 for p in policy.model.parameters())
    with pytest.raises(ValueError, match="token_logprob needs whole tensors"):
        grpo.token_logprob(torch.zeros(1, 64).double(), policy.model.lm_head.weight,
                           torch.zeros(1, dtype=torch.long))
    for token_mean in (False, True):
        policy.gradient(rows, UpdateSettings(token_mean=token_mean, micro_batch_tokens=200))
        save(f"all-{token_mean}", gradients(policy))
    policy.gradient(rows[1:2], UpdateSettings())           # the row without picture, and nothing for one rank
    save("text", gradients(policy))

    policy = double(checkpoint, processor, checkpointing=True)
    sampled = (rows[:1], rows[1:]) if rank == 0 else (rows[1:], [])
    for step in (1, 2, 3):
        metrics = policy.update(online(*sampled[step % 2]), step, UpdateSettings(minibatches=2))
        save(f"metrics-{step}", {k: torch.tensor(v, dtype=torch.float64) for k, v in metrics.items()})
        if step == 2:
            save_checkpoint(policy, Path(folder))
    save("weights", dict(policy.weights()))

    frozen = Policy(checkpoint, processor, freeze_vision=True, compute_dtype=torch.bfloat16)
    before = {name: p.full_tensor() for name, p in frozen.model.named_parameters()}
    metrics = frozen.update(online(*rows), 2, UpdateSettings())
    # bf16 policy and bf16 reference are one model
    assert metrics["kl_before_update"] == 0 and metrics["kl"] == 0
    (Path(folder) / "bf16").mkdir(exist_ok=True)
    save_checkpoint(frozen, Path(folder) / "bf16")
    engine = frozen.whole_copy()
    assert engine.dtype == torch.bfloat16 and all(b.dtype == torch.float32 for b in engine.buffers())
    for name, p in frozen.model.named_parameters():
        assert p.dtype == torch.float32, name
        assert torch.equal(p.full_tensor(), before[name]) == ("visual" in name), name


def run_rank(*arguments) -> None:
    sharded(*arguments)
    gc.collect()                # gloo aborts the process if a group goes while a sharded model still holds it
    dist.destroy_process_group()


def test_two_sharded_ranks_equal_one_process(checkpoint, processor, picture, tmp_path):
    images = {10 * r + i: picture(w, h, 10 * r + i) for r, (sizes, _) in enumerate(SHAPES)
              for i, (w, h) in enumerate(sizes)}
    ranks = mp.spawn(run_rank, (str(tmp_path), checkpoint, images), nprocs=2, join=False)
    try:
        policy, rows = double(checkpoint, processor), make_rows(processor, picture)
        expected = {}
        for token_mean in (False, True):
            policy.gradient(rows, UpdateSettings(token_mean=token_mean))
            expected[f"all-{token_mean}"] = gradients(policy)
        policy.gradient(rows[1:2], UpdateSettings())
        expected["text"] = gradients(policy)
        policy, one = double(checkpoint, processor), {}
        # Queries of the batch go round the ranks: rank 0 samples the first and rank 1 the second, and so on.
        orders = {1: [rows[1], rows[2], rows[3]], 0: [rows[0], rows[1], rows[2], rows[3]]}
        for step in (1, 2, 3):
            one[step] = policy.update(online(*orders[step % 2]), step, UpdateSettings(minibatches=2))
        for _ in range(2):                                # join() comes back when the first of them has ended
            if ranks.join(timeout=100):
                break
    finally:
        for process in ranks.processes:
            process.kill()

    for rank in (0, 1):
        for name, gradient in expected.items():
            assert_same(load_file(tmp_path / f"{name}-{rank}.safetensors"), gradient, 1e-6)
        for step in (1, 2, 3):                       # all ranks report the same numbers, those of one process
            two = {k: v.item() for k, v in load_file(tmp_path / f"metrics-{step}-{rank}.safetensors").items()}
            assert two == pytest.approx(one[step], rel=1e-5, abs=1e-9)
        weights = load_file(tmp_path / f"weights-{rank}.safetensors")
        assert set(weights) == set(policy.model.state_dict()) and "lm_head.weight" in weights
        for name, tensor in policy.model.state_dict().items():
            torch.testing.assert_close(weights[name], tensor, rtol=0, atol=1e-5 * tensor.abs().max().item())

    file = load_file(tmp_path / "bf16/model.safetensors")
    config = json.loads((tmp_path / "bf16/config.json").read_text())
    assert {t.dtype for t in file.values()} == {torch.bfloat16}
    assert {c["dtype"] for c in (config, config["text_config"], config["vision_config"])} == {"bfloat16"}

    # Two ranks wrote the checkpoint, one goes on from it.
    resumed = double(checkpoint, processor)
    load_checkpoint(resumed, tmp_path)
    assert resumed.update(online(*orders[1]), 3, UpdateSettings(minibatches=2)) == pytest.approx(
        one[3], rel=1e-5)


@pytest.mark.parametrize("kind", ["packed", "checkpointed"])
def test_rows_end_to_end_equal_rows_apart(checkpoint, processor, picture, kind):
    """Pictures of different sizes in one line: positions start anew with each row and no row sees another."""
    policy, rows = double(checkpoint, processor, perturbed=True), make_rows(processor, picture)
    policy.gradient(rows, UpdateSettings(kl_coef=0.3))
    expected, logp = gradients(policy), policy.logprobs(policy.pack(rows))[0].detach()
    other = double(checkpoint, processor, perturbed=True, checkpointing=kind == "checkpointed")
    other.packed = kind == "packed"
    packed = other.pack(rows)
    assert packed[0]["input_ids"].shape[0] == (1 if kind == "packed" else len(rows))
    torch.testing.assert_close(other.logprobs(packed)[0], logp, atol=1e-5, rtol=0)
    other.gradient(rows, UpdateSettings(kl_coef=0.3))
    assert_same(gradients(other), expected, 1e-5)


def test_the_block_mask_is_the_dense_mask(checkpoint, processor, picture):
    """FlexAttention (forward pass only, on a CPU) with the mask that a GPU uses, against the dense one."""
    rows = make_rows(processor, picture)
    dense = Policy(checkpoint, processor, reference=False)
    flex = Policy(checkpoint, processor, reference=False, attention="flex")
    with torch.no_grad():
        arguments, where, targets = flex.pack(rows)
        assert arguments["input_ids"].shape[0] == 1 and arguments["input_ids"].shape[1] % 128 == 0
        torch.testing.assert_close(flex.scorer(arguments, where, targets)[0],
                                   dense.logprobs(dense.pack(rows))[0],
                                   atol=1e-5, rtol=0)


def test_rows_are_dealt_evenly(policy, processor, picture):
    """32 groups of very different lengths: four ranks get as many tokens each as they can,
    and equally many batches."""
    policy.world, policy.sharded = 4, True
    rng = random.Random(0)
    shapes = [([(32, 32)] if i % 3 else [], [rng.randint(1, 90) for _ in range(rng.randint(8, 16))])
              for i in range(32)]
    rows, hands = make_rows(processor, picture, shapes), []
    for policy.rank in range(4):
        hands.append(policy.shard_micro_batches(rows, 1024))
    members = sorted(id(m) for hand in hands for batch in hand for row in batch for m in row.members)
    assert members == sorted(id(m) for row in rows for m in row.members)
    assert len({len(hand) for hand in hands}) == 1
    assert all(any(row.prompt.images for row in batch) for hand in hands for batch in hand)
    tokens = [sum(row.length for batch in hand for row in batch) for hand in hands]
    assert max(tokens) < 1.1 * min(tokens)


# ------------------------------------------------------------------------------------------------- the method

@pytest.mark.parametrize("minibatches", [1, 2])
def test_the_stage2_logprob_trap(checkpoint, processor, picture, minibatches):
    """The report made each token e^6 times likelier.  Divided by THAT probability,
    the lesson's gradient is e^-6."""
    class Trap(Policy):
        def denominator(self, old_T, engine_T, on_policy_T):
            return torch.where(on_policy_T, old_T, engine_T)

    row, = make_rows(processor, picture, [([(96, 96)], [5])])
    found = {}
    for trap, kind in ((False, Policy), (True, Trap)):
        policy = double(checkpoint, processor, kind=kind)
        logp = response_logprobs(policy.model, row.prompt, row.members[0].ids, processor)
        row.members = [Member(row.members[0].ids, [v + 6 for v in logp.tolist()], 1.0, True, advantage=1.0)]
        settings = UpdateSettings(kl_coef=0.0, minibatches=minibatches)
        old = policy._old_logprobs([row], settings) if minibatches > 1 else None
        sums = {}
        policy.gradient([row], settings, old, sums)
        found[trap] = gradients(policy)
        # What the report added to each token; with the trap the numbers of two prompts are no longer told
        # apart.
        assert sums["context_gap"] / 5 == pytest.approx(0 if trap else 6, abs=1e-4)
        assert sums["ratio"] / 5 == pytest.approx(math.exp(-6) if trap else 1, rel=1e-4)
    assert_same(found[True], {name: math.exp(-6) * g for name, g in found[False].items()}, 1e-4)


def test_first_update_of_a_sampled_mixed_group(policy, processor, prompt_of):
    engine = HFEngine(policy.model, processor, max_new_tokens=6)
    prompt, start = prompt_of("how many dax plus red ?", (96, 96)), copy.deepcopy(policy.model.state_dict())
    shown = processor.follow_up(prompt, [5, processor.eos_id], "Solve it again .")
    failed, = engine.generate([Request(prompt, [1, 2, 3])])
    retry, = engine.generate([Request(shown, [4])])
    group = grpo.form_group(prompt, [Member(s.ids, s.logprobs, 0.0) for s in failed],
                            [Member(retry[0].ids, retry[0].logprobs, 1.0)], 0.5)
    metrics = policy.update([group], 1, UpdateSettings())
    tokens, retried = sum(len(m.ids) for m in group.members), len(retry[0].ids)
    here = response_logprobs(policy.reference.model, prompt, retry[0].ids, processor)
    gap = (torch.tensor(retry[0].logprobs) - here).mean().item()
    assert abs(gap) > 1e-3                                       # the two prompts do differ
    assert (metrics["ratio"], metrics["kl"]) == (1, 0)
    assert (metrics["clipped_share"], metrics["clamped_share"]) == (0, 0)
    assert metrics["context_gap"] == pytest.approx(gap, abs=1e-4)
    assert metrics["engine_gap_max"] < 1e-5
    assert metrics["trained_tokens"] == tokens
    assert metrics["rolled_back_token_share"] == pytest.approx(retried / tokens)
    # Three negatives of advantage -a, one positive of 3a, each a mean over its tokens:
    # the positive weighs 3 of 6.
    assert metrics["rolled_back_gradient_share"] == pytest.approx(0.5, rel=1e-5)
    assert metrics["grad_norm"] > 0 and metrics["learning_rate"] == pytest.approx(1e-4 / 3)
    after = response_logprobs(policy.model, prompt, retry[0].ids, processor)
    assert after.sum() > here.sum()                              # the lesson has become likelier
    assert all(torch.equal(v, start[k]) for k, v in policy.reference.model.state_dict().items())


def test_an_update_without_groups_leaves_everything_as_it_is(policy, processor, picture):
    row, = make_rows(processor, picture, SHAPES[:1])
    policy.update(online(row), 1, UpdateSettings())            # AdamW has momentum
    before = copy.deepcopy(policy.model.state_dict())
    useless = [grpo.Group(row.prompt, row.members, kind) for kind in
               (GroupKind.ALL_NEGATIVE, GroupKind.ALL_POSITIVE, GroupKind.TOO_SMALL)]
    for groups in ([], useless):
        for minibatches in (1, 3):
            metrics = policy.update(groups, 2, UpdateSettings(minibatches=minibatches))
            assert [metrics[k] for k in ("grad_norm", "loss", "ratio", "trained_tokens")] == [0, 0, None, 0]
    assert all(torch.equal(v, before[k]) for k, v in policy.model.state_dict().items())


def test_a_gradient_that_is_no_number_stops_before_the_update(policy, processor, picture):
    row, = make_rows(processor, picture, SHAPES[:1])
    row.members[0].advantage = math.nan
    before = copy.deepcopy(policy.model.state_dict())
    with pytest.raises(FloatingPointError, match="step 7"):
        policy.update(online(row), 7, UpdateSettings())
    assert all(torch.equal(v, before[k]) for k, v in policy.model.state_dict().items())


def test_learning_rate(policy):
    policy.learning_rate, policy.min_lr_ratio, policy.total_steps, policy.warmup_steps = 1e-3, 0.1, 10, 2
    # Up: 1/2, 2/2.  Down: half-way (4 of 8 steps) cosine 0.5, so 0.1 + 0.9 * 0.5 = 0.55; a quarter:
    # cosine (1 + √½) / 2
    expected = {1: 5e-4, 2: 1e-3, 4: 1e-3 * (0.1 + 0.9 * (1 + math.sqrt(0.5)) / 2), 6: 5.5e-4,
                10: 1e-4, 12: 1e-4}
    assert {step: policy.learning_rate_at(step) for step in expected} == pytest.approx(expected)
    policy.warmup_steps = 0
    assert policy.learning_rate_at(5) == pytest.approx(5.5e-4)


# ------------------------------------------------------------------------------------------------ checkpoints

def test_a_loaded_checkpoint_goes_on_bit_for_bit(policy, checkpoint, processor, picture, tmp_path):
    rows = make_rows(processor, picture)
    for step in (1, 2):
        policy.update(online(rows[step]), step, UpdateSettings())
    save_checkpoint(policy, tmp_path)
    resumed = Policy(checkpoint, processor)
    load_checkpoint(resumed, tmp_path)
    for step in (3, 4):                                  # the KL too: the reference is still the start policy
        one, other = (p.update(online(rows[step % 4]), step, UpdateSettings()) for p in (policy, resumed))
        assert one == other and one["kl"] > 0
    for (name, p), q in zip(policy.model.named_parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(p, q), name

    # The folder is an ordinary checkpoint: it can be the start of another run.
    fresh = Policy(str(tmp_path), Processor(str(tmp_path)), reference=False)
    saved = load_file(tmp_path / "model.safetensors")
    assert all(torch.equal(v, saved[k]) for k, v in fresh.model.state_dict().items() if k in saved)


def test_a_checkpoint_before_the_first_update(policy, tmp_path):
    start = copy.deepcopy(policy.model.state_dict())
    save_checkpoint(policy, tmp_path)                                    # no state of the optimiser yet
    policy.model.lm_head.weight.data.zero_()
    load_checkpoint(policy, tmp_path)
    assert all(torch.equal(v, start[k]) for k, v in policy.model.state_dict().items())


def test_a_damaged_checkpoint_is_refused(policy, processor, picture, tmp_path):
    file = "trainer/00000-of-00001.safetensors"
    policy.update(online(*make_rows(processor, picture, SHAPES[:1])), 1, UpdateSettings())
    save_checkpoint(policy, tmp_path)
    whole = (tmp_path / file).read_bytes()
    tensors = {k: v for k, v in load(whole).items() if "visual.blocks.0" not in k}
    (tmp_path / file).unlink()                          # its pages may be in use: it must not shrink in place
    (tmp_path / file).write_bytes(whole[:len(whole) // 2])
    with pytest.raises(SafetensorError):
        load_checkpoint(policy, tmp_path)
    save_file(tensors, tmp_path / file)
    with pytest.raises((ValueError, KeyError)):              # else momentum is forgotten and nobody is told
        load_checkpoint(policy, tmp_path)
    (tmp_path / file).rename(tmp_path / "trainer/00000-of-00002.safetensors")
    with pytest.raises(ValueError, match="not all of them"):
        load_checkpoint(policy, tmp_path)


def test_sft_with_two_minibatches_is_plain_negative_log_likelihood(processor, checkpoint):
    """A reference has no engine log-prob: ratio 1 and no clip in the second minibatch too,
    after the policy moved."""
    queries = [toy.make_query("ordinary", i, "sft", "canonical") for i in range(6)]
    groups = [grpo.Group(processor.prompt(q),
                         [Member(processor.encode_response(q.solution), [], 1.0, advantage=1.0)],
                         GroupKind.ONLINE) for q in queries]
    ours, plain = (Policy(str(checkpoint), processor, learning_rate=1e-2, warmup_steps=0, reference=False)
                   for _ in range(2))
    metrics = ours.update(groups, 1, UpdateSettings(token_mean=True, minibatches=2))
    for half in (groups[0::2], groups[1::2]):
        rows = [Row(g.prompt, g.members) for g in half]
        plain.optimizer.zero_grad()
        (-plain.logprobs(plain.pack(rows))[0].mean()).backward()
        torch.nn.utils.clip_grad_norm_(plain.model.parameters(), 1.0)
        for group in plain.optimizer.param_groups:
            group["lr"] = plain.learning_rate_at(1)
        plain.optimizer.step()
    assert metrics["ratio"] == 1 and metrics["clipped_share"] == 0 and metrics["engine_gap_max"] == 0
    for (name, a), b in zip(ours.model.named_parameters(), plain.model.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5, msg=name)
