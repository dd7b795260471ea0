"""The trained model: forward pass, one optimiser step, checkpoints.  One process, or sharded over torchrun ranks.

One idea makes the update cheap: a GROUP IS ONE ROW.  Its members share a prompt, so the prompt (with all its
image tokens) goes through the model once, and the responses stand side by side behind it:

    input      [ prompt | y1 | y2 | ... | yG ]
    positions    0 .. n   n+1..  n+1..    n+1..         every response goes on right after the prompt
    attention    a token of y_k sees the prompt and its own past, never a sibling

This equals running every (prompt, response) alone, in values and in gradients (tested), at 1/G of the prompt's
cost.  A mixed group fits the same way: rolled-back members are simply further responses to the original prompt.

On a GPU the rows of a micro-batch stand end to end in one line, without padding, and FlexAttention skips the blocks
of the mask that are empty.  On a CPU every row has a line of its own, padded, and the mask is a dense matrix.

Sharding is FSDP2, one unit per decoder layer and vision block: fp32 master weights, AdamW state and gradient
reduction, bf16 compute.  Each collective inside a forward must be met by all ranks, so all run the same number of
micro-batches, and each micro-batch holds an image, if only a tiny one that no token of the loss depends on.
"""

import copy
import io
import json
import math
from collections import defaultdict
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import zip_longest
from pathlib import Path

import torch
import torch.distributed as dist
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file
from torch.distributed.tensor import DTensor

import grpo
from data import Processor, Prompt, Query


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
    """Sums of all ranks.  The names are the same on all of them, because all run the same micro-batches; 0 without."""
    values = all_sum(torch.tensor([sums[name] for name in sorted(sums)], dtype=torch.float64)).tolist()
    return defaultdict(float, zip(sorted(sums), values))


def in_batch_order(shares: list[list]) -> list:
    """What the ranks hold, in the order of the batch: of n that sample, the r-th takes items r, r + n, ... of it."""
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


def choice(prompt: Prompt, right: list[int], wrong: list[int]) -> Row:
    """A context pair as a row: its members are the forms of the two letters, one token each, R = 1 for the right one.
    They add no input, so the pair costs one pass of its prompt."""
    return Row(prompt, [grpo.Member([token], [], float(token in right)) for token in [*right, *wrong]])


@dataclass
class UpdateSettings:
    """What the optimiser step needs of the method's settings (see config.py)."""

    clip_low: float = 0.2
    clip_high: float = 0.2
    kl_coef: float = 0.01
    token_mean: bool = False              # True: mean over tokens (DAPO), False: mean over responses of token means
    selective_kl: bool = True             # rolled-back members pay no KL
    mismatch_cap: float = 2.0             # truncated importance weight engine -> trainer
    minibatches: int = 1                  # optimiser steps per batch of samples
    stage2_old_logprob: bool = False      # the trap: keep the engine's log-prob of the stage-2 prompt
    micro_batch_tokens: int = 4096        # tokens of a forward pass, padding included
    max_grad_norm: float = 1.0
    context_weight: float = 0.005         # of the auxiliary loss of context pairs (arXiv 2606.17053), if there are any
    context_limit: float = 5.0            # its margin has no gradient beyond
    context_hard: bool = True             # ... on either side, as published


def load_model(path: str, dtype: torch.dtype | str):
    """A vision-language model of a checkpoint folder or hub id, on the CPU."""
    from transformers import AutoModelForImageTextToText

    model, info = AutoModelForImageTextToText.from_pretrained(path, dtype=dtype, attn_implementation="sdpa",
                                                              output_loading_info=True)
    if info["missing_keys"]:                        # transformers would go on with random weights
        raise ValueError(f"{len(info['missing_keys'])} weights are missing: {min(info['missing_keys'])}, ...")
    return model


class Scorer(torch.nn.Module):
    """Log-prob and entropy of chosen tokens in ONE forward pass, head included: sharded weights are gathered by the
    hooks of the module that is called, so nothing may reach into the model around it."""

    def __init__(self, model, temperature: float, forbidden: list[int]):
        super().__init__()
        self.model, self.temperature = model, temperature
        self.register_buffer("forbidden", torch.zeros(len(model.lm_head.weight), dtype=torch.bool), persistent=False)
        self.forbidden[forbidden] = True

    def forward(self, arguments: dict, where: torch.Tensor, targets: torch.Tensor):
        hidden = self.model.model(**arguments, use_cache=False).last_hidden_state.flatten(0, 1)[where]       # [N, H]
        return grpo.token_logprob(hidden, self.model.lm_head.weight, targets, self.temperature, True,
                                  self.forbidden)


class Policy:
    """Model, frozen reference copy (only if KL is paid) and AdamW.

    Sharded as soon as torch.distributed is initialised; every method is then called by all ranks.
      dtype             of the master weights (and of everything else, unless compute_dtype says otherwise)
      compute_dtype     of forward and backward pass and of the reference, e.g. bfloat16; sharded policies only
      attention         'flex' or 'sdpa'; None: flex on CUDA, sdpa elsewhere (flex has no backward pass on CPU)
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
        self.packed = self.flex                        # a dense mask over all rows end to end would be mostly empty
        self.model = self._load().train()
        self.model.model.visual.requires_grad_(not freeze_vision)
        if gradient_checkpointing:
            self.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        self.scorer, self.reference = self._scorer(self.model, temperature), None
        if reference:                                  # after the shards: two whole models would need the host's memory
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
        if self.compute_dtype is torch.bfloat16 and self.device.type == "cuda" and is_flash_attn_2_available():
            model.set_attn_implementation({"vision_config": "flash_attention_2"})       # sdpa loops over pictures
        scorer = Scorer(model, temperature, self.processor.forbidden_ids)
        if not self.sharded:
            return scorer.to(self.device)
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, OffloadPolicy, fully_shard

        mesh = init_device_mesh(self.device.type, (self.world,))
        dtype = self.dtype if any(p.requires_grad for p in model.parameters()) else self.compute_dtype
        for unit in [*model.model.visual.blocks, *model.model.language_model.layers, scorer]:
            # Resharded after the forward pass at the root too: outside a pass every parameter is a shard.
            cast(unit, dtype)
            fully_shard(unit, mesh=mesh, reshard_after_forward=True,
                        mp_policy=MixedPrecisionPolicy(self.compute_dtype, self.dtype),
                        offload_policy=CPUOffloadPolicy() if offload else OffloadPolicy())
        return scorer

    def weights(self):
        """-> (Hugging Face name, whole tensor in compute dtype) of all weights, one after the other, for an engine.
        A tied head comes under its own name too.  All ranks must go through all of it: each tensor is gathered."""
        for name, tensor in self.model.state_dict().items():
            yield name, tensor.to(self.compute_dtype).full_tensor() if isinstance(tensor, DTensor) else tensor

    def whole_copy(self):
        """An unsharded, frozen model with these dimensions, for an engine that needs one; load_weights() fills it."""
        return cast(self._load(), self.compute_dtype).to(self.device).eval().requires_grad_(False)

    # ---------------------------------------------------------------------------------------------- forward

    def pack(self, rows: list[Row]) -> tuple[dict, torch.Tensor, torch.Tensor]:
        """-> (model arguments, where [N] flat index of the position that predicts each response token, targets [N]).

        The last token of a response predicts nothing, so it is a target but never an input.
        """
        lines = [rows] if self.packed else [[row] for row in rows]
        width = max(sum(row.inputs for row in line) for line in lines)
        if self.flex:
            width = -(-width // 128) * 128              # the kernel's block; also bounds how many shapes it sees
        ids = torch.full((len(lines), width), self.processor.pad_id)
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
        mask = (tree_block_mask if self.flex else tree_mask)(row_of.to(self.device), owner.to(self.device))
        pixels = self.processor.pixel_batch([image for row in rows for image in row.prompt.images])
        arguments = {"input_ids": ids, "position_ids": positions, **pixels}
        return ({k: v.to(self.device) for k, v in arguments.items()} | {"attention_mask": mask},
                torch.tensor(where, dtype=torch.long, device=self.device),
                torch.tensor(targets, dtype=torch.long, device=self.device))

    def logprobs(self, packed, reference: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
        """Log-prob and entropy of every response token, in the order rows, members, tokens: [N], [N]."""
        return (self.reference if reference else self.scorer)(*packed)

    # ----------------------------------------------------------------------------------------------- update

    def update(self, groups: list[grpo.Group], step: int, settings: UpdateSettings,
               choices: list[Row] = ()) -> dict[str, float]:
        """One batch of groups -> `minibatches` optimiser steps.  All ranks call it, each with the groups it sampled
        (or none): they are put back into the batch's order and dealt anew, so the update is that of one process.
        `choices`: context pairs for the auxiliary loss, dealt in the same way."""
        rows = [Row(g.prompt, g.members) for g in in_batch_order(all_gather(groups))
                if g.kind in (grpo.GroupKind.ONLINE, grpo.GroupKind.MIXED)]
        pairs = in_batch_order(all_gather(list(choices)))
        parts = [rows[i::settings.minibatches] for i in range(settings.minibatches)]
        pairs = [pairs[i::settings.minibatches] for i in range(settings.minibatches)]
        old = [self._old_logprobs(part, settings) for part in parts] if settings.minibatches > 1 else [None]
        sums: dict[str, float] = {}
        norms = [self._optimizer_step(parts[0], old[0], step, settings, sums, pairs[0])]
        first = dict(sums)                                # of log-probs from before anything moved: the ratio must be 1
        for part, before, more in zip(parts[1:], old[1:], pairs[1:], strict=True):
            norms.append(self._optimizer_step(part, before, step, settings, sums, more))

        worst_gap = max(all_gather(sums.get("engine_gap_max", 0.0)))
        total, first = over_ranks(sums), over_ranks(first)

        def mean(name: str, count: str = "tokens", of: dict = total) -> float:
            return of[name] / max(of[count], 1)

        mass = total["rolled_back_mass"] + total["on_policy_mass"]
        context = {f"context/{name}": mean(f"context_{key}", "context_pairs") for name, key in
                   (("loss", "loss"), ("accuracy", "right"), ("margin", "margin"), ("hopeless_share", "hopeless"))}
        if total["context_pairs"]:
            context |= {"context/pairs": total["context_pairs"],
                        "context/grad_norm_without": max(own for _, own in norms if own is not None)}
        return {**(context if total["context_pairs"] else {}), "loss": total["loss"],
                "grad_norm": max(norm for norm, _ in norms), "learning_rate": self.learning_rate_at(step),
                "ratio": mean("ratio") if total["tokens"] else None,
                "ratio_before_update": mean("ratio", of=first) if first["tokens"] else None,
                "kl_before_update": mean("kl", "on_policy_tokens", first),
                "clipped_share": mean("clipped"), "clamped_share": mean("clamped"), "entropy": mean("entropy"),
                "kl": mean("kl", "on_policy_tokens"), "kl_rolled_back": mean("kl_rolled_back", "rolled_back_tokens"),
                "engine_gap_mean": mean("engine_gap", "on_policy_tokens"), "engine_gap_max": worst_gap,
                "context_gap": mean("context_gap", "rolled_back_tokens"),
                "rolled_back_token_share": mean("rolled_back_tokens"),
                "rolled_back_gradient_share": total["rolled_back_mass"] / max(mass, 1e-12),
                "trained_tokens": total["tokens"]}

    def _deal(self, rows: list[Row], budget: int) -> list[list[Row]]:
        """-> this rank's micro-batches.  Every rank gets about the same number of tokens and the same number of
        micro-batches, filled up with ones that hold only a tiny picture."""
        hands: list[list[Row]] = [[] for _ in range(self.world)]
        for piece in rows if self.world == 1 else sorted(split(rows, budget), key=lambda p: p.length, reverse=True):
            min(hands, key=lambda hand: sum(row.length for row in hand)).append(piece)
        dealt = [micro_batches(hand, budget, self.packed) for hand in hands]
        mine = dealt[self.rank] + [[]] * (max(map(len, dealt)) - len(dealt[self.rank]))
        if self.sharded:
            mine = [batch if any(row.prompt.images for row in batch) else [*batch, self._tiny] for batch in mine]
        return mine

    @cached_property
    def _tiny(self) -> Row:
        """A prompt with the smallest picture and no response: it takes part in every collective and in no sum."""
        picture = io.BytesIO()
        Image.new("RGB", (32, 32)).save(picture, "PNG")
        return Row(self.processor.prompt(Query("tiny", [picture.getvalue()], ".", "-", "-")), [])

    def gradient(self, rows: list[Row], settings: UpdateSettings, old: list | None = None,
                 sums: dict | None = None, choices: list[Row] = ()) -> float | None:
        """Leaves in `.grad` the gradient of the mean loss over `rows`, the same list on all ranks: equal for any
        number of ranks and any micro-batches, because sums are divided once, by a count over all of them.  The
        auxiliary loss of `choices` is added with its weight and a count of its own, so neither thins the other.

        -> with choices, the norm of the gradient without them: the sum is clipped as one, so a large auxiliary
        gradient does leave less of a clipped step to the method's own.
        """
        sums = {} if sums is None else sums
        members = [m for row in rows for m in row.members]
        count = max(sum(len(m.ids) for m in members) if settings.token_mean else len(members), 1)   # THE division
        self.optimizer.zero_grad()
        for i, batch in enumerate(self._deal(rows, settings.micro_batch_tokens)):
            loss = self._loss(batch, None if old is None else old[i], settings, sums, count)
            (loss * self.world / count).backward()             # FSDP averages over ranks, we want the sum
        own = self._norm() if choices else None
        for batch in self._deal(choices, settings.micro_batch_tokens):
            loss = self._context_loss(batch, settings, sums)
            (settings.context_weight * loss * self.world / len(choices)).backward()
        for p in self.parameters.values():                     # e.g. no picture in the batch: zero, not skipped
            if p.grad is None:
                p.grad = torch.zeros_like(p)
        return own

    def _norm(self) -> float:
        norm = torch.nn.utils.get_total_norm([p.grad for p in self.parameters.values() if p.grad is not None])
        return (norm.full_tensor() if isinstance(norm, DTensor) else norm).item()

    def _loss(self, batch: list[Row], old_T, settings: UpdateSettings, sums: dict, count: float) -> torch.Tensor:
        packed = self.pack(batch)
        logp_T, entropy_T = self.logprobs(packed)                                     # [N], N may be 0
        members = [m for row in batch for m in row.members]

        def per_token(value, dtype=torch.float32) -> torch.Tensor:
            return torch.tensor([v for m in members for v in [value(m)] * len(m.ids)], dtype=dtype, device=self.device)

        on_policy_T = per_token(lambda m: not m.rolled_back, torch.bool)
        # References (SFT) come from no engine: no gap, and old = current in every minibatch, so no clip either.
        sampled_T = per_token(lambda m: bool(m.logprobs), torch.bool)
        given_T = torch.tensor([v for m in members for v in (m.logprobs or [0.0] * len(m.ids))], device=self.device)
        engine_T = torch.where(sampled_T, given_T, logp_T.detach())
        # One update per batch: the policy has not moved since sampling, so old = current and ρ = 1 exactly.
        old_T = logp_T.detach() if old_T is None else torch.where(sampled_T, old_T, logp_T.detach())
        if settings.stage2_old_logprob:
            old_T = torch.where(on_policy_T, old_T, engine_T)
        # Engine and trainer are two programs.  Their gap is corrected for on-policy members only: for rolled-back
        # ones the difference is the CONTEXT GAP (how much the report raised the token), which is the lesson itself.
        gap_T = old_T - engine_T
        mismatch_T = torch.where(on_policy_T, gap_T.clamp(max=20.0).exp().clamp(max=settings.mismatch_cap), 1.0)
        ref_T = None
        if self.reference is not None:
            with torch.no_grad():
                ref_T = self.logprobs(packed, reference=True)[0]
        advantage_T = per_token(lambda m: float(m.advantage))
        weight_T = per_token(lambda m: 1.0 if settings.token_mean else 1.0 / len(m.ids))
        loss, more = grpo.policy_loss(
            logp_T, old_T, advantage_T, weight_T, on_policy_T, settings.clip_low, settings.clip_high, mismatch_T,
            ref_T, settings.kl_coef, on_policy_T if settings.selective_kl else torch.ones_like(on_policy_T))
        mass_T = (weight_T * advantage_T).abs()
        more |= {"entropy": entropy_T.sum(), "loss": loss.detach() / count, "on_policy_tokens": on_policy_T.sum(),
                 "engine_gap": (gap_T.abs() * on_policy_T).sum(), "context_gap": (-gap_T * ~on_policy_T).sum(),
                 "on_policy_mass": (mass_T * on_policy_T).sum(), "rolled_back_mass": (mass_T * ~on_policy_T).sum()}
        for key, value in more.items():
            sums[key] = sums.get(key, 0.0) + value.item()
        sums["engine_gap_max"] = max([sums.get("engine_gap_max", 0.0), *(gap_T.abs() * on_policy_T).tolist()])
        return loss

    def margins(self, batch: list[Row]) -> tuple[torch.Tensor, torch.Tensor]:
        """-> log-probs of the right and of the wrong letter of every choice, at temperature 1 up to a constant that
        both share: [N], [N].  A letter may have two forms, with and without a blank before it: the likelier counts."""
        logp = self.logprobs(self.pack(batch))[0] * self.scorer.temperature
        best, at = [], 0
        for row in batch:
            if row.members:                                               # else the tiny one
                forms = torch.tensor([m.reward == 1.0 for m in row.members], device=self.device)
                own = logp[at:at + len(forms)]
                best.append(torch.stack([own[forms].max(), own[~forms].max()]))
                at += len(forms)
        return (torch.stack(best) if best else logp.view(0, 2)).unbind(1)

    def _context_loss(self, batch: list[Row], settings: UpdateSettings, sums: dict) -> torch.Tensor:
        loss, more = grpo.context_loss(*self.margins(batch), settings.context_limit, settings.context_hard)
        for key, value in more.items():
            sums[key] = sums.get(key, 0.0) + value.item()
        return loss

    @torch.no_grad()
    def _old_logprobs(self, rows: list[Row], settings: UpdateSettings) -> list[torch.Tensor]:
        """With several updates per batch: log-probs before the first, in the same micro-batches as the updates."""
        return [self.logprobs(self.pack(batch))[0] for batch in self._deal(rows, settings.micro_batch_tokens)]

    def _optimizer_step(self, rows, old, step: int, settings: UpdateSettings, sums: dict,
                        choices: list[Row]) -> tuple[float, float | None]:
        """-> norm of the gradient before clipping, and with choices that without them; learning rate of `step`."""
        own = self.gradient(rows, settings, old, sums, choices)
        norm = torch.nn.utils.clip_grad_norm_(self.parameters.values(), settings.max_grad_norm)
        norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
        if not torch.isfinite(norm):          # the summed gradient is the same on all ranks: all stop together
            raise FloatingPointError(f"gradient norm is {norm.item()} at step {step}: stopped before the update")
        for parameters in self.optimizer.param_groups:
            parameters["lr"] = self.learning_rate_at(step)
        if norm > 0:                          # nothing to learn from: do not let AdamW's momentum move the weights
            self.optimizer.step()
        self.optimizer.zero_grad()            # their memory is the engine's while it samples
        return norm.item(), own

    def learning_rate_at(self, step: int) -> float:
        """Linear warm-up, then cosine down to min_lr_ratio (the paper's `cosine_with_min_lr`); step counts from 1."""
        if step <= self.warmup_steps:
            return self.learning_rate * step / self.warmup_steps
        progress = (step - self.warmup_steps) / max(self.total_steps - self.warmup_steps, 1)
        cosine = 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))
        return self.learning_rate * (self.min_lr_ratio + (1 - self.min_lr_ratio) * cosine)

    # ------------------------------------------------------------------------------------------ checkpoints

    def save(self, folder: Path) -> None:
        """Into one folder that all ranks see: an ordinary Hugging Face checkpoint (whole weights, compute dtype) and,
        in trainer/, one file per rank with its shards of master weights and optimiser state.  Safetensors only; in a
        folder of their own, because vLLM takes every such file beside the model for a part of it."""
        state = {f"weight.{name}": local(p).detach() for name, p in self.model.named_parameters()}
        state |= {f"{key}.{name}": local(value) for name, p in self.parameters.items()
                  for key, value in self.optimizer.state.get(p, {}).items()}
        (folder / "trainer").mkdir(exist_ok=True)
        save_file({name: tensor.cpu().clone() for name, tensor in state.items()},
                  folder / "trainer" / f"{self.rank:05d}-of-{self.world:05d}.safetensors")
        tied = set(self.model.state_dict()) - {name for name, _ in self.model.named_parameters()}
        whole = {}
        for name, tensor in self.weights():                                     # gathered by all, kept by one
            if self.rank == 0 and name not in tied:
                whole[name] = tensor.detach().cpu()
        if self.rank == 0:
            self.model.save_pretrained(folder, state_dict=whole)
            config = json.loads((folder / "config.json").read_text())
            for part in (config, config.get("text_config", {}), config.get("vision_config", {})):
                part["dtype"] = str(self.compute_dtype)[6:]                     # of the file, not of the master weights
            (folder / "config.json").write_text(json.dumps(config, indent=2))
            self.processor.save(folder)

    def load(self, folder: Path) -> None:
        """Restores what save() wrote, on any number of ranks.  The reference stays the start policy."""
        files = sorted(folder.glob("trainer/*-of-*.safetensors"))
        if not files or len(files) != int(files[0].stem[-5:]):
            raise ValueError(f"{folder}/trainer: {len(files)} files, that is not all of them")
        own = self.world == len(files)
        shards = [safe_open(file, "pt") for file in (files[self.rank:self.rank + 1] if own else files)]

        def read(name: str, into: torch.Tensor) -> None:
            pieces = [shard.get_tensor(name) for shard in shards]
            whole = torch.cat(pieces) if len(pieces) > 1 and pieces[0].dim() else pieces[0]
            if isinstance(into, DTensor) and not own:
                parts = whole.chunk(self.world)                                 # FSDP2 cuts the first dimension
                whole = parts[self.rank] if self.rank < len(parts) else whole[:0]
            if local(into).shape != whole.shape:
                raise ValueError(f"{folder}: {name} is {tuple(whole.shape)}, not {tuple(local(into).shape)}")
            local(into).copy_(whole)

        names = set(shards[0].keys())
        expected = {f"weight.{name}" for name, _ in self.model.named_parameters()}
        if {name for name in names if name.startswith("weight.")} != expected:
            raise ValueError(f"{folder}: weights of another model")
        with torch.no_grad():
            for name, p in self.model.named_parameters():
                read(f"weight.{name}", p)
            if names != expected:                                               # no state before the first update
                for name, p in self.parameters.items():
                    state = {"step": torch.tensor(0.0)} | {k: torch.zeros_like(p) for k in ("exp_avg", "exp_avg_sq")}
                    for key, value in state.items():
                        read(f"{key}.{name}", value)
                    self.optimizer.state[p] = state


def cast(module: torch.nn.Module, dtype: torch.dtype) -> torch.nn.Module:
    """Parameters only: a rotary frequency rounded to bf16 would turn the far positions by whole radians."""
    for p in module.parameters():
        p.data = p.data.to(dtype)
    return module


def local(tensor: torch.Tensor) -> torch.Tensor:
    """This rank's shard of a sharded tensor; any other as it is."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


# ------------------------------------------------------------------------------------------------- masks and budgets

def tree_mask(row_of: torch.Tensor, owner: torch.Tensor) -> torch.Tensor:
    """Dense mask [lines, 1, L, L] bool from [lines, L]: a token sees the past of its own row, of which the prompt
    (owner 0) and its own response, never a sibling."""
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
    return compiled(create_block_mask, row_of.is_cuda)(sees, lines, None, length, length, device=row_of.device)


@lru_cache
def compiled(function, cuda: bool):
    return torch.compile(function) if cuda else function


def tree_attention(module, query, key, value, attention_mask, scaling=None, **_):
    """Attention function for transformers: [batch, heads, L, head size] -> [batch, L, heads, head size]."""
    from torch.nn.attention.flex_attention import flex_attention

    out = compiled(flex_attention, query.is_cuda)(query, key, value, block_mask=attention_mask, scale=scaling,
                                                  enable_gqa=True)
    return out.transpose(1, 2), None


def split(rows: list[Row], budget: int) -> list[Row]:
    """Cuts groups that are longer than `budget` tokens between members (the prompt is then repeated); a single member
    that is longer stays whole, and so do members of one token each, which add no input: the letters of a choice."""
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
    """Puts rows together so that no forward pass exceeds `budget` tokens, padding included unless `packed`."""
    batches: list[list[Row]] = []
    for piece in sorted(split(rows, budget), key=lambda p: p.length, reverse=True):       # alike lengths side by side
        if batches and (sum(row.length for row in batches[-1]) + piece.length if packed
                        else batches[-1][0].length * (len(batches[-1]) + 1)) <= budget:
            batches[-1].append(piece)
        else:
            batches.append([piece])
    return batches
