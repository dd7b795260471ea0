"""The trained model: forward pass, one optimiser step, checkpoints.  Plain data parallel over torchrun ranks.

One idea makes the update cheap: a GROUP IS ONE ROW.  Its members share a prompt, so the prompt (with all its
image tokens) goes through the model once, and the responses stand side by side behind it:

    input      [ prompt | y1 | y2 | ... | yG ]
    positions    0 .. n   n+1..  n+1..    n+1..         every response goes on right after the prompt
    attention    a token of y_k sees the prompt and its own past, never a sibling

This equals running every (prompt, response) alone, in values and in gradients (tested), at 1/G of the prompt's
cost.  A mixed group fits the same way: rolled-back members are simply further responses to the original prompt.
"""

import copy
import math
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file

import grpo
from data import Processor, Prompt


def all_sum(tensor: torch.Tensor) -> torch.Tensor:
    """Sum over ranks, in place; nothing to do on one process."""
    if dist.is_initialized():
        dist.all_reduce(tensor)
    return tensor


@dataclass
class Row:
    """A prompt and some of the responses to it."""

    prompt: Prompt
    members: list[grpo.Member]

    @property
    def length(self) -> int:
        return len(self.prompt.ids) + sum(len(m.ids) for m in self.members)


@dataclass
class UpdateSettings:
    """What the optimiser step needs of the method's settings (see Config in contextrl.py)."""

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


class Policy:
    """Model, frozen reference copy (only if KL is paid) and AdamW."""

    def __init__(self, path: str, processor: Processor, learning_rate: float = 1e-4, total_steps: int = 60,
                 warmup_steps: int = 3, min_lr_ratio: float = 0.1, weight_decay: float = 0.0,
                 temperature: float = 1.0, reference: bool = True, device: str = "cpu", dtype=torch.float32):
        from transformers import AutoModelForImageTextToText

        self.processor, self.temperature, self.device = processor, temperature, torch.device(device)
        self.model, info = AutoModelForImageTextToText.from_pretrained(
            path, dtype=dtype, attn_implementation="sdpa", output_loading_info=True)
        if info["missing_keys"]:                    # transformers would go on with random weights
            raise ValueError(f"{len(info['missing_keys'])} weights are missing: {min(info['missing_keys'])}, ...")
        self.model.to(self.device).train()
        self.reference = None
        if reference:
            self.reference = copy.deepcopy(self.model).eval().requires_grad_(False)
        self.learning_rate, self.min_lr_ratio = learning_rate, min_lr_ratio
        self.total_steps, self.warmup_steps = total_steps, warmup_steps
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=learning_rate, betas=(0.9, 0.95),
                                           weight_decay=weight_decay)

    # ---------------------------------------------------------------------------------------------- forward

    def pack(self, rows: list[Row]) -> tuple[dict, torch.Tensor, torch.Tensor]:
        """-> (model arguments, where [N] flat index of the position that predicts each response token, targets [N]).

        The last token of a response predicts nothing, so it is a target but never an input.
        """
        lengths = [len(row.prompt.ids) + sum(len(m.ids) - 1 for m in row.members) for row in rows]
        width = max(lengths)
        ids = torch.full((len(rows), width), self.processor.pad_id)
        positions = torch.zeros(3, len(rows), width, dtype=torch.long)
        owner = torch.full((len(rows), width), -1)                 # 0: prompt, k: response k, -1: padding
        where, targets = [], []
        for i, row in enumerate(rows):
            n, first = len(row.prompt.ids), row.prompt.next_position
            ids[i, :n] = torch.tensor(row.prompt.ids)
            positions[:, i, :n] = torch.from_numpy(row.prompt.positions)
            owner[i, :n] = 0
            at = n
            for k, member in enumerate(row.members, start=1):
                m = len(member.ids) - 1
                ids[i, at:at + m] = torch.tensor(member.ids[:-1], dtype=torch.long)
                positions[:, i, at:at + m] = first + torch.arange(m)
                owner[i, at:at + m] = k
                where += [i * width + n - 1] + list(range(i * width + at, i * width + at + m))
                targets += member.ids
                at += m
        causal = torch.ones(width, width, dtype=torch.bool).tril()
        visible = (owner[:, None, :] == 0) | (owner[:, None, :] == owner[:, :, None])
        attention = (causal & visible & (owner[:, None, :] >= 0)) | torch.eye(width, dtype=torch.bool)
        pixels = self.processor.pixel_batch([image for row in rows for image in row.prompt.images])
        arguments = {"input_ids": ids, "position_ids": positions, "attention_mask": attention[:, None], **pixels}
        return ({k: v.to(self.device) for k, v in arguments.items()},
                torch.tensor(where, device=self.device), torch.tensor(targets, device=self.device))

    def logprobs(self, packed, model=None) -> tuple[torch.Tensor, torch.Tensor]:
        """Log-prob and entropy of every response token, in the order rows, members, tokens: [N], [N]."""
        arguments, where, targets = packed
        model = model or self.model
        hidden = model.model(**arguments, use_cache=False).last_hidden_state.flatten(0, 1)[where]       # [N, H]
        return grpo.token_logprob(hidden, model.lm_head.weight, targets, self.temperature)

    # ----------------------------------------------------------------------------------------------- update

    def update(self, groups: list[grpo.Group], step: int, settings: UpdateSettings) -> dict[str, float]:
        """One batch of groups -> `minibatches` optimiser steps.  All ranks call it, also with no groups."""
        sums: dict[str, float] = {}
        rows = [Row(g.prompt, g.members) for g in groups
                if g.kind in (grpo.GroupKind.ONLINE, grpo.GroupKind.MIXED)]
        parts = [rows[i::settings.minibatches] for i in range(settings.minibatches)]
        old = [self._old_logprobs(part, settings) for part in parts] if settings.minibatches > 1 else [None]
        for part, old_part in zip(parts, old, strict=True):
            self._optimizer_step(part, old_part, step, settings, sums)
            if part is parts[0]:               # before anything moved, the ratio must be 1
                sums |= {f"first_{k}": sums.get(k, 0.0) for k in ("tokens", "ratio", "on_policy_tokens", "kl")}
        keys = ["first_tokens", "first_ratio", "first_on_policy_tokens", "first_kl", "tokens", "ratio", "clipped",
                "clamped", "rolled_back_tokens", "kl", "kl_rolled_back", "entropy",
                "loss", "engine_gap", "on_policy_tokens", "context_gap", "on_policy_mass", "rolled_back_mass"]
        total = dict(zip(keys, all_sum(torch.tensor([sums.get(k, 0.0) for k in keys], dtype=torch.float64)).tolist()))
        worst = torch.tensor(sums.get("engine_gap_max", 0.0), dtype=torch.float64)
        if dist.is_initialized():
            dist.all_reduce(worst, dist.ReduceOp.MAX)
        tokens, on_policy = max(total["tokens"], 1), max(total["on_policy_tokens"], 1)
        return {"loss": total["loss"], "grad_norm": sums["grad_norm"], "learning_rate": sums["learning_rate"],
                "ratio": total["ratio"] / tokens if total["tokens"] else None,
                "ratio_before_update": (total["first_ratio"] / total["first_tokens"] if total["first_tokens"]
                                        else None),
                "kl_before_update": total["first_kl"] / max(total["first_on_policy_tokens"], 1),
                "clipped_share": total["clipped"] / tokens, "clamped_share": total["clamped"] / tokens,
                "kl": total["kl"] / on_policy, "entropy": total["entropy"] / tokens,
                "engine_gap_mean": total["engine_gap"] / on_policy, "engine_gap_max": worst.item(),
                "context_gap": total["context_gap"] / max(total["rolled_back_tokens"], 1),
                "kl_rolled_back": total["kl_rolled_back"] / max(total["rolled_back_tokens"], 1),
                "rolled_back_token_share": total["rolled_back_tokens"] / tokens,
                "rolled_back_gradient_share": total["rolled_back_mass"]
                / max(total["rolled_back_mass"] + total["on_policy_mass"], 1e-12),
                "trained_tokens": total["tokens"]}

    def gradient(self, rows: list[Row], settings: UpdateSettings, old: list | None = None,
                 sums: dict | None = None) -> None:
        """Leaves in `.grad` the gradient of the mean loss over ALL ranks: the same for any split of the members
        over ranks and micro-batches, because sums are divided once, by a count that is summed over ranks."""
        sums = {} if sums is None else sums
        members = [m for row in rows for m in row.members]
        count = sum(len(m.ids) for m in members) if settings.token_mean else len(members)
        count = max(all_sum(torch.tensor(float(count), dtype=torch.float64)).item(), 1.0)       # THE division
        self.optimizer.zero_grad(set_to_none=False)
        batches = micro_batches(rows, settings.micro_batch_tokens)
        for i, batch in enumerate(batches):
            loss = self._loss(batch, None if old is None else old[i], settings, sums, count)
            (loss / count).backward()
        gradients = [p.grad if p.grad is not None else torch.zeros_like(p) for p in self.model.parameters()]
        for p, g in zip(self.model.parameters(), gradients):
            p.grad = g
        if dist.is_initialized():                                      # one collective for all parameters
            flat = torch.cat([g.flatten() for g in gradients])
            dist.all_reduce(flat)
            for g, piece in zip(gradients, flat.split([g.numel() for g in gradients])):
                g.copy_(piece.view_as(g))

    def _loss(self, batch: list[Row], old_T, settings: UpdateSettings, sums: dict, count: float) -> torch.Tensor:
        packed = self.pack(batch)
        logp_T, entropy_T = self.logprobs(packed)
        members = [m for row in batch for m in row.members]

        def per_token(value) -> torch.Tensor:
            return torch.tensor([v for m in members for v in [value(m)] * len(m.ids)], device=self.device)

        on_policy_T = per_token(lambda m: not m.rolled_back)
        # References (SFT) come from no engine: no gap, and old = current in every minibatch, so no clip either.
        sampled_T = per_token(lambda m: bool(m.logprobs))
        given_T = torch.tensor([v for m in members for v in (m.logprobs or [0.0] * len(m.ids))], device=self.device)
        engine_T = torch.where(sampled_T, given_T, logp_T.detach())
        if old_T is not None:
            old_T = torch.where(sampled_T, old_T, logp_T.detach())
        else:
            # One update per batch: the policy has not moved since sampling, so old = current and ρ = 1 exactly.
            old_T = self._with_stage2_trap(logp_T.detach(), engine_T, on_policy_T, settings)
        # Engine and trainer are two programs.  Their gap is corrected for on-policy members only: for rolled-back
        # ones the difference is the CONTEXT GAP (how much the report raised the token), which is the lesson itself.
        gap_T = old_T - engine_T
        mismatch_T = torch.where(on_policy_T, gap_T.clamp(max=20.0).exp().clamp(max=settings.mismatch_cap), 1.0)
        ref_T = None
        if self.reference is not None:
            with torch.no_grad():
                ref_T = self.logprobs(packed, self.reference)[0]
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
        sums["engine_gap_max"] = max(sums.get("engine_gap_max", 0.0), (gap_T.abs() * on_policy_T).max().item())
        return loss

    def _with_stage2_trap(self, old_T, engine_T, on_policy_T, settings: UpdateSettings) -> torch.Tensor:
        return torch.where(on_policy_T, old_T, engine_T) if settings.stage2_old_logprob else old_T

    @torch.no_grad()
    def _old_logprobs(self, rows: list[Row], settings: UpdateSettings) -> list[torch.Tensor]:
        """With several updates per batch: log-probs before the first, in the same micro-batches as the updates."""
        out = []
        for batch in micro_batches(rows, settings.micro_batch_tokens):
            members = [m for row in batch for m in row.members]
            engine_T = torch.tensor([v for m in members for v in (m.logprobs or [0.0] * len(m.ids))],
                                    device=self.device)
            on_policy_T = torch.tensor([not m.rolled_back for m in members for _ in m.ids], device=self.device)
            out.append(self._with_stage2_trap(self.logprobs(self.pack(batch))[0], engine_T, on_policy_T, settings))
        return out

    def _optimizer_step(self, rows, old, step: int, settings: UpdateSettings, sums: dict) -> None:
        self.gradient(rows, settings, old, sums)
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), settings.max_grad_norm)
        if not torch.isfinite(norm):          # the summed gradient is the same on all ranks: all stop together
            raise FloatingPointError(f"gradient norm is {norm.item()} at step {step}: stopped before the update")
        sums["grad_norm"] = max(sums.get("grad_norm", 0.0), norm.item())       # the largest of the minibatches
        sums["learning_rate"] = self.learning_rate_at(step)
        for parameters in self.optimizer.param_groups:
            parameters["lr"] = sums["learning_rate"]
        if norm > 0:                          # nothing to learn from: do not let AdamW's momentum move the weights
            self.optimizer.step()

    def learning_rate_at(self, step: int) -> float:
        """Linear warm-up, then cosine down to min_lr_ratio (the paper's `cosine_with_min_lr`); step counts from 1."""
        if step <= self.warmup_steps:
            return self.learning_rate * step / self.warmup_steps
        progress = (step - self.warmup_steps) / max(self.total_steps - self.warmup_steps, 1)
        cosine = 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))
        return self.learning_rate * (self.min_lr_ratio + (1 - self.min_lr_ratio) * cosine)

    # ------------------------------------------------------------------------------------------ checkpoints

    def save(self, folder: Path) -> None:
        """An ordinary Hugging Face checkpoint folder plus the optimiser's state.  Safetensors only."""
        self.model.save_pretrained(folder)
        self.processor.save(folder)
        state = {f"{name}.{key}": value.clone() for name, p in self.model.named_parameters()
                 for key, value in self.optimizer.state.get(p, {}).items()}
        save_file(state, folder / "optimizer.safetensors")

    def load(self, folder: Path) -> None:
        """Restores weights and optimiser state written by save().  The reference stays the start policy."""
        weights = load_file(folder / "model.safetensors")
        missing, unexpected = self.model.load_state_dict(weights, strict=False)
        tied = set(getattr(self.model, "_tied_weights_keys", None) or ())
        if unexpected or set(missing) - tied:
            raise ValueError(f"{folder}: weights of another model ({len(missing)} missing, {len(unexpected)} unknown)")
        state = load_file(folder / "optimizer.safetensors")
        if state:                                  # empty before the first update; cloned because files are mapped
            for name, p in self.model.named_parameters():
                self.optimizer.state[p] = {key: state[f"{name}.{key}"].clone()
                                           for key in ("step", "exp_avg", "exp_avg_sq")}


def micro_batches(rows: list[Row], budget: int) -> list[list[Row]]:
    """Splits rows so that no forward pass exceeds `budget` tokens with padding; a long group is split by members
    (its prompt is then repeated), a single member that is longer runs alone."""
    pieces: list[Row] = []
    for row in rows:
        current: list[grpo.Member] = []
        for member in row.members:
            if current and Row(row.prompt, current + [member]).length > budget:
                pieces.append(Row(row.prompt, current))
                current = []
            current = current + [member]
        if current:
            pieces.append(Row(row.prompt, current))
    batches: list[list[Row]] = []
    for piece in sorted(pieces, key=lambda p: p.length, reverse=True):       # alike lengths side by side
        if batches and max(batches[-1][0].length, piece.length) * (len(batches[-1]) + 1) <= budget:
            batches[-1].append(piece)
        else:
            batches.append([piece])
    return batches


def model_fingerprint(folder: str | Path) -> str:
    """The architecture of a checkpoint as one string: a run is only resumed with the model it was started with."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(folder).to_dict()                       # a folder or a hub id
    text, vision = config.get("text_config", {}), config.get("vision_config", {})
    return ", ".join(f"{k}={v}" for k, v in [
        ("type", config.get("model_type")), ("hidden", text.get("hidden_size")),
        ("layers", text.get("num_hidden_layers")), ("vocab", text.get("vocab_size")),
        ("vision_depth", vision.get("depth")), ("vision_hidden", vision.get("hidden_size"))])
