"""grpo.py against numbers computed by hand: groups, advantages, rollback, log-prob, loss,
and their gradients.

Guards against: a wrong sigma or scale, groups trained that should not be, clipping on the wrong side, KL
where none is due, a gradient that is not that of the value.
"""

import math

import pytest
import torch

from grpo import (
    GroupKind,
    LossInputs,
    Member,
    advantages,
    form_group,
    overlong_penalty,
    policy_loss,
    token_logprob,
)


def members(*rewards, rolled_back=False) -> list[Member]:
    return [Member([10 + i, 7], [-1.0, -2.0], r) for i, r in enumerate(rewards)]


# ------------------------------------------------------------------------------------- groups and advantages

@pytest.mark.parametrize("retries", [1, 2, 8])
def test_advantages_of_mixed_groups(retries):
    # K = 8 negatives, m positives: mean p = m / (8 + m), population sigma = sqrt(p (1 - p)), so that a
    # positive gets (1 - p) / sigma = sqrt(8 / m), a negative -p / sigma = -sqrt(m / 8).  m = 1: 2.828 and
    # -0.354.
    values = advantages([0.0] * 8 + [1.0] * retries)
    expected = [-math.sqrt(retries / 8)] * 8 + [math.sqrt(8 / retries)] * retries
    assert values == pytest.approx(expected, rel=1e-5)
    assert sum(values) == pytest.approx(0, abs=1e-9)
    assert advantages([0.0] * 8 + [1.0] * retries, scale=0.3) == pytest.approx([0.3 * v for v in values])


def test_advantages_of_graded_rewards():
    # mean 1, deviations -1, 0, 1: population variance 2/3 (the sample's would be 1)
    assert advantages([0.0, 1.0, 2.0]) == pytest.approx([-math.sqrt(1.5), 0, math.sqrt(1.5)], rel=1e-5)


def test_an_online_group_is_not_scaled():
    group = form_group("prompt", members(1.0, 0.0, 0.0, 0.0), [], mixed_scale=0.5, name="q")
    assert (group.kind, group.name, group.prompt) == (GroupKind.ONLINE, "q", "prompt")
    # mean 1/4, sigma sqrt(3)/4: 3/sqrt(3) and -1/sqrt(3)
    assert [m.advantage for m in group.members] == pytest.approx(
        [math.sqrt(3)] + [-1 / math.sqrt(3)] * 3, rel=1e-5)


def test_context_rollback_joins_kept_retries_under_the_original_prompt():
    sampled, recovered = members(*[0.0] * 8), [Member([5, 6, 7], [-0.1, -0.2, -0.3], 1.0)]
    group = form_group("original", sampled, recovered, mixed_scale=0.5)
    assert group.kind is GroupKind.MIXED and group.prompt == "original"
    assert [m.rolled_back for m in group.members] == [False] * 8 + [True]
    assert group.members[8].ids == [5, 6, 7] and group.members[8].logprobs == [-0.1, -0.2, -0.3]
    assert [m.ids for m in group.members[:8]] == [[10 + i, 7] for i in range(8)]
    # Scaled as a whole, negatives included: 0.5 * 2.828 and 0.5 * -0.354
    assert [m.advantage for m in group.members] == pytest.approx([-0.1767767] * 8 + [1.4142136], rel=1e-5)


@pytest.mark.parametrize("rewards, kind", [
    ([1.0, 1.0, 1.0], GroupKind.ALL_POSITIVE), ([0.0, 0.0, 0.0], GroupKind.ALL_NEGATIVE),
    ([1.0, 0.0], GroupKind.ONLINE), ([0.0, 0.0, 1e-9], GroupKind.ONLINE),   # a small spread is still a spread
    ([1.0], GroupKind.TOO_SMALL), ([], GroupKind.TOO_SMALL),
    ([None, None, 1.0], GroupKind.TOO_SMALL), ([None, None], GroupKind.TOO_SMALL),
    ([None, 0.0, 0.0], GroupKind.ALL_NEGATIVE), ([None, 1.0, 1.0], GroupKind.ALL_POSITIVE)])
def test_kinds(rewards, kind):
    group = form_group(None, members(*rewards), [], 0.5)
    assert group.kind is kind
    assert [m.reward for m in group.members] == [r for r in rewards if r is not None]
    if kind is not GroupKind.ONLINE:
        assert all(m.advantage == 0 for m in group.members)


def test_failed_verdicts_are_in_no_mean_and_no_sigma():
    with_failed = form_group(None, members(1.0, None, 0.0, 0.0, None, 0.0), [], 0.5)
    without = form_group(None, members(1.0, 0.0, 0.0, 0.0), [], 0.5)
    assert [m.advantage for m in with_failed.members] == [m.advantage for m in without.members]
    assert [m.ids[0] for m in with_failed.members] == [10, 12, 13, 15]


def test_rewards_below_zero_are_negatives_too():
    """DAPO's length penalty: two truncated wrong answers and a short one differ,
    and retries may still join."""
    group = form_group(None, members(-1.0, 0.0), [], 0.5)
    assert group.kind is GroupKind.ONLINE
    assert [m.advantage for m in group.members] == pytest.approx([-1, 1], rel=1e-5)
    assert form_group(None, members(-1.0, 0.0), members(1.0), 0.5).kind is GroupKind.MIXED


def test_retries_never_meet_a_positive():
    with pytest.raises(ValueError, match="group q7: retries are only for groups without a positive"):
        form_group(None, members(0.0, 1.0), members(1.0), 0.5, "q7")


@pytest.mark.parametrize("length, penalty",
                         [(0, 0), (1, 0), (24, 0), (25, -1 / 8), (30, -6 / 8), (32, -1), (40, -1)])
def test_overlong_penalty(length, penalty):
    assert overlong_penalty(length, limit=32, buffer=8) == penalty


# ------------------------------------------------------------------------------------------------- log-prob

@pytest.mark.parametrize("n, h, v, temperature", [(1, 3, 2, 1.0), (7, 13, 101, 1.7), (33, 5, 257, 0.6)])
def test_token_logprob_is_log_softmax_in_value_and_gradient(n, h, v, temperature):
    torch.manual_seed(n)
    hidden, weight = torch.randn(n, h, requires_grad=True), torch.randn(v, h, requires_grad=True)
    targets, g = torch.randint(v, (n,)), torch.randn(n)
    logp, entropy = token_logprob(hidden, weight, targets, temperature, return_entropy=True)
    assert not entropy.requires_grad
    logp.backward(g)

    # The definition in fp64, gradient by hand: dlogp_t/dlogits = onehot(target) - softmax,
    # divided by the temperature
    h64, w64 = hidden.detach().double(), weight.detach().double()
    logits = h64 @ w64.T / temperature
    p = logits.exp() / logits.exp().sum(-1, keepdim=True)
    torch.testing.assert_close(logp.double(), p[torch.arange(n), targets].log(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(entropy.double(), -(p * p.log()).sum(-1), rtol=1e-5, atol=1e-6)
    d = (torch.nn.functional.one_hot(targets, v) - p) * g.double()[:, None] / temperature
    torch.testing.assert_close(hidden.grad.double(), d @ w64, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(weight.grad.double(), d.T @ h64, rtol=1e-4, atol=1e-5)


def test_token_logprob_takes_bf16_and_large_logits():
    hidden = torch.tensor([[300.0, 0.0], [0.0, 0.0]], dtype=torch.bfloat16)
    weight = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]], dtype=torch.bfloat16)
    logp, entropy = token_logprob(hidden, weight, torch.tensor([2, 1]), return_entropy=True)
    # Row 1: logits 300, 0, -300, so -600 for the last.  Row 2: all equal, -ln 3 and entropy ln 3.
    assert logp.tolist() == pytest.approx([-600, -math.log(3)]) and logp.dtype == torch.float32
    assert entropy.tolist() == pytest.approx([0, math.log(3)], abs=1e-6)


# ----------------------------------------------------------------------------------------------------- loss

def loss_of(ratio, advantage, kl_coef=0.0, **more):
    """One token with this ratio -> (loss, dloss/dlogp, sums).  Without a clip d(-ρA)/dlogp = -ρA."""
    logp = torch.tensor([math.log(ratio)], dtype=torch.float64, requires_grad=True)
    inputs = dict(old_T=torch.zeros(1), advantage_T=torch.tensor([advantage]), weight_T=torch.ones(1),
                  on_policy_T=torch.tensor([True])) | more
    loss, sums = policy_loss(LossInputs(logp, **inputs), 0.2, 0.28, kl_coef)
    loss.backward()
    return loss.item(), logp.grad.item(), {k: v.item() for k, v in sums.items()}


@pytest.mark.parametrize("ratio, advantage, loss, gradient, clipped", [
    (1.0, 2.0, -2.0, -2.0, 0),                 # min(1 * 2, 1 * 2)
    (1.2, 2.0, -2.4, -2.4, 0),                 # within 1.28
    (1.5, 2.0, -2.56, 0.0, 1),                 # above: 1.28 * 2, constant
    (0.5, 2.0, -1.0, -1.0, 0),                 # below 0.8 but A > 0: min(1, 1.6) is the unclipped one
    (1.0, -3.0, 3.0, 3.0, 0),
    (0.9, -3.0, 2.7, 2.7, 0),                  # within 0.8
    (0.5, -3.0, 2.4, 0.0, 1),                  # below: min(-1.5, -2.4), constant
    (1.5, -3.0, 4.5, 4.5, 0),                  # above 1.28 but A < 0: min(-4.5, -3.84) is the unclipped one
    (1.5, 0.0, 0.0, 0.0, 0)])
def test_clipping_for_both_signs(ratio, advantage, loss, gradient, clipped):
    value, slope, sums = loss_of(ratio, advantage)
    assert (value, slope) == (pytest.approx(loss, abs=1e-12), pytest.approx(gradient, abs=1e-12))
    assert (sums["clipped"], sums["tokens"], sums["ratio"]) == (clipped, 1, pytest.approx(ratio))


def test_a_token_mismatch_and_a_length_weight_scale_the_surrogate_but_mismatch_does_not_scale_the_kl():
    # w = 1/4, c = 0.5, A = 2, ρ = 1: surrogate -1/4 * 0.5 * 2 = -0.25
    more = dict(weight_T=torch.tensor([0.25]), mismatch_T=torch.tensor([0.5]))
    assert loss_of(1.0, 2.0, **more)[:2] == pytest.approx((-0.25, -0.25))
    # ref - logp = ln 2: k3 = 2 - ln 2 - 1 = 0.3069, dk3/dlogp = -2 + 1 = -1; β = 0.1 and w = 1/4, no c
    kl = dict(ref_T=torch.tensor([math.log(2)], dtype=torch.float64), kl_coef=0.1, kl_T=torch.tensor([True]))
    value, slope, sums = loss_of(1.0, 2.0, **more, **kl)
    assert (value, slope) == pytest.approx((-0.25 + 0.1 * 0.25 * 0.3068528, -0.25 - 0.1 * 0.25 * 1))
    assert sums["kl"] == pytest.approx(0.3068528) and sums["kl_rolled_back"] == 0


def test_selective_kl_spares_rolled_back_tokens_and_still_measures_them():
    logp = torch.zeros(3, requires_grad=True)
    on_policy, ref = torch.tensor([True, False, False]), torch.tensor([math.log(2), math.log(3), 0.0])
    zero, one = torch.zeros(3), torch.ones(3)
    inputs = LossInputs(logp, logp.detach(), zero, one, on_policy, None, ref, on_policy)
    loss, sums = policy_loss(inputs, 0.2, 0.2, 0.1)
    loss.backward()
    assert loss.item() == pytest.approx(0.1 * 0.3068528) and logp.grad.tolist() == pytest.approx([-0.1, 0, 0])
    # k3 of the second: 3 - ln 3 - 1 = 0.9014, of the third 0
    assert (sums["kl"].item(), sums["kl_rolled_back"].item()) == pytest.approx((0.3068528, 0.9013877))
    assert (sums["tokens"], sums["rolled_back_tokens"]) == (3, 2)
    logp.grad = None
    inputs = LossInputs(logp, logp.detach(), zero, one, on_policy, None, ref, one.bool())
    policy_loss(inputs, 0.2, 0.2, 0.1)[0].backward()
    assert logp.grad.tolist() == pytest.approx([-0.1, -0.2, 0])        # all pay: second 0.1 * (1 - 3)


def test_huge_log_ratios_stay_finite_and_are_counted():
    logp = torch.tensor([-100.0, 0.0, 30.0, -3.0], requires_grad=True)
    old, ref = torch.tensor([0.0, -100.0, 0.0, -3.0]), torch.tensor([0.0, 0.0, 0.0, -3.0])
    one = torch.ones(4)
    inputs = LossInputs(logp, old, -one, one, one.bool(), None, ref, one.bool())
    loss, sums = policy_loss(inputs, 0.2, 0.2, 0.01)
    loss.backward()
    assert math.isfinite(loss.item()) and logp.grad.isfinite().all() and sums["clamped"] == 3
    assert logp.grad.tolist() == pytest.approx([0, 0, 0, 1])           # only the last one is inside the limit


def test_the_loss_is_a_sum_over_any_split_of_its_tokens():
    torch.manual_seed(0)
    parts = [torch.randn(11), torch.randn(11), torch.randn(11), torch.rand(11), torch.rand(11) > 0.4]
    whole = policy_loss(LossInputs(*parts), 0.2, 0.2)
    pieces = [policy_loss(LossInputs(*(p[s] for p in parts)), 0.2, 0.2)
              for s in (slice(0, 4), slice(4, 4), slice(4, 11))]
    assert sum(loss for loss, _ in pieces).item() == pytest.approx(whole[0].item(), rel=1e-5)
    for name, value in whole[1].items():
        assert sum(sums[name] for _, sums in pieces).item() == pytest.approx(value.item(), rel=1e-5)


def test_gradient_of_the_whole_loss_by_finite_differences():
    torch.manual_seed(1)
    n = 23
    logp = -torch.rand(n, dtype=torch.float64) * 3
    old, ref = logp + 0.5 * torch.randn(n, dtype=torch.float64), logp + torch.randn(n, dtype=torch.float64)
    ratio = (logp - old).exp()
    assert (torch.cat([ratio - 1.28, ratio - 0.8]).abs() > 1e-3).all()       # away from the kinks of the clip
    assert ((ratio > 1.28).sum() > 2) and ((ratio < 0.8).sum() > 2)
    advantage, weight = torch.randn(n, dtype=torch.float64), torch.rand(n, dtype=torch.float64)
    on_policy = torch.rand(n) > 0.3
    mismatch = torch.where(on_policy, torch.rand(n, dtype=torch.float64) * 2, 1.0)
    rest = (old, advantage, weight, on_policy, mismatch, ref, on_policy)
    assert torch.autograd.gradcheck(
        lambda x: policy_loss(LossInputs(x, *rest), 0.2, 0.28, 0.3)[0],
        logp.requires_grad_(), eps=1e-6, atol=1e-7)


def test_no_tokens_is_a_loss_of_zero_with_a_gradient():
    logp, none = torch.zeros(0, requires_grad=True), torch.zeros(0)
    loss, sums = policy_loss(LossInputs(logp, none, none, none, none.bool()), 0.2, 0.2)
    loss.backward()
    assert loss.item() == 0 and sums["tokens"] == 0 and logp.grad.numel() == 0
