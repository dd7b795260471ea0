"""What a run will do and what it needs, without doing it: `contextrl.py ... --dry_run`.

Counted and computed from settings, data and the model's shapes; nothing is measured, no weight is loaded.
Under torchrun the memory is that of one of so many ranks.  Without --device cpu it is that of GPUs.
"""

import os
from statistics import mean

import torch

from training.checkpoint import loading
from training.config import Config
from training.parts import load_processor, load_train, model_path

SAMPLE = 1000                # reference solutions whose length is looked at
KEPT = 5e9                   # bytes of exponentials that grpo.token_logprob() keeps for the backward pass


def shapes_of(model: str) -> tuple[int, int, int, int]:
    """-> (parameters, hidden size, layers, vocabulary) of a checkpoint folder or hub id."""
    from transformers import AutoConfig, AutoModelForImageTextToText

    with loading(f"model {model}"), torch.device("meta"):
        config = AutoConfig.from_pretrained(model)
        count = sum(p.numel() for p in AutoModelForImageTextToText.from_config(config).parameters())
    text = config.text_config
    return count, text.hidden_size, text.num_hidden_layers, text.vocab_size


def plan(config: Config) -> str:
    """Schedule, samples, tokens, checkpoints and memory, as a text of aligned lines."""
    queries, world = load_train(config.data), int(os.environ.get("WORLD_SIZE", 1))
    processor = load_processor(config.model, config.max_pixels)
    parameters, hidden, layers, vocabulary = shapes_of(model_path(config.model))
    width = 4 if config.device == "cpu" or config.dtype == "float32" else 2     # bytes; compute dtype
    asked = config.steps * config.queries_per_step
    lines = {
        "data": f"{len(queries):,} queries",
        "steps": f"{config.steps:,} of {config.queries_per_step} queries: {asked / len(queries):.2f} epochs",
        "optimiser steps": f"{config.steps * (config.minibatches if config.method != 'sft' else 1):,}",
        "learning rate": f"up to {config.learning_rate:g} in {config.warmup_steps} steps, then down to "
                         f"{config.learning_rate * config.min_lr_ratio:g} as a cosine"}
    if config.method != "sft":
        samples = asked * config.group_size
        length = mean(len(processor.encode_response(query.solution)) for query in queries[:SAMPLE])
        more = " and up to as many retries" if config.stage2 else ""
        rounds = f", in up to {config.refill_rounds} rounds as many" if config.method == "dapo" else ""
        a_step = config.queries_per_step * config.group_size
        lines |= {"responses": f"{samples:,}{more}{rounds}; {a_step:,} a step",
                  "tokens sampled": f"about {samples * length:,.0f}, if a response is as long as a reference "
                                    f"({length:.0f}); at most {samples * config.max_new_tokens:,}",
                  "judge calls": f"{samples:,}{more}{rounds}"}
    saved = {*range(config.save_every, config.steps + 1, config.save_every), config.steps}
    stay = min(len(saved), config.keep_checkpoints or len(saved))
    lines["checkpoints"] = (f"{len(saved)} of {gigabytes(parameters * (12 + width))}, {stay} stay: "
                            f"{gigabytes(stay * parameters * (12 + width))}")

    micro_batch = config.micro_batch_tokens
    shares = {"weights, gradient, AdamW": 16 * parameters / world}
    if config.kl_coef:
        where = " (host memory)" if config.offload_reference else ""
        shares[f"reference{where}"] = width * parameters / world
    if config.gradient_checkpointing:
        shares["activations of a micro-batch"] = width * hidden * layers * micro_batch
    shares["log-probs of a micro-batch"] = min(KEPT, width * vocabulary * micro_batch)
    if config.engine == "vllm" and config.method != "sft":
        shares["engine's weights while sampling"] = width * parameters / config.tensor_parallel
    lines |= {"model": f"{parameters / 1e9:.3g} B parameters on {world} rank{'s' * (world > 1)}; of each"}
    lines |= {f"  {name}": gigabytes(size) for name, size in shares.items()}
    return "\n".join(f"{name:34s} {text}" for name, text in lines.items())


def gigabytes(size: float) -> str:
    return f"{size / 1e9:,.3g} GB"
