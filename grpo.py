"""Groups, advantages, context rollback, log-probs and the loss.  Knows nothing of text, images or engines.

Top to bottom: member -> group -> advantages (eq. A) -> log-prob of the sampled token, by definition and fused
with the language-model head (eq. 1 to 4) -> loss (eq. L).

Paper: ContextRL, arXiv 2602.22623, section 3.3.  Its symbols are used in this file only:
    K   stage-1 samples of a query        P(x)  verified, independent retries of a query
    R   reward, 0 or 1                    A     advantage within the group
    λ   scale of a mixed group            β     KL coefficient
    ρ   ratio pi_theta / pi_old           ε     clip range (ε_low, ε_high)

    python grpo.py        checks the loss against numbers by hand, and the log-probs against the definition
"""

import math
import os
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

try:
    import triton
    from triton import language as tl
except ImportError:
    triton = None        # comes with torch for CUDA; without it the same formulas run in torch

IGNORE = -100            # a target that is none, as in torch's cross entropy
NEVER = -1e30            # exponent of what has no share; finite, so that 0 * NEVER is 0
ANCHOR_LIMIT = 40.0      # exponents up to which e^u and a of (3) stay far inside fp32's range
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
FEW_ROWS = 256           # rows of E that are copied together
SCRATCH_BYTES = [16 << 20, 512 << 20]    # [CPU, CUDA] of fp32: logits, and parts of d weight, pass through it
CHUNK_ROWS = [512, 4096]                 # [CPU, CUDA] rows whose E are made again together

STD_EPS = 1e-6           # the paper gives neither this ε nor says which σ; we take the population's
LOG_RATIO_LIMIT = 20.0   # exp() of more would overflow in k3's backward; how often it bites is a metric


class GroupKind(StrEnum):
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
    penalty: float = 0.0             # DAPO's, for length: moves the advantage, not what becomes of the group


@dataclass
class Group:
    """All responses that share a baseline.  From K (online) to 2K (mixed) members: never assume K."""

    prompt: object                   # the ORIGINAL prompt (ids); carried along, not read here
    members: list[Member]
    kind: GroupKind
    name: str = ""                   # the query's id, for logs


def advantages(rewards: list[float], scale: float = 1.0) -> list[float]:
    """(A)  A_k = λ (R_k - μ) / (σ + ε), μ and population σ over the whole group.  Section 2.1.2.

    Eight negatives and one recovered positive, λ = 0.5:

    >>> [round(a, 3) for a in advantages([0.0] * 8 + [1.0], scale=0.5)]
    [-0.177, -0.177, -0.177, -0.177, -0.177, -0.177, -0.177, -0.177, 1.414]
    """
    mean = sum(rewards) / len(rewards)
    std = math.sqrt(sum((r - mean) ** 2 for r in rewards) / len(rewards))
    return [scale * (r - mean) / (std + STD_EPS) for r in rewards]


def form_group(prompt, sampled: list[Member], recovered: list[Member], mixed_scale: float, name: str = "",
               ) -> Group:
    """Context rollback: joins stage 1 with the kept retries P(x) under the ORIGINAL prompt.  Section 3.3.

    `recovered` holds retries that are verified and independent; their ids stay as they were sampled, only the
    prompt they are trained under changes.  A mixed group is scaled by λ as a whole, negatives included.
    """
    members = [m for m in sampled if m.reward is not None]
    rewards = [m.reward for m in members if m.reward is not None]
    if len(members) + len(recovered) < 2:
        return Group(prompt, members, GroupKind.TOO_SMALL, name)
    if recovered:
        if any(r > 0 for r in rewards):
            raise ValueError(f"group {name}: retries are only for groups without a positive")
        for m in recovered:
            m.rolled_back = True
        group = Group(prompt, members + recovered, GroupKind.MIXED, name)
    elif len(set(rewards)) == 1:                 # exact equality: a small σ is still a signal
        kind = GroupKind.ALL_POSITIVE if rewards[0] > 0 else GroupKind.ALL_NEGATIVE
        return Group(prompt, members, kind, name)
    else:
        group = Group(prompt, members, GroupKind.ONLINE, name)
    scale = mixed_scale if group.kind is GroupKind.MIXED else 1.0
    shaped = [m.reward + m.penalty for m in group.members if m.reward is not None]
    for m, advantage in zip(group.members, advantages(shaped, scale), strict=True):
        m.advantage = advantage
    return group


def overlong_penalty(length: int, limit: int, buffer: int) -> float:
    """DAPO's soft length penalty: 0 up to limit - buffer, then linearly down to -1 at the limit.

    >>> overlong_penalty(24, 32, 8), overlong_penalty(28, 32, 8), overlong_penalty(32, 32, 8)
    (0.0, -0.5, -1.0)
    """
    return max(min(0.0, (limit - buffer - length) / buffer), -1.0)


# ------------------------------------------------------------------------------------------------- log-prob

def naive_token_logprob(hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor,
                        temperature: float = 1.0, forbidden: torch.Tensor | None = None,
                        ) -> tuple[torch.Tensor, torch.Tensor]:
    """The definition -> (logp [N], entropy [N]).  Holds several [N, V] matrices: for tests and benchmarks."""
    logits = (hidden @ weight.T).to(sum_dtype(hidden.dtype)) / temperature                          # [N, V]
    if forbidden is not None:
        logits = logits.masked_fill(forbidden, -torch.inf)
    logp = torch.log_softmax(logits, dim=-1)
    with torch.no_grad():
        entropy = torch.special.entr(logp.exp()).sum(-1)                          # 0 where p = 0
    ignored = targets == IGNORE
    logp = logp.gather(1, targets.masked_fill(ignored, 0)[:, None])[:, 0]
    return logp.masked_fill(ignored, 0.0), entropy.masked_fill(ignored, 0.0)


def token_logprob(hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, temperature: float = 1.0,
                  return_entropy: bool = False, forbidden: torch.Tensor | None = None,
                  keep_bytes: int = 5_000_000_000) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """Log-prob of each target token, fused with the language-model head: the logits never exist together.

    hidden [N, H], weight [V, H]   both bf16, fp32 or fp64, on one device, any strides; N may be 0
    targets [N] int64              IGNORE (-100): log-prob 0, entropy 0, no gradient and no work
    temperature                    logits are divided by it
    forbidden [V] bool             ids that the engine may not sample: they have no share in the distribution
    keep_bytes                     how much of E (below) may wait for the backward pass, per call; the rest is
                                   made again then.  It changes memory, time and rounding.  Within
                                   activation checkpointing 0: the forward pass is done twice anyway

    -> logp [N] fp32 (of fp64: fp64), never above 0, differentiable once with ANY gradient per token; and, if
    return_entropy, the entropy [N] that the token was drawn with, a metric without gradient.  A frozen head
    costs no d weight.  A forbidden target has log-prob -inf.  ValueError for what does not fit together.

    TARGET-ANCHORED EXPONENTIALS.  With logits z = hidden weightᵀ, target y and temperature T, in each row:

        E_j = exp((z_j - z_y) / T)  for j ≠ y,      Q = Σ E_j                               (1)
        log p_y = -log(1 + Q)                                                               (2)
        g ∂(log p_y)/∂z_j = a E_j  for all j, with E_y := -Q  and  a = -g / (T (1 + Q))     (3)

    A softmax is measured against the largest logit, known after one pass over the vocabulary, and divided by
    a sum, known after another.  The target's logit is one dot product, known BEFORE the first pass, and
    against it what underflows is less than 1e-38 of p_y.  The gradient is E itself times one number per row,
    and a number per row can leave a matrix product:

        d hidden = a ∘ (E weight),      d weight = Eᵀ (a ∘ hidden)                          (4)

    So E is written once, in hidden's dtype, and read by two ordinary matrix products: 6 N H V operations in
    all, as without fusion, though g is free until the backward pass; 8 for the rows whose E is made again.
    The target is not in the sum: 1 - p of a sure token keeps its digits.

    Logits are fp32 (bf16 is up to 0.06 off at |z| = 24) and exist for a few columns at a time, until a Triton
    kernel on CUDA, or the same formulas in torch, turns them into E.  Any number may stand in for z_y as the
    anchor if e^u_y, u_y = (z_y - anchor) / T, stands in for the 1: so the dot product's own rounding cancels,
    and the rare row with a huge Q is done again against its largest logit.
    """
    if hasattr(hidden, "to_local") or hasattr(weight, "to_local"):
        raise ValueError("token_logprob needs whole tensors: call it within a sharded module's forward pass")
    shapes = hidden.shape, weight.shape, targets.shape
    if [*map(len, shapes)] != [2, 2, 1] or hidden.shape != (len(targets), weight.shape[1]):
        raise ValueError("hidden {}, weight {}, targets {} are not [N, H], [V, H], [N]".format(
            *map(tuple, shapes)))
    if hidden.dtype != weight.dtype or hidden.dtype not in (torch.bfloat16, torch.float32, torch.float64):
        raise ValueError(f"hidden is {hidden.dtype}, weight {weight.dtype}: both must be bfloat16, float32 "
                         "or float64")
    if forbidden is not None and (forbidden.dtype != torch.bool or forbidden.shape != weight.shape[:1]):
        raise ValueError(f"forbidden is {forbidden.dtype} {tuple(forbidden.shape)}, must be bool [V]")
    if not 0 < temperature < math.inf:
        raise ValueError(f"temperature is {temperature}, must be above 0 and finite")
    asked = (targets != IGNORE).nonzero()[:, 0]
    ignored = len(asked) < len(targets)
    h, y = (hidden[asked], targets[asked]) if ignored else (hidden, targets.contiguous())
    forbidden = None if forbidden is None else forbidden.contiguous()
    gradient = torch.is_grad_enabled() and (hidden.requires_grad or weight.requires_grad)
    logp, entropy = _TokenLogprob.apply(h, weight, y, float(temperature), forbidden, keep_bytes, gradient)
    if forbidden is not None:
        logp = logp.masked_fill(forbidden[y], -torch.inf)
    if ignored:
        logp, entropy = (x.new_zeros(len(targets)).index_copy(0, asked, x) for x in (logp, entropy))
    return (logp, entropy) if return_entropy else logp


class _TokenLogprob(torch.autograd.Function):
    """Equations (1) to (4), one chunk of rows after the other.  Chunks do not depend on whether a gradient is
    wanted: a product of another shape may round differently, and old and current log-probs must be equal to
    the last bit."""

    @staticmethod
    def forward(ctx, hidden, weight, targets, temperature, forbidden, keep_bytes, gradient):
        wide = sum_dtype(hidden.dtype)
        logp, entropy, anchor, total = torch.empty(4, len(hidden), dtype=wide, device=hidden.device).unbind()
        ctx.chunks = []                                   # (rows, E), E None: made again in the backward pass
        for rows, keep in row_chunks(hidden, weight, keep_bytes):
            h, y = hidden[rows], targets[rows]
            E = h.new_empty(len(h), len(weight)) if keep and gradient else None
            c = (h * F.embedding(y, weight)).sum(-1, dtype=wide)
            Q, Qu, u_y = exponentials(h, weight, y, temperature, forbidden, c, E)
            huge = ((math.exp(ANCHOR_LIMIT) < Q) | (u_y.abs() > ANCHOR_LIMIT)).nonzero()[:, 0]
            for few in huge.split(FEW_ROWS) if len(huge) else ():
                redone = None if E is None else h.new_empty(len(few), len(weight))
                c[few] = largest_logit(h[few], weight, forbidden)
                Q[few], Qu[few], u_y[few] = exponentials(
                    h[few], weight, y[few], temperature, forbidden, c[few], redone)
                if E is not None:
                    E[few] = redone
            anchor[rows], total[rows] = c, u_y.exp() + Q
            logp[rows] = -torch.logaddexp(torch.zeros_like(Q), Q.log() - u_y)        # (2), -log(1 + Q e^-u_y)
            # -Σ p log p with log p_j = u_j - log(total), and log(total) = u_y - log p_y
            entropy[rows] = u_y - logp[rows] - (Qu + u_y.exp() * u_y) / total[rows]
            ctx.chunks.append((rows, E))
        ctx.save_for_backward(hidden, weight, targets, forbidden, anchor, total)
        ctx.temperature = temperature
        ctx.mark_non_differentiable(entropy)
        return logp, entropy

    @staticmethod
    @once_differentiable
    def backward(ctx, g, _):
        hidden, weight, targets, forbidden, anchor, total = ctx.saved_tensors
        work, ctx.chunks = ctx.chunks, [(rows, None) for rows, _ in ctx.chunks]      # compact_rows() spoils E
        a = -g / (ctx.temperature * total)                                                               # (3)
        need_hidden, need_weight = ctx.needs_input_grad[:2]
        d_hidden = torch.zeros_like(hidden) if need_hidden else None
        # The sum over several chunks is taken in fp32, or it would be rounded each time.
        d_weight = torch.zeros_like(weight, dtype=a.dtype) if need_weight and len(work) > 1 else None
        while work:
            rows, E = work.pop(0)                                 # what is kept comes first, and is free then
            live = compact_rows(E, g[rows] != 0)              # clipped tokens, say, cost nothing from here on
            if not len(live):
                continue
            h, factor = hidden[rows][live], a[rows][live, None]
            if E is None:
                E = h.new_empty(len(h), len(weight))
                exponentials(h, weight, targets[rows][live], ctx.temperature, forbidden, anchor[rows][live],
                             E)
            E, scaled = E[:len(h)], (factor * h).to(h.dtype)
            if need_hidden:                                                                              # (4)
                d_hidden[rows][live] = (factor * matmul_fp32(E, weight)).to(h.dtype)
            if need_weight and d_weight is None:
                d_weight = matmul_fp32(E.T, scaled, rounded=True)
            elif need_weight:
                for v in column_blocks(len(weight), scratch_rows(weight)):
                    d_weight[v] += matmul_fp32(E[:, v].T, scaled)
        if need_weight:
            d_weight = torch.zeros_like(weight) if d_weight is None else d_weight.to(weight.dtype)
        return d_hidden, d_weight, None, None, None, None, None


def exponentials(h, weight, targets, temperature, forbidden, anchor, E=None):
    """(1) of a chunk, for u_j = (z_j - anchor) / temperature: -> Q = Σ e^u_j, Qu = Σ e^u_j u_j (both without
    the target and without forbidden ids) and u_y, each [C].  Fills E [C, V] if it is given."""
    Q, Qu, u_y = torch.zeros(3, len(h), dtype=anchor.dtype, device=h.device).unbind()
    for v in column_blocks(len(weight), scratch_rows(h.T)):
        z = u = e = None                                       # the last block's, before the next one is made
        z = matmul_fp32(h, weight[v].T)
        E_v = None if E is None else E[:, v]
        forbidden_v = None if forbidden is None else forbidden[v]
        if triton and z.dtype == torch.float32 and (z.is_cuda or INTERPRETED):
            with torch.cuda.device_of(z):
                exponentials_kernel[(len(z),)](
                    z, z.stride(0), targets, v.start, z.shape[1], anchor, 1 / temperature, forbidden_v, E_v,
                    0 if E is None else E.stride(0), Q, Qu, u_y, TILE=2048, num_warps=8)
            continue
        u = z.sub_(anchor[:, None]).div_(temperature)
        at = targets - v.start
        mine = ((at >= 0) & (at < u.shape[1])).nonzero()[:, 0]
        u_y[mine] = u[mine, at[mine]]
        u[mine, at[mine]] = NEVER
        if forbidden is not None:
            u[:, forbidden_v] = NEVER
        e = u.exp()
        Q += e.sum(-1)
        Qu += u.mul_(e).sum(-1)
        if E is not None:
            E_v.copy_(e)
    if E is not None:
        E.scatter_(1, targets[:, None], -Q[:, None].to(E.dtype))
    return Q, Qu, u_y


if triton:
    @triton.jit
    def exponentials_kernel(z, z_stride, targets, first, width, anchor, scale, forbidden, E, E_stride, Q, Qu,
                            u_y, TILE: tl.constexpr):
        """The same for some columns of one row: z (fp32) is read once, E written once, sums go on."""
        row = tl.program_id(0).to(tl.int64)                                  # 64 bits: N x V passes 2^31 soon
        c, y = tl.load(anchor + row), tl.load(targets + row) - first
        r, s = tl.zeros([TILE], tl.float32), tl.zeros([TILE], tl.float32)
        for start in range(0, width, TILE):
            j = start + tl.arange(0, TILE)
            u = (tl.load(z + row * z_stride + j, mask=j < width, other=0.0) - c) * scale
            tl.store(u_y + row + j * 0, u, mask=j == y)
            out = (j == y) | (j >= width)
            if forbidden is not None:
                out = out | tl.load(forbidden + j, mask=j < width, other=0).to(tl.int1)
            e = tl.where(out, 0.0, tl.exp(u))
            r += e
            s += tl.where(out, 0.0, e * u)
            if E is not None:
                tl.store(E + row * E_stride + j, e.to(E.dtype.element_ty), mask=j < width)
        tl.store(Q + row, tl.load(Q + row) + tl.sum(r))
        tl.store(Qu + row, tl.load(Qu + row) + tl.sum(s))


def compact_rows(E, live):
    """-> indices [K] of the live rows.  If E is kept, their rows are moved to its front, in the order of the
    indices: holes are filled from the back, so that few rows move."""
    index = live.nonzero()[:, 0]
    if E is not None and len(index) < len(live):
        holes, movers = (~live[:len(index)]).nonzero()[:, 0], index[index >= len(index)]
        for to, source in zip(holes.split(FEW_ROWS), movers.split(FEW_ROWS)):
            E[to] = E[source]
        index = torch.arange(len(index), device=index.device).index_copy(0, holes, movers)
    return index


def largest_logit(h, weight, forbidden):
    """Row maximum of the logits [C], for the rare row whose target is no good anchor."""
    largest = torch.full((len(h),), -torch.inf, dtype=sum_dtype(h.dtype), device=h.device)
    for v in column_blocks(len(weight), scratch_rows(h.T)):
        z = matmul_fp32(h, weight[v].T)
        if forbidden is not None:
            z = z.masked_fill(forbidden[v], -torch.inf)
        largest = torch.maximum(largest, z.amax(-1))
    return largest


def matmul_fp32(a, b, rounded=False):
    """a @ b with fp32 sums and, unless `rounded` to the operands' dtype, an fp32 result (fp64 of fp64)."""
    with torch.autocast(a.device.type, enabled=False):
        if rounded or a.dtype == sum_dtype(a.dtype):
            return a @ b
        if a.is_cuda:
            return torch.mm(a, b, out_dtype=torch.float32)
        # A CPU has no such product.  A product of two bf16 numbers is exact in fp32, so this is the same; in
        # parts, to have no whole copy of b.
        return sum(x.float() @ y.float() for x, y in zip(a.split(4096, dim=1), b.split(4096, dim=0)))


def sum_dtype(dtype):
    """What sums are taken in."""
    return torch.promote_types(dtype, torch.float32)


def column_blocks(total, size):
    """Slices of 0..total, at most `size` long."""
    return [slice(i, min(i + size, total)) for i in range(0, total, max(size, 1))]


def scratch_rows(matrix):
    """How many rows of this matrix's width make a block of fp32 scratch."""
    return max(SCRATCH_BYTES[matrix.is_cuda] // (4 * max(matrix.shape[1], 1)) // 128 * 128, 128)


def row_chunks(hidden, weight, keep_bytes):
    """-> (rows, whether E is kept): as many rows as keep_bytes allows in one chunk, so that d weight is one
    product of them, and the others in equal ones of few rows, because the backward pass makes a chunk's E
    whole."""
    n = len(hidden)
    kept = min(n, max(keep_bytes, 0) // (len(weight) * hidden.element_size()))
    if kept < n:
        kept -= kept % 128 if kept > 128 else 0                                 # whole tiles
    count = -(-(n - kept) // CHUNK_ROWS[hidden.is_cuda])
    blocks = column_blocks(n - kept, -(-(n - kept) // max(count, 1)))
    rest = [slice(kept + block.start, kept + block.stop) for block in blocks]
    return [(slice(0, kept), True)] * (kept > 0) + [(rows, False) for rows in rest]


# ------------------------------------------------------------------------------------------------------ loss

@dataclass
class LossInputs:
    """What the loss needs of every response token, flat over any mix of groups: [N] fp32 (masks bool)."""

    logp_T: torch.Tensor                     # log-prob under the policy, with gradient
    old_T: torch.Tensor                      # ... before the update, under the ORIGINAL prompt.  The engine's
                                             # number for a rolled-back member belongs to another prompt: with
                                             # it ρ ~ 0 on exactly the tokens that carry the lesson
    advantage_T: torch.Tensor                # A of the token's response
    weight_T: torch.Tensor                   # w: 1 / length of the response (mean over each response), or 1
                                             # (mean over tokens, DAPO)
    on_policy_T: torch.Tensor                # False: of a rolled-back member
    mismatch_T: torch.Tensor | None = None   # c: truncated importance weight engine -> trainer
    ref_T: torch.Tensor | None = None        # log-prob under the frozen start policy; None: no KL
    kl_T: torch.Tensor | None = None         # s: which tokens pay KL; None: all.  On-policy members only is
                                             # "selective KL" (our reading)


def policy_loss(tokens: LossInputs, clip_low: float, clip_high: float, kl_coef: float = 0.0,
                ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """(L)  clipped policy gradient with selective KL, summed over response tokens.  Section 3.3.

        L = - Σ_t w_t [ c_t min(ρ_t A, clip(ρ_t, 1-ε_low, 1+ε_high) A) - β s_t k3_t ],   ρ_t = exp(logp - old)
        k3_t = exp(ref - logp) - (ref - logp) - 1      (>= 0, unbiased for KL(pi || ref))

    Returns the SUM (no mean: the caller divides once, by a count over all ranks and micro-batches) and sums
    of metrics.  With one update per batch old_T is logp_T.detach(): ρ is exactly 1 and only its gradient
    acts.
    """
    t = tokens
    ratio = (t.logp_T - t.old_T).clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT).exp()
    clipped = ratio.clamp(1 - clip_low, 1 + clip_high)
    surrogate = torch.minimum(ratio * t.advantage_T, clipped * t.advantage_T)
    if t.mismatch_T is not None:
        surrogate = surrogate * t.mismatch_T
    loss = -(t.weight_T * surrogate).sum()
    with torch.no_grad():
        high, low = ratio > 1 + clip_high, ratio < 1 - clip_low
        clips = (high & (t.advantage_T > 0)) | (low & (t.advantage_T < 0))
        sums = {"tokens": torch.ones_like(t.logp_T).sum(), "ratio": ratio.sum(),
                "clipped": clips.float().sum(),
                "clamped": ((t.logp_T - t.old_T).abs() > LOG_RATIO_LIMIT).float().sum(),
                "rolled_back_tokens": (~t.on_policy_T).float().sum()}
    if t.ref_T is not None:
        delta = (t.ref_T - t.logp_T).clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)
        k3 = delta.exp() - delta - 1
        kl_T = torch.ones_like(t.on_policy_T) if t.kl_T is None else t.kl_T
        loss = loss + kl_coef * (t.weight_T * k3 * kl_T).sum()
        sums |= {"kl": (k3 * t.on_policy_T).sum().detach(),
                 "kl_rolled_back": (k3 * ~t.on_policy_T).sum().detach()}
    return loss, sums


def update_metrics(total: dict[str, float], first: dict[str, float], more: dict[str, float]) -> dict:
    """Sums of all ranks (of a whole update, and of its first optimiser step) -> what is logged.  Means are
    over tokens; a ratio over no tokens is None."""
    def mean(name: str, count: str = "tokens", of: dict = total) -> float:
        return of[name] / max(of[count], 1)

    on, back = "on_policy_tokens", "rolled_back_tokens"
    mass = total["rolled_back_mass"] + total["on_policy_mass"]
    return {"loss": total["loss"], "grad_norm": more["grad_norm"], "learning_rate": more["learning_rate"],
            "ratio": mean("ratio") if total["tokens"] else None,
            "ratio_before_update": mean("ratio", of=first) if first["tokens"] else None,
            "kl_before_update": mean("kl", on, first),
            "clipped_share": mean("clipped"), "clamped_share": mean("clamped"), "entropy": mean("entropy"),
            "kl": mean("kl", on), "kl_rolled_back": mean("kl_rolled_back", back),
            "engine_gap_mean": mean("engine_gap", on), "engine_gap_max": more["engine_gap_max"],
            "context_gap": mean("context_gap", back),
            "rolled_back_token_share": mean("rolled_back_tokens"),
            "rolled_back_gradient_share": total["rolled_back_mass"] / max(mass, 1e-12),
            "trained_tokens": total["tokens"]}


def check() -> bool:
    """Prints the loss beside numbers by hand, and log-probs and gradients beside the definition in fp64."""
    # Two tokens, A = +1 and -1, ρ = 1.5 and 1: the first is clipped (no gradient), the second has gradient 1.
    new, one = torch.tensor([math.log(1.5), 0.0], requires_grad=True), torch.ones(2)
    tokens = LossInputs(new, torch.zeros(2), torch.tensor([1.0, -1.0]), one, one.bool())
    loss = policy_loss(tokens, 0.2, 0.2)[0]
    gradient, = torch.autograd.grad(loss, new)
    print(f"loss {loss.item():+.4f} (by hand -1.2 + 1 = -0.2), gradient {gradient.tolist()} (by hand [0, 1])")
    ok = abs(loss.item() + 0.2) < 1e-6 and torch.allclose(gradient, torch.tensor([0.0, 1.0]))
    # The gates are rounding errors: of fp32 sums, and of bf16 to 8 bits two or three times.
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    for dtype, gates in ((torch.float32, [1e-4, 1e-5, 1e-5]), (torch.bfloat16, [1e-4, 3e-3, 3.5e-3])):
        hidden, weight = (torch.randn(n, 64, device=device).to(dtype).requires_grad_() for n in (300, 5003))
        targets, g = torch.randint(5003, (300,), device=device), torch.randn(300, device=device)
        exact = [x.detach().double().requires_grad_() for x in (hidden, weight)]
        logp: Any = token_logprob(hidden, weight, targets)
        true = naive_token_logprob(exact[0], exact[1], targets)[0]
        got = torch.autograd.grad(logp, (hidden, weight), g)
        expected = torch.autograd.grad(true, exact, g.double())
        errors = [(logp - true).abs().max().item()]
        errors += [((a - b).norm() / b.norm()).item() for a, b in zip(got, expected)]
        print(f"{device} {dtype}: error of log-prob {errors[0]:.1e}, relative errors of d hidden "
              f"{errors[1]:.1e}, d weight {errors[2]:.1e}")
        ok = ok and all(e < gate for e, gate in zip(errors, gates))
    return ok


if __name__ == "__main__" and not check():
    raise SystemExit("error: the checks above failed")
