"""The trained model: forward pass and one optimiser step.  One process, or sharded over torchrun ranks.

One idea makes the update cheap: a GROUP IS ONE ROW.  Its members share a prompt, so the prompt (with all its
image tokens) goes through the model once, and the responses stand side by side behind it:

    input      [ prompt | y1 | y2 | ... | yG ]
    positions    0 .. n   n+1..  n+1..    n+1..         every response goes on right after the prompt
    attention    a token of y_k sees the prompt and its own past, never a sibling

This equals running every (prompt, response) alone, in values and in gradients (tested), at 1/G of the
prompt's cost.  Rolled-back members are simply further responses to the original prompt.

On a GPU the rows of a micro-batch stand end to end in one line, without padding, and FlexAttention skips the
empty blocks of the mask.  On a CPU every row has a padded line of its own, and the mask is a dense matrix.

Sharding is FSDP2, one unit per decoder layer and vision block: fp32 master weights, AdamW state and gradient
reduction, bf16 compute.  All ranks must meet each collective inside a forward pass: they run the same number
of micro-batches, and each micro-batch holds an image, if only a tiny one outside the loss.

What the loop asks of a policy, so of one of your own:

    update(groups, step, settings, auxiliary)   one batch -> metrics; called by all ranks
    weights()                                   (name, whole tensor) of all weights, for an engine
    model, sharded, whole_copy()                for an engine that shares the model, or needs a copy
    optimizer, parameters, processor, rank      what training/checkpoint.py writes
"""

import base64
import copy
import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import zip_longest
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor

import grpo
from data import Processor, Prompt, Query, load_model

BLACK_32_X_32 = base64.b64decode(                 # a PNG
    "iVBORw0KGgoAAAANSUhEUgAAACAAAAAgCAIAAAD8GO2jAAAAGUlEQVR4nO3BMQEAAADCoPVP7WENoAAA"
    "AG4MIAABt9NlCQAAAABJRU5ErkJggg==")


def all_sum(tensor: torch.Tensor) -> torch.Tensor:
    """Sum over ranks, in place; nothing to do on one process."""
    if dist.is_initialized():
        dist.all_reduce(tensor)
    return tensor


def all_gather(value) -> list:
    """Any Python value of every rank, in the order of ranks."""
    if not dist.is_initialized():
        return [value]
    values = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def over_ranks(sums: dict[str, float]) -> dict[str, float]:
    """Sums of all ranks, which hold the same names: all run the same micro-batches.  0 for other names."""
    values = all_sum(torch.tensor([sums[name] for name in sorted(sums)], dtype=torch.float64)).tolist()
    return defaultdict(float, zip(sorted(sums), values))


def add_sums(sums: dict[str, float], more: dict[str, torch.Tensor]) -> None:
    for key, value in more.items():
        sums[key] = sums.get(key, 0.0) + value.item()


def in_batch_order(shares: list[list]) -> list:
    """What n ranks hold, in the order of the batch, of which rank r takes items r, r + n, r + 2 n, ..."""
    return [item for across in zip_longest(*shares) for item in across if item is not None]


@dataclass
class Row:
    """A prompt and some of the responses to it."""

    prompt: Prompt
    members: list[grpo.Member]

    @property
    def length(self) -> int:
        return len(self.prompt.ids) + sum(len(m.ids) for m in self.members)

    @property
    def inputs(self) -> int:
        """Tokens that enter the model: all but the last of each response."""
        return self.length - len(self.members)


@dataclass
class UpdateSettings:
    """What the optimiser step needs of the method's settings (see training/config.py)."""

    clip_low: float = 0.2
    clip_high: float = 0.2
    kl_coef: float = 0.01
    token_mean: bool = False        # True: mean over tokens (DAPO), False: mean over responses of token means
    selective_kl: bool = True       # rolled-back members pay no KL
    mismatch_cap: float = 2.0       # truncated importance weight engine -> trainer
    minibatches: int = 1            # optimiser steps per batch of samples
    micro_batch_tokens: int = 4096  # tokens of a forward pass, padding included
    max_grad_norm: float = 1.0


@dataclass
class Auxiliary:
    """A second loss beside the policy's own, over rows of its own (context_pairs/loss.py brings one)."""

    rows: list[Row]                                 # this rank's share of the step's
    weight: float                                   # of the mean over all rows of a minibatch
    loss: Callable[["Policy", list[Row]], tuple]    # a micro-batch -> SUM over its rows, sums of metrics
    metrics: Callable[[dict, float], dict]          # sums over ranks, gradient norm without it -> metrics


class Scorer(torch.nn.Module):
    """Log-prob and entropy of chosen tokens in ONE forward pass, head included: sharded weights are gathered
    by the hooks of the module that is called, so nothing may reach into the model around it."""

    forbidden: torch.Tensor                # [V] bool: ids that the engine may not sample

    def __init__(self, model, temperature: float, forbidden: list[int]):
        super().__init__()
        self.model, self.temperature = model, temperature
        mask = torch.zeros(len(model.lm_head.weight), dtype=torch.bool)
        mask[forbidden] = True
        self.register_buffer("forbidden", mask, persistent=False)

    def forward(self, arguments: dict, where: torch.Tensor, targets: torch.Tensor):
        hidden = self.model.model(**arguments, use_cache=False).last_hidden_state      # [lines, L, H]
        return grpo.token_logprob(hidden.flatten(0, 1)[where], self.model.lm_head.weight, targets,
                                  self.temperature, return_entropy=True, forbidden=self.forbidden)


class Policy:
    """Model, frozen reference copy (only if KL is paid) and AdamW.

    Sharded as soon as torch.distributed is initialised; every method is then called by all ranks.
      dtype             of the master weights (and of everything else, unless compute_dtype says otherwise)
      compute_dtype     of forward and backward pass and of the reference; sharded policies only
      attention         'flex' or 'sdpa'; None: flex on CUDA, sdpa elsewhere (flex has no backward on a CPU)
      freeze_vision     the vision tower keeps its weights
      offload_reference the reference's shards live on the CPU between forward passes (CUDA only)
    """

    def __init__(self, path: str, processor: Processor, learning_rate: float = 1e-4, total_steps: int = 60,
                 warmup_steps: int = 3, min_lr_ratio: float = 0.1, weight_decay: float = 0.0,
                 temperature: float = 1.0, reference: bool = True, device: str = "cpu", dtype=torch.float32,
                 compute_dtype=None, attention: str | None = None, gradient_checkpointing: bool = False,
                 freeze_vision: bool = False, offload_reference: bool = False):
        self.path, self.processor, self.device, self.dtype = path, processor, torch.device(device), dtype
        self.sharded = dist.is_initialized()
        self.rank, self.world = (dist.get_rank(), dist.get_world_size()) if self.sharded else (0, 1)
        self.compute_dtype = compute_dtype if compute_dtype and self.sharded else dtype
        self.flex = (attention or ("flex" if self.device.type == "cuda" else "sdpa")) == "flex"
        self.packed = self.flex                  # a dense mask over all rows end to end would be mostly empty
        self.model = self._load().train()
        self.model.model.visual.requires_grad_(not freeze_vision)
        if gradient_checkpointing:
            self.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        self.scorer = self._scorer(self.model, temperature)
        self.reference: Any = None
        if reference:                        # after the shards: two whole models would need the host's memory
            start = self._load() if self.sharded else copy.deepcopy(self.model)
            self.reference = self._scorer(start.eval().requires_grad_(False), temperature, offload_reference)
        self.parameters = {name: p for name, p in self.model.named_parameters() if p.requires_grad}
        self.learning_rate, self.min_lr_ratio = learning_rate, min_lr_ratio
        self.total_steps, self.warmup_steps = total_steps, warmup_steps
        self.optimizer = torch.optim.AdamW(self.parameters.values(), lr=learning_rate, betas=(0.9, 0.95),
                                           weight_decay=weight_decay)

    def _load(self):
        # To be sharded, a model keeps the (smaller) dtype of its file until the layer's turn has come.
        return load_model(self.path, "auto" if self.sharded else self.dtype)

    def _scorer(self, model, temperature: float, offload: bool = False) -> Scorer:
        """Attention kernels, then the shards."""
        from transformers import AttentionInterface
        from transformers.utils import is_flash_attn_2_available

        if self.flex:
            AttentionInterface.register("tree", tree_attention)
            model.set_attn_implementation({"text_config": "tree"})
        bf16_on_cuda = self.compute_dtype is torch.bfloat16 and self.device.type == "cuda"
        if bf16_on_cuda and is_flash_attn_2_available():
            model.set_attn_implementation({"vision_config": "flash_attention_2"})   # sdpa loops over pictures
        scorer = Scorer(model, temperature, self.processor.forbidden_ids)
        if not self.sharded:
            return scorer.to(self.device)
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, OffloadPolicy, fully_shard

        mesh = init_device_mesh(self.device.type, (self.world,))
        dtype = self.dtype if any(p.requires_grad for p in model.parameters()) else self.compute_dtype
        for unit in [*model.model.visual.blocks, *model.model.language_model.layers, scorer]:
            # Resharded after the forward pass at the root too: outside a pass every parameter is a shard.
            cast_parameters(unit, dtype)
            fully_shard(unit, mesh=mesh, reshard_after_forward=True,
                        mp_policy=MixedPrecisionPolicy(self.compute_dtype, self.dtype),
                        offload_policy=CPUOffloadPolicy() if offload else OffloadPolicy())
        return scorer

    def weights(self):
        """-> (Hugging Face name, whole tensor in compute dtype) of all weights, one after the other, for an
        engine. A tied head comes under its own name too.  All ranks must go through all of it: each tensor is
        gathered."""
        for name, tensor in self.model.state_dict().items():
            yield name, tensor.to(self.compute_dtype).full_tensor() if isinstance(tensor, DTensor) else tensor

    def whole_copy(self):
        """An unsharded, frozen model of these dimensions, for an engine; load_weights() fills it."""
        return cast_parameters(self._load(), self.compute_dtype).to(self.device).eval().requires_grad_(False)

    def pack(self, rows: list[Row]) -> tuple[dict, torch.Tensor, torch.Tensor]:
        return pack_rows(rows, self.processor, self.device, self.flex, self.packed)

    def logprobs(self, packed, reference: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
        """Log-prob and entropy of every response token, in the order rows, members, tokens: [N], [N]."""
        return (self.reference if reference else self.scorer)(*packed)

    def update(self, groups: list[grpo.Group], step: int, settings: UpdateSettings,
               auxiliary: Auxiliary | None = None) -> dict[str, float]:
        """One batch of groups -> `minibatches` optimiser steps -> metrics.  All ranks call it, each with the
        groups it sampled (or none): they are put back into the batch's order and dealt anew, so the update is
        that of one process.  The rows of an auxiliary loss are dealt in the same way."""
        # Groups with variance, and rows of the auxiliary loss: a share of both for each optimiser step.
        rows = [Row(g.prompt, g.members) for g in in_batch_order(all_gather(groups))
                if g.kind in (grpo.GroupKind.ONLINE, grpo.GroupKind.MIXED)]
        more = in_batch_order(all_gather(auxiliary.rows if auxiliary else []))
        n = settings.minibatches
        parts, extras = ([part[i::n] for i in range(n)] for part in (rows, more))

        # With several optimiser steps: log-probs before the first, in the same micro-batches as theirs.
        old = [self._old_logprobs(part, settings) for part in parts] if n > 1 else [None]

        sums: dict[str, float] = {}
        before_update: dict[str, float] = {}
        norms = []
        for part, old_part, extra in zip(parts, old, extras, strict=True):
            norms.append(self._optimizer_step(part, old_part, step, settings, sums, auxiliary, extra))
            before_update = before_update if len(norms) > 1 else dict(sums)     # here the ratio must be 1

        # Sums over micro-batches and ranks become metrics.
        total, own_norms = over_ranks(sums), [own for _, own in norms if own is not None]
        metrics = auxiliary.metrics(total, max(own_norms)) if auxiliary and own_norms else {}
        return metrics | grpo.update_metrics(total, over_ranks(before_update), {
            "grad_norm": max(norm for norm, _ in norms), "learning_rate": self.learning_rate_at(step),
            "engine_gap_max": max(all_gather(sums.get("engine_gap_max", 0.0)))})

    def shard_micro_batches(self, rows: list[Row], budget: int) -> list[list[Row]]:
        """-> this rank's micro-batches.  Every rank gets about the same number of tokens and the same number
        of micro-batches, filled up with ones that hold only a tiny picture."""
        per_rank: list[list[Row]] = [[] for _ in range(self.world)]
        for piece in rows if self.world == 1 else sorted(split_groups(rows, budget), key=lambda p: p.length,
                                                         reverse=True):
            min(per_rank, key=lambda share: sum(row.length for row in share)).append(piece)
        batches = [micro_batches(share, budget, self.packed) for share in per_rank]
        mine = batches[self.rank] + [[]] * (max(map(len, batches)) - len(batches[self.rank]))
        if self.sharded:
            mine = [batch if any(row.prompt.images for row in batch) else [*batch, self._dummy_row]
                    for batch in mine]
        return mine

    @cached_property
    def _dummy_row(self) -> Row:
        """A small picture without a response: it takes part in every collective and in no sum."""
        return Row(self.processor.prompt(Query("dummy", [BLACK_32_X_32], ".", "-", "-")), [])

    def gradient(self, rows: list[Row], settings: UpdateSettings, old: list | None = None,
                 sums: dict | None = None, auxiliary: Auxiliary | None = None, extra: Sequence[Row] = (),
                 ) -> float | None:
        """Leaves in `.grad` the gradient of the mean loss over `rows`, the same list on all ranks: equal for
        any number of ranks and any micro-batches, because sums are divided once, by a count over all of them.
        The auxiliary loss of its rows `extra` is added with its weight and a count of its own.

        -> with `extra`, the norm of the gradient without them (both are clipped as one sum).
        """
        sums = {} if sums is None else sums
        members = [m for row in rows for m in row.members]
        # The one division of the loss: by all tokens, or responses, over ranks and micro-batches.
        count = max(sum(len(m.ids) for m in members) if settings.token_mean else len(members), 1)
        self.optimizer.zero_grad()
        for i, batch in enumerate(self.shard_micro_batches(rows, settings.micro_batch_tokens)):
            loss = self._loss(batch, None if old is None else old[i], settings, sums, count)
            (loss * self.world / count).backward()             # FSDP averages over ranks, we want the sum
        own = self._norm() if auxiliary and extra else None
        for batch in self.shard_micro_batches(list(extra), settings.micro_batch_tokens):
            assert auxiliary is not None, "rows of an auxiliary loss without the loss"
            loss, counts = auxiliary.loss(self, batch)
            add_sums(sums, counts)
            (auxiliary.weight * loss * self.world / len(extra)).backward()
        for p in self.parameters.values():                   # e.g. no picture in the batch: zero, not skipped
            if p.grad is None:
                p.grad = torch.zeros_like(p)
        return own

    def _norm(self) -> float:
        norm = torch.nn.utils.get_total_norm([p.grad for p in self.parameters.values() if p.grad is not None])
        return (norm.full_tensor() if isinstance(norm, DTensor) else norm).item()

    def _loss(self, batch: list[Row], old_T, settings: UpdateSettings, sums: dict, count) -> torch.Tensor:
        packed = self.pack(batch)
        logp_T, entropy_T = self.logprobs(packed)                                     # [N], N may be 0
        members = [m for row in batch for m in row.members]

        def per_token(value, dtype=torch.float32) -> torch.Tensor:
            values = [v for m in members for v in [value(m)] * len(m.ids)]
            return torch.tensor(values, dtype=dtype, device=self.device)

        on_policy_T = per_token(lambda m: not m.rolled_back, torch.bool)
        # References (SFT) come from no engine: no gap, and old = current in every minibatch, so no clip.
        sampled_T = per_token(lambda m: bool(m.logprobs), torch.bool)
        given = [v for m in members for v in m.logprobs or [0.0] * len(m.ids)]
        given_T = torch.tensor(given, device=self.device)
        engine_T = torch.where(sampled_T, given_T, logp_T.detach())
        # One update per batch: the policy has not moved since sampling, so old = current and ρ = 1 exactly.
        old_T = logp_T.detach() if old_T is None else torch.where(sampled_T, old_T, logp_T.detach())
        old_T = self.denominator(old_T, engine_T, on_policy_T)
        # Engine and trainer are two programs: their gap is corrected.  Of rolled-back members the difference
        # is the CONTEXT GAP, how much the report raised the token: the lesson itself, so not corrected.
        gap_T = old_T - engine_T
        importance_T = gap_T.clamp(max=20.0).exp().clamp(max=settings.mismatch_cap)
        mismatch_T = torch.where(on_policy_T, importance_T, 1.0)
        ref_T = None
        if self.reference is not None:
            with torch.no_grad():
                ref_T = self.logprobs(packed, reference=True)[0]
        advantage_T = per_token(lambda m: float(m.advantage))
        weight_T = per_token(lambda m: 1.0 if settings.token_mean else 1.0 / len(m.ids))
        kl_T = on_policy_T if settings.selective_kl else torch.ones_like(on_policy_T)
        loss, more = grpo.policy_loss(
            grpo.LossInputs(logp_T, old_T, advantage_T, weight_T, on_policy_T, mismatch_T, ref_T, kl_T),
            settings.clip_low, settings.clip_high, settings.kl_coef)
        mass_T = (weight_T * advantage_T).abs()
        more |= {"entropy": entropy_T.sum(), "loss": loss.detach() / count,
                 "on_policy_tokens": on_policy_T.sum(), "engine_gap": (gap_T.abs() * on_policy_T).sum(),
                 "context_gap": (-gap_T * ~on_policy_T).sum(), "on_policy_mass": (mass_T * on_policy_T).sum(),
                 "rolled_back_mass": (mass_T * ~on_policy_T).sum()}
        add_sums(sums, more)
        sums["engine_gap_max"] = max([sums.get("engine_gap_max", 0.0), *(gap_T.abs() * on_policy_T).tolist()])
        return loss

    def denominator(self, old_T, engine_T, on_policy_T) -> torch.Tensor:
        """Old log-probs of the ratio [N]: the trainer's own, under the ORIGINAL prompt.  (The engine's, of
        the stage-2 prompt, are a trap: experiments/trap.py puts them here, to show what it does.)"""
        return old_T

    @torch.no_grad()
    def _old_logprobs(self, rows: list[Row], settings: UpdateSettings) -> list[torch.Tensor]:
        return [self.logprobs(self.pack(batch))[0]
                for batch in self.shard_micro_batches(rows, settings.micro_batch_tokens)]

    def _optimizer_step(self, rows, old, step: int, settings: UpdateSettings, sums: dict,
                        auxiliary: Auxiliary | None, extra: list[Row]) -> tuple[float, float | None]:
        """-> norm of the gradient before clipping, and with an auxiliary loss that without it."""
        own = self.gradient(rows, settings, old, sums, auxiliary, extra)
        norm = torch.nn.utils.clip_grad_norm_(self.parameters.values(), settings.max_grad_norm)
        norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
        if not torch.isfinite(norm):         # the summed gradient is the same on all ranks: all stop together
            raise FloatingPointError(f"gradient norm is {norm.item()} at step {step}, before its update")
        for parameters in self.optimizer.param_groups:
            parameters["lr"] = self.learning_rate_at(step)
        if norm > 0:                     # nothing to learn from: do not let AdamW's momentum move the weights
            self.optimizer.step()
        self.optimizer.zero_grad()            # their memory is the engine's while it samples
        return norm.item(), own

    def learning_rate_at(self, step: int) -> float:
        """Linear warm-up, then cosine down to min_lr_ratio (paper: `cosine_with_min_lr`); steps from 1."""
        if step <= self.warmup_steps:
            return self.learning_rate * step / self.warmup_steps
        progress = (step - self.warmup_steps) / max(self.total_steps - self.warmup_steps, 1)
        cosine = 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))
        return self.learning_rate * (self.min_lr_ratio + (1 - self.min_lr_ratio) * cosine)


def cast_parameters(module: torch.nn.Module, dtype: torch.dtype) -> torch.nn.Module:
    """Parameters only: a rotary frequency rounded to bf16 would turn the far positions by whole radians."""
    for p in module.parameters():
        p.data = p.data.to(dtype)
    return module


# ------------------------------------------------------------------------ rows to model input, masks, budgets

def pack_rows(rows: list[Row], processor: Processor, device: torch.device, flex: bool, packed: bool,
              ) -> tuple[dict, torch.Tensor, torch.Tensor]:
    """-> (model arguments; where [N], the flat index of the position that predicts each response token;
    targets [N]).  The last token of a response predicts nothing: it is a target, but never an input."""
    lines = [rows] if packed else [[row] for row in rows]
    width = max(sum(row.inputs for row in line) for line in lines)
    if flex:
        width = -(-width // 128) * 128              # the kernel's block; also bounds how many shapes it sees
    ids = torch.full((len(lines), width), processor.pad_id)
    positions = torch.zeros(3, len(lines), width, dtype=torch.long)
    row_of = torch.full((len(lines), width), -1)               # which row of the line; -1: padding
    owner = torch.zeros((len(lines), width), dtype=torch.long)  # 0: prompt, k: response k
    where, targets = [], []
    for i, line in enumerate(lines):
        at = 0
        for r, row in enumerate(line):
            n, first = len(row.prompt.ids), row.prompt.next_position
            ids[i, at:at + n] = torch.tensor(row.prompt.ids)
            positions[:, i, at:at + n] = torch.from_numpy(row.prompt.positions)
            row_of[i, at:at + row.inputs] = r
            last_of_prompt, at = at + n - 1, at + n
            for k, member in enumerate(row.members, start=1):
                m = len(member.ids) - 1
                ids[i, at:at + m] = torch.tensor(member.ids[:-1], dtype=torch.long)
                positions[:, i, at:at + m] = first + torch.arange(m)
                owner[i, at:at + m] = k
                where += [i * width + last_of_prompt] + list(range(i * width + at, i * width + at + m))
                targets += member.ids
                at += m
    mask = (tree_block_mask if flex else tree_mask)(row_of.to(device), owner.to(device))
    pixels = processor.pixel_batch([image for row in rows for image in row.prompt.images])
    arguments = {"input_ids": ids, "position_ids": positions, **pixels}
    return ({k: v.to(device) for k, v in arguments.items()} | {"attention_mask": mask},
            torch.tensor(where, dtype=torch.long, device=device),
            torch.tensor(targets, dtype=torch.long, device=device))


def tree_mask(row_of: torch.Tensor, owner: torch.Tensor) -> torch.Tensor:
    """Dense mask [lines, 1, L, L] bool from [lines, L]: a token sees the past of its own row, of which the
    prompt (owner 0) and its own response, never a sibling."""
    causal = torch.ones(row_of.shape[1], row_of.shape[1], dtype=torch.bool, device=row_of.device).tril()
    same_row = row_of[:, None, :] == row_of[:, :, None]
    shared = (owner[:, None, :] == 0) | (owner[:, None, :] == owner[:, :, None])
    return (causal & same_row & shared)[:, None]


def tree_block_mask(row_of: torch.Tensor, owner: torch.Tensor):
    """The same mask as blocks for FlexAttention, which skips those that are empty."""
    from torch.nn.attention.flex_attention import create_block_mask

    def sees(line, head, query, key):
        return ((query >= key) & (row_of[line, query] == row_of[line, key])
                & ((owner[line, key] == 0) | (owner[line, key] == owner[line, query])))

    lines, length = row_of.shape
    make = compile_on_cuda(create_block_mask, row_of.is_cuda)
    return make(sees, lines, None, length, length, device=row_of.device)


@lru_cache
def compile_on_cuda(function, cuda: bool):
    return torch.compile(function) if cuda else function


def tree_attention(module, query, key, value, attention_mask, scaling=None, **_):
    """Attention function for transformers: [batch, heads, L, head size] -> [batch, L, heads, head size]."""
    from torch.nn.attention.flex_attention import flex_attention

    attend = compile_on_cuda(flex_attention, query.is_cuda)
    out = attend(query, key, value, block_mask=attention_mask, scale=scaling, enable_gqa=True)
    return out.transpose(1, 2), None


def split_groups(rows: list[Row], budget: int) -> list[Row]:
    """Cuts groups that are longer than `budget` tokens between members (the prompt is then repeated); a
    single member that is longer stays whole, and so do members of one token each, which add no input: the
    letters of a choice."""
    pieces: list[Row] = []
    for row in rows:
        if all(len(member.ids) == 1 for member in row.members):
            pieces += [row] if row.members else []
            continue
        current: list[grpo.Member] = []
        for member in row.members:
            if current and Row(row.prompt, current + [member]).length > budget:
                pieces.append(Row(row.prompt, current))
                current = []
            current = current + [member]
        if current:
            pieces.append(Row(row.prompt, current))
    return pieces


def micro_batches(rows: list[Row], budget: int, packed: bool = False) -> list[list[Row]]:
    """Puts rows together: no forward pass exceeds `budget` tokens, padding included unless `packed`."""
    batches: list[list[Row]] = []
    # Rows of alike lengths side by side.
    for piece in sorted(split_groups(rows, budget), key=lambda p: p.length, reverse=True):
        if batches and (sum(row.length for row in batches[-1]) + piece.length if packed
                        else batches[-1][0].length * (len(batches[-1]) + 1)) <= budget:
            batches[-1].append(piece)
        else:
            batches.append([piece])
    return batches
