"""Every setting of a run, flat; what depends on the method is filled in, and what cannot work is refused in
one line.

    python contextrl.py --help                 lists them
    python contextrl.py FILE.json --steps 9    reads a JSON file with the same names (of settings/, or a run's
                                               config.json); of several files the later ones win, then flags
"""

import json
import math
from dataclasses import dataclass, field, fields
from importlib.util import find_spec
from itertools import takewhile
from pathlib import Path
from typing import Literal

import torch

from data import DataError
from policy import UpdateSettings
from tools.programs import first_line


def setting(default, text: str):
    return field(default=default, metadata={"help": text})


MINIMUM = {"steps": 1, "stop_after": 0, "queries_per_step": 1, "group_size": 2, "max_new_tokens": 1,
           "max_context": 2, "tensor_parallel": 1, "judge_concurrency": 1, "max_pixels": 4096, "seed": 0,
           "warmup_steps": 0, "min_lr_ratio": 0, "weight_decay": 0, "minibatches": 1, "micro_batch_tokens": 1,
           "kl_coef": 0, "context_weight": 0, "context_batch": 1, "refill_rounds": 1, "overlong_buffer": 1,
           "eval_every": 0, "save_every": 1, "keep_checkpoints": 0}
POSITIVE = ("temperature", "learning_rate", "max_grad_norm", "clip_high", "mismatch_cap", "engine_memory",
              "judge_timeout")


@dataclass
class Config:
    """Every setting, flat."""

    method: Literal["contextrl", "grpo", "dapo", "sft"] = setting("contextrl", "what to train with")
    model: str = setting("", "start policy: checkpoint folder or hub id; empty: the built-in world's")
    data: str = setting("", "training queries: a JSONL file (data.py); empty: the built-in world")
    eval_data: str = setting("", "held-out queries, as --data; empty: the built-in world's, or none")
    verifier: str = setting(
        "", "who judges: URLs of OpenAI-compatible servers (commas between), a model to run in process, "
        "'rule' (the final answer alone), or a file of yours, NAME.py (judges/custom.py); empty: the "
        "built-in world's exact verifier")
    judge_prompt: str = setting("", "file of what the judge reads; empty: prompts/judge_*.txt")
    retry_prompt: str = setting("", "file with what stage 2 says; empty: prompts/retry.txt")
    judge_model: str = setting("", "name of the model at the URL; empty: the one that is served")
    judge_concurrency: int = setting(32, "judge calls under way at once, per rank")
    judge_timeout: float = setting(120.0, "seconds for one try of a judge call")
    judge_max_failed: float = setting(0.2, "stop if more than this share of the last verdicts failed")
    output_dir: str = setting("", "run folder; empty: runs/<time>-<method>")
    seed: int = setting(0, "seed of data order and of every sample")

    steps: int = setting(120, "steps of the whole run (the learning-rate schedule ends there)")
    stop_after: int = setting(0, "end this session after that step; --resume goes on (0: run to the end)")
    queries_per_step: int = setting(16, "queries per step, over all ranks")
    group_size: int = setting(8, "K, stage-1 samples per query")
    max_new_tokens: int = setting(32, "longest response")
    temperature: float = setting(1.0, "sampling temperature; the trainer's log-probs use the same")
    engine: Literal["hf", "vllm"] = setting("hf", "who samples: transformers, or vLLM inside every rank")
    max_context: int = setting(4096, "vLLM: longest prompt + response; stage 2 needs room for the failed try "
                                     "(and the longest text of a context pair, any engine)")
    tensor_parallel: int = setting(1, "vLLM: ranks that share one engine")
    engine_memory: float = setting(0.5, "vLLM: share of the GPU for weights and KV cache while sampling")
    barrier: bool = setting(False, "finish stage 1 and its verdicts before stage 2 starts; vLLM else runs "
                                   "all as one continuous batch")
    max_pixels: int = setting(3_000_000, "largest image area after resizing")

    verifier_context: Literal["solution", "answer", "none"] = setting("solution", "what the judge is told")
    stage2: bool = setting(True, "retry queries without a positive (contextrl only)")
    report: bool = setting(True, "show the mistake report in stage 2; without: only that the try was wrong")
    mixed_scale: float = setting(0.5, "λ in (0, 1]: scales the advantages of a mixed group; 1: not at all")
    selective_kl: bool = setting(True, "rolled-back members pay no KL")

    learning_rate: float = setting(1.5e-4, "peak learning rate")
    warmup_steps: int = setting(3, "linear warm-up")
    min_lr_ratio: float = setting(0.1, "cosine decay ends at this share of the peak")
    weight_decay: float = setting(0.0, "AdamW")
    max_grad_norm: float = setting(1.0, "gradient clipping")
    minibatches: int = setting(2, "optimiser steps per batch of samples")
    micro_batch_tokens: int = setting(4096, "tokens of one forward pass; does not change the result")
    dtype: Literal["auto", "float32", "bfloat16"] = setting(
        "auto", "of forward and backward pass and engine; master weights are fp32; auto: bfloat16 on CUDA")
    attention: Literal["auto", "flex", "sdpa"] = setting("auto", "auto: flex on CUDA, sdpa on a CPU")
    gradient_checkpointing: bool = setting(False, "compute activations twice instead of keeping them")
    freeze_vision: bool = setting(False, "do not train the vision tower")
    offload_reference: bool = setting(False, "keep the reference model's shards in CPU memory (CUDA only)")
    clip_low: float = setting(0.2, "ε_low")
    clip_high: float | None = setting(None, "ε_high; default 0.2, DAPO 0.28")
    kl_coef: float | None = setting(None, "β; default 0.01, DAPO and SFT 0; 0 loads no reference model")
    token_mean: bool | None = setting(None, "mean over tokens (DAPO, SFT) or over responses (others)")
    mismatch_cap: float = setting(2.0, "cap of the importance weight that corrects engine against trainer")
    refill_rounds: int = setting(3, "DAPO: at most this many sampling rounds to fill a batch")
    overlong_buffer: int = setting(8, "DAPO: soft length penalty over the last tokens before max_new_tokens")

    context_pairs: str = setting("", "context pairs: a file, folder or data set id, or 'toy'; empty: none")
    context_weight: float = setting(0.005, "of their auxiliary loss (arXiv 2606.17053: 0.001 to 0.005)")
    context_batch: int = setting(32, "context pairs per optimiser step")

    eval_every: int = setting(15, "steps between evaluations (T = 1); 0: only at the start and the end")
    save_every: int = setting(30, "steps between checkpoints; one is always written at the end")
    keep_checkpoints: int = setting(2, "so many of the newest checkpoints stay; 0: all")
    resume: bool = setting(False, "go on from the last checkpoint in output_dir, or start there")
    dry_run: bool = setting(False, "print schedule, samples, checkpoints and memory of the run, and stop")
    rollout_only: bool = setting(False, "sample and verify, write rollouts.jsonl, train nothing")
    rollouts_from: str = setting("", "train from a recorded rollouts.jsonl, without engine or judge")
    self_check: bool = setting(True, "stop if a number of the first step is not what it has to be")
    device: str = setting("auto", "auto, cpu or cuda")

    def resolve(self) -> "Config":
        """Fills in what depends on the method and refuses what cannot work, before anything is loaded."""
        dapo, sft = self.method == "dapo", self.method == "sft"
        self.clip_high = self.clip_high if self.clip_high is not None else (0.28 if dapo else 0.2)
        self.kl_coef = self.kl_coef if self.kl_coef is not None else (0.0 if dapo or sft else 0.01)
        self.token_mean = self.token_mean if self.token_mean is not None else (dapo or sft)
        self.stage2 = self.stage2 and self.method == "contextrl"
        for name, least in MINIMUM.items():
            if not least <= getattr(self, name) < math.inf:
                raise DataError(f"--{name} must be at least {least}, not {getattr(self, name)}")
        for name in POSITIVE:
            if not 0 < getattr(self, name) < math.inf:
                raise DataError(f"--{name} must be above 0, not {getattr(self, name)}")
        for bad, message in [
            (not 0 < self.mixed_scale <= 1, f"--mixed_scale (λ) must be in (0, 1], not {self.mixed_scale}"),
            (not 0 < self.clip_low < 1, f"--clip_low must be in (0, 1), not {self.clip_low}"),
            (self.rollout_only and bool(self.rollouts_from),
             "--rollout_only and --rollouts_from exclude each other"),
            (sft and (self.rollout_only or bool(self.rollouts_from)), "--method sft has no rollouts"),
            (self.device not in ("auto", "cpu", "cuda"),
             f"--device must be auto, cpu or cuda, not {self.device}"),
            (self.device == "cuda" and not torch.cuda.is_available(),
             "--device cuda: no CUDA device is available"),
            (dapo and self.overlong_buffer >= self.max_new_tokens,
             f"--overlong_buffer {self.overlong_buffer} is not below --max_new_tokens {self.max_new_tokens}"),
            (self.engine_memory >= 1, f"--engine_memory must be below 1, not {self.engine_memory}"),
            (not 0 <= self.judge_max_failed < 1,
             f"--judge_max_failed must be in [0, 1), not {self.judge_max_failed}"),
            (self.verifier == "rule" and self.verifier_context != "answer",
             "--verifier rule sees nothing but the answer: --verifier_context answer"),
            (self.engine != "vllm" and self.tensor_parallel > 1, "--tensor_parallel needs --engine vllm"),
            (self.engine == "vllm" and not find_spec("vllm"), "--engine vllm: vllm is not installed"),
            (self.max_context <= self.max_new_tokens and self.engine == "vllm",
             f"--max_context {self.max_context} leaves no room for a prompt beside --max_new_tokens"),
            (self.attention == "flex" and not self.on_cuda(),
             "--attention flex has no backward pass on a CPU"),
            (self.dtype == "bfloat16" and not self.on_cuda(), "--dtype bfloat16 needs CUDA"),
            (self.offload_reference and not self.on_cuda(), "--offload_reference needs CUDA"),
            (self.rollout_only and bool(self.context_pairs),
             "--rollout_only trains nothing: no --context_pairs"),
            (self.resume and not self.output_dir, "--resume needs --output_dir"),
            (bool(self.rollouts_from) and not Path(self.rollouts_from).is_file(),
             f"--rollouts_from: no such file {self.rollouts_from}"),
        ]:
            if bad:
                raise DataError(message)
        return self

    def on_cuda(self) -> bool:
        return self.device != "cpu" and torch.cuda.is_available()

    def update_settings(self) -> UpdateSettings:
        shared = {f.name for f in fields(UpdateSettings)} & {f.name for f in fields(self)}
        return UpdateSettings(**{name: getattr(self, name) for name in shared})


def read_config(arguments: list[str]) -> Config:
    """Command line; JSON files with the same names may stand before it."""
    from transformers import HfArgumentParser

    parser = HfArgumentParser(Config, description=__doc__.split("\n\n")[0], allow_abbrev=False)

    def refuse(message: str):
        raise DataError(message)
    parser.error = refuse                                   # one line instead of a page of usage
    files = list(takewhile(lambda word: word.endswith(".json"), arguments))
    given: dict = {}
    for file in files:
        try:
            settings = json.loads(Path(file).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise DataError(f"cannot read settings from {file}: {first_line(error)}") from None
        if not isinstance(settings, dict):
            raise DataError(f"cannot read settings from {file}: not a JSON object")
        given |= {name: value for name, value in settings.items() if value is not None}
    words = [word for name, value in given.items() for word in (f"--{name}", str(value))]
    try:
        return parser.parse_args_into_dataclasses(words + arguments[len(files):])[0].resolve()
    except ValueError as error:
        raise DataError(first_line(error)) from None
