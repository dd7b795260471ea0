"""Groups, advantages, context rollback and the loss.  Pure torch: knows nothing of text, images or engines.

Top to bottom: member -> group -> advantages (eq. A) -> log-prob of the sampled token -> loss (eq. L).

Paper: ContextRL, arXiv 2602.22623, section 3.3.  Its symbols are used in this file only:
    K   stage-1 samples of a query        P(x)  verified, independent retries of a query
    R   reward, 0 or 1                    A     advantage within the group
    λ   scale of a mixed group            β     KL coefficient
    ρ   ratio pi_theta / pi_old           ε     clip range (ε_low, ε_high)

    python grpo.py        checks the loss and its gradient on numbers computed by hand
"""

import math
from dataclasses import dataclass
from enum import Enum

import torch

STD_EPS = 1e-6           # the paper gives neither this ε nor says which σ; we take the population's
LOG_RATIO_LIMIT = 20.0   # exp() of more would overflow in k3's backward; how often it bites is a metric


class GroupKind(str, Enum):
    """What became of a query's samples.  Only ONLINE and MIXED groups are trained on."""

    ONLINE = "online"                # stage 1 has positives and negatives: plain GRPO
    MIXED = "mixed"                  # all of stage 1 negative, stage 2 recovered at least one
    ALL_POSITIVE = "all_positive"    # nothing left to learn
    ALL_NEGATIVE = "all_negative"    # nothing recovered (or no stage 2)
    TOO_SMALL = "too_small"          # fewer than two members with a verdict: no baseline


@dataclass
class Member:
    """One response within a group."""

    ids: list[int]                   # response token ids, as sampled
    logprobs: list[float]            # the engine's log-probs, under the prompt that was SHOWN
    reward: float | None             # None: the judge failed; such a member is left out of everything
    rolled_back: bool = False        # drawn in stage 2, trained under the original prompt
    advantage: float = 0.0


@dataclass
class Group:
    """All responses that share a baseline.  From K (online) to 2K (mixed) members: never assume K."""

    prompt: object                   # the ORIGINAL prompt (ids); carried along, not read here
    members: list[Member]
    kind: GroupKind
    name: str = ""                   # the query's id, for logs


def advantages(rewards: list[float], scale: float = 1.0) -> list[float]:
    """(A)  A_k = λ (R_k - μ) / (σ + ε), μ and population σ over the whole group.  Section 2.1.2, eq. before (1).

    Eight negatives and one recovered positive, λ = 0.5:

    >>> [round(a, 3) for a in advantages([0.0] * 8 + [1.0], scale=0.5)]
    [-0.177, -0.177, -0.177, -0.177, -0.177, -0.177, -0.177, -0.177, 1.414]
    """
    mean = sum(rewards) / len(rewards)
    std = math.sqrt(sum((r - mean) ** 2 for r in rewards) / len(rewards))
    return [scale * (r - mean) / (std + STD_EPS) for r in rewards]


def form_group(prompt, sampled: list[Member], recovered: list[Member], mixed_scale: float, name: str = "") -> Group:
    """Context rollback: joins stage 1 with the kept retries P(x) under the ORIGINAL prompt.  Section 3.3.

    `recovered` holds retries that are verified and independent; their ids stay as they were sampled, only the
    prompt they are trained under changes.  A mixed group is scaled by λ as a whole, negatives included.
    """
    members = [m for m in sampled if m.reward is not None]
    rewards = [m.reward for m in members]
    if len(members) + len(recovered) < 2:
        return Group(prompt, members, GroupKind.TOO_SMALL, name)
    if recovered:
        if any(r > 0 for r in rewards):
            raise ValueError(f"group {name}: retries are only for groups without a positive")
        for m in recovered:
            m.rolled_back = True
        group = Group(prompt, members + recovered, GroupKind.MIXED, name)
    elif len(set(rewards)) == 1:                 # exact equality: a small σ is still a signal
        return Group(prompt, members, GroupKind.ALL_POSITIVE if rewards[0] > 0 else GroupKind.ALL_NEGATIVE, name)
    else:
        group = Group(prompt, members, GroupKind.ONLINE, name)
    scale = mixed_scale if group.kind is GroupKind.MIXED else 1.0
    for m, a in zip(group.members, advantages([m.reward for m in group.members], scale), strict=True):
        m.advantage = a
    return group


def overlong_penalty(length: int, limit: int, buffer: int) -> float:
    """DAPO's soft length penalty: 0 up to limit - buffer, then linearly down to -1 at the limit.

    >>> overlong_penalty(24, 32, 8), overlong_penalty(28, 32, 8), overlong_penalty(32, 32, 8)
    (0.0, -0.5, -1.0)
    """
    return max(min(0.0, (limit - buffer - length) / buffer), -1.0)


# ------------------------------------------------------------------------------------------------- log-prob

def token_logprob(hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, temperature: float = 1.0,
                  forbidden: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-prob of each target token, and the entropy it was drawn with (a metric, no gradient).

    hidden [N, H], weight [V, H] (the language-model head), targets [N] int64, forbidden [F] int64
    -> (logp [N] fp32, entropy [N] fp32).  The distribution is the engine's: logits / temperature, and ids that it may
    not sample have no share in it.
    """
    logits = (hidden @ weight.T).float() / temperature                            # [N, V]
    if forbidden is not None:
        logits = logits.index_fill(1, forbidden, -torch.inf)
    logp = torch.log_softmax(logits, dim=-1)
    with torch.no_grad():
        entropy = torch.special.entr(logp.exp()).sum(-1)                          # 0 where p = 0
    return logp.gather(1, targets[:, None])[:, 0], entropy


# ------------------------------------------------------------------------------------------------------ loss

def policy_loss(logp_T: torch.Tensor, old_T: torch.Tensor, advantage_T: torch.Tensor, weight_T: torch.Tensor,
                on_policy_T: torch.Tensor, clip_low: float, clip_high: float, mismatch_T: torch.Tensor | None = None,
                ref_T: torch.Tensor | None = None, kl_coef: float = 0.0, kl_T: torch.Tensor | None = None,
                ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """(L)  clipped policy gradient with selective KL, summed over the response tokens of any mix of groups.

        L = - Σ_t w_t [ c_t min(ρ_t A, clip(ρ_t, 1-ε_low, 1+ε_high) A) - β s_t k3_t ],   ρ_t = exp(logp - old)
        k3_t = exp(ref - logp) - (ref - logp) - 1      (>= 0, unbiased for KL(pi || ref))

    All arguments are flat over response tokens, [N] fp32 (masks bool):
      old_T        log-prob under the ORIGINAL prompt.  For a rolled-back member the engine's own number belongs to
                   another prompt; used here it makes ρ ~ 0 on exactly the tokens that carry the lesson.
      weight_T w   1 / length of the response (mean over each response) or 1 (mean over tokens, DAPO)
      mismatch_T c truncated importance weight engine -> trainer; 1 for rolled-back members
      kl_T s       which tokens pay KL: on-policy members only ("selective KL", our reading)

    Returns the SUM (no mean: the caller divides once, by a count over all ranks and micro-batches) and sums of
    metrics.  With one update per batch old_T is logp_T.detach(): ρ is exactly 1 and only its gradient acts.
    """
    log_ratio = (logp_T - old_T).clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)
    ratio = log_ratio.exp()
    clipped = ratio.clamp(1 - clip_low, 1 + clip_high)
    surrogate = torch.minimum(ratio * advantage_T, clipped * advantage_T)
    if mismatch_T is not None:
        surrogate = surrogate * mismatch_T
    loss = -(weight_T * surrogate).sum()
    with torch.no_grad():
        count = torch.ones_like(logp_T)
        bites = ((ratio > 1 + clip_high) & (advantage_T > 0)) | ((ratio < 1 - clip_low) & (advantage_T < 0))
        sums = {"tokens": count.sum(), "ratio": ratio.sum(), "clipped": bites.float().sum(),
                "clamped": ((logp_T - old_T).abs() > LOG_RATIO_LIMIT).float().sum(),
                "rolled_back_tokens": (~on_policy_T).float().sum()}
    if ref_T is not None:
        delta = (ref_T - logp_T).clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)
        k3 = delta.exp() - delta - 1
        kl_T = torch.ones_like(on_policy_T) if kl_T is None else kl_T
        loss = loss + kl_coef * (weight_T * k3 * kl_T).sum()
        sums |= {"kl": (k3 * on_policy_T).sum().detach(), "kl_rolled_back": (k3 * ~on_policy_T).sum().detach()}
    return loss, sums


def main() -> None:
    """Two tokens, A = +1 and -1, ρ = 1.5 and 1: the first is clipped (no gradient), the second has dL/dlogp = 1."""
    logp = torch.tensor([math.log(1.5), 0.0], requires_grad=True)
    one = torch.ones(2)
    loss, sums = policy_loss(logp, torch.zeros(2), torch.tensor([1.0, -1.0]), one, one.bool(), 0.2, 0.2)
    loss.backward()
    print(f"loss {loss.item():+.4f} (by hand -1.2 + 1 = -0.2), gradient {logp.grad.tolist()} (by hand [0, 1]), "
          f"clipped {int(sums['clipped'])} (by hand 1)")
    ok = abs(loss.item() + 0.2) < 1e-6 and torch.allclose(logp.grad, torch.tensor([0.0, 1.0]))
    raise SystemExit(0 if ok else 1)


if __name__ == "__main__":
    main()
