"""The policy update alone, on random weights in Qwen3-VL shapes: tokens/s, utilisation, peak memory.

    python -m experiments.speed.update                   2b, 4b and 8b on one CUDA GPU, some ten minutes
    python -m experiments.speed.update --sizes 8b --tokens 8192 --modes ours
    python -m experiments.speed.update --sizes tiny      a few seconds on a CPU: checks the script

Needs neither vLLM nor a download.  What is timed is Policy.gradient(): forward and backward pass of all
micro-batches of a batch of groups, sharded over a mesh of one (fp32 master weights, bf16 compute).  A group
is one picture of 1024 x 1024 pixels (1024 tokens), a question, and 8 responses whose lengths are drawn from a
log-normal (median 400, sigma 0.8, 32 to 2048): the spread that padding suffers from.  Modes:

    ours      a group is one row, rows end to end, FlexAttention
    apart     one response per row (its prompt repeated), rows end to end, FlexAttention
    padded    one response per row, rows padded to the longest, dense mask: what trainers without packing do

Modes take turns within a size (--rounds), after one round that is not counted: it compiles.  FLOPs are those
of the tokens of `ours`: 6 per weight and token, the head on response tokens only, attention over the pairs
that the mask shows; recomputation under checkpointing is not counted.  So a mode's speed ratio is also its
ratio of utilisation.  Their gradient norms are compared (5 %).  The peak of 989 TFLOP/s is that of an H100 or
H200.  On a CPU all modes use the dense mask and utilisation is not computed.
"""

import argparse
import gc
import json
import random
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch
import torch.distributed as dist

import toy
from data import Processor, Prompt, mrope_positions
from grpo import Member
from policy import Policy, Row, UpdateSettings, tree_mask

PEAK = 989e12          # dense bf16 FLOP/s of an H100 or H200 by its data sheet
MODES = ["ours", "apart", "padded"]
# hidden, intermediate, layers, heads, key-value heads, tied head; vision: depth, hidden, intermediate, heads,
# deepstack
SHAPES = {"tiny": ((128, 384, 4, 4, 2, True), (2, 64, 128, 4, [0])),
          "2b": ((2048, 6144, 28, 16, 8, True), (24, 1024, 4096, 16, [5, 11, 17])),
          "4b": ((2560, 9728, 36, 32, 8, True), (24, 1024, 4096, 16, [5, 11, 17])),
          "8b": ((4096, 12288, 36, 32, 8, False), (27, 1152, 4304, 16, [8, 16, 24]))}


class RandomPolicy(Policy):
    """The trainer's own class; only the weights do not come from files."""

    def _load(self):
        from transformers import AutoConfig, AutoModelForImageTextToText

        with torch.device(self.device):
            return AutoModelForImageTextToText.from_config(
                AutoConfig.from_pretrained(self.path), dtype=self.compute_dtype, attn_implementation="sdpa")


def make_folder(folder: Path, size: str) -> str:
    """Tokenizer and image processor of the built-in world, config of the given shape."""
    (hidden, inner, layers, heads, kv, tied), vision = SHAPES[size]
    depth, width, vision_inner, vision_heads, deepstack = vision
    shutil.copytree(toy.CHECKPOINT, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    config = json.loads((folder / "config.json").read_text())
    config["text_config"] |= {"hidden_size": hidden, "intermediate_size": inner, "num_hidden_layers": layers,
                              "num_attention_heads": heads, "num_key_value_heads": kv,
                              "tie_word_embeddings": tied,
                              "max_position_embeddings": 65536}
    if size != "tiny":
        config["text_config"] |= {"vocab_size": 151936, "head_dim": 128}
        config["text_config"]["rope_parameters"] |= {"rope_theta": 5e6, "mrope_section": [24, 20, 20]}
    config["vision_config"] |= {"depth": depth, "hidden_size": width, "intermediate_size": vision_inner,
                                "num_heads": vision_heads, "deepstack_visual_indexes": deepstack,
                                "out_hidden_size": hidden,
                                "num_position_embeddings": 2304 if size != "tiny" else 36}
    config["tie_word_embeddings"] = tied
    (folder / "config.json").write_text(json.dumps(config))
    return str(folder)


def make_rows(processor: Processor, groups: int, tiny: bool, pictures: bool, seed: int = 0) -> list[Row]:
    rng, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    side, median, low, high, text = (2, 10, 2, 40, 8) if tiny else (32, 400, 32, 2048, 200)
    grid = (1, 2 * side, 2 * side)
    patches = torch.randn(grid[1] * grid[2], 3 * 2 * 16 * 16, generator=generator)
    read = processor.pixels
    processor.pixels = lambda image: (patches, grid) if image == "noise" else read(image)
    rows = []
    for _ in range(groups):
        ids = [rng.randrange(500) for _ in range(8)] + [processor.image_id] * (side ** 2 if pictures else 0)
        ids += [rng.randrange(500) for _ in range(text)]
        positions = mrope_positions(ids, [grid], processor.image_id, 2)
        prompt = Prompt(ids, positions, ["noise"] if pictures else [])
        lengths = [int(min(max(rng.lognormvariate(0, 0.8) * median, low), high)) for _ in range(8)]
        rows.append(Row(prompt, [Member([rng.randrange(500) for _ in range(n)], [-6.0] * n, 0.0,
                                        advantage=rng.gauss(0, 1)) for n in lengths]))
    return rows


def flops(policy: Policy, rows: list[Row]) -> float:
    """Forward and backward pass over `rows`, each prompt once."""
    text, vision = policy.model.config.text_config, policy.model.config.vision_config
    layers = sum(p.numel() for p in policy.model.model.language_model.layers.parameters())
    tower = sum(p.numel() for p in policy.model.model.visual.parameters())
    total = 0.0
    for row in rows:
        owner = torch.cat([torch.zeros(len(row.prompt.ids)), *(torch.full((len(m.ids) - 1,), k + 1.0)
                                                               for k, m in enumerate(row.members))])[None]
        pairs = tree_mask(torch.zeros_like(owner), owner).sum().item()
        patches = sum(policy.processor.pixels(image)[0].shape[0] for image in row.prompt.images)
        responses = sum(len(m.ids) for m in row.members)
        total += 6 * layers * row.inputs + 6 * text.hidden_size * text.vocab_size * responses
        total += 12 * text.num_hidden_layers * text.num_attention_heads * text.head_dim * pairs
        total += 6 * tower * patches + 12 * vision.depth * vision.hidden_size * patches ** 2
    return total


def alone(rows: list[Row]) -> list[Row]:
    return [Row(row.prompt, [member]) for row in rows for member in row.members]


def main() -> None:
    parser = argparse.ArgumentParser("python -m experiments.speed.update", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", default=["2b", "4b", "8b"], choices=SHAPES)
    parser.add_argument("--tokens", nargs="+", type=int, default=[2048, 4096, 8192, 16384],
                        help="micro_batch_tokens")
    parser.add_argument("--modes", nargs="+", default=MODES, choices=MODES)
    parser.add_argument("--checkpointing", nargs="+", type=int, default=[1, 0], choices=[0, 1])
    parser.add_argument("--groups", type=int, default=8)
    parser.add_argument("--text_only", action="store_true", help="groups without a picture")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    cuda = torch.cuda.is_available() and args.sizes != ["tiny"]
    if not cuda and args.sizes != ["tiny"]:
        sys.exit("error: no CUDA device; --sizes tiny runs on a CPU")
    device = "cuda:0" if cuda else "cpu"
    dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo", store=dist.HashStore(), rank=0,
                            world_size=1)
    print(f"torch {torch.__version__}, {torch.cuda.get_device_name() if cuda else 'CPU'}; "
          f"medians of {args.rounds} rounds over {args.groups} groups of 8\n\n"
          "| size | tokens | checkpointing | mode | s | tokens/s | MFU | peak GiB | "
          "ours is faster by |\n|---|---|---|---|---|---|---|---|---|")
    for size in args.sizes:
        with tempfile.TemporaryDirectory() as folder:
            path = make_folder(Path(folder) / size, size)
            processor = Processor(path)
            rows = make_rows(processor, args.groups, size == "tiny", not args.text_only)
            for checkpointing in args.checkpointing:
                time_modes(path, processor, rows, device, size, checkpointing, args)
    dist.destroy_process_group()


def time_modes(path: str, processor: Processor, rows: list[Row], device: str, size: str, checkpointing: int,
               args: argparse.Namespace) -> None:
    """Prints a row for each mode and micro-batch size."""
    def build() -> RandomPolicy:
        torch.manual_seed(0)
        return RandomPolicy(path, processor, reference=False, device=device,
                            gradient_checkpointing=bool(checkpointing),
                            compute_dtype=torch.bfloat16 if device != "cpu" else None)

    def norm() -> float:
        squares = sum(p.grad.pow(2).sum() for p in policy.parameters.values())
        return squares.full_tensor().sqrt().item()

    policy = build()
    work, tokens = flops(policy, rows), sum(row.inputs for row in rows)
    for budget in args.tokens:
        settings = UpdateSettings(micro_batch_tokens=budget, kl_coef=0.0)
        seconds, peaks, norms = {mode: [] for mode in args.modes}, dict.fromkeys(args.modes, 0.0), {}
        for number in range(args.rounds + 1):
            for mode in list(seconds):
                policy.flex = device != "cpu" and mode != "padded"
                policy.packed = mode != "padded"
                policy.model.set_attn_implementation({"text_config": "tree" if policy.flex else "sdpa"})
                try:
                    if device != "cpu":
                        torch.cuda.synchronize()
                        torch.cuda.reset_peak_memory_stats()
                    began = time.perf_counter()
                    policy.gradient(rows if mode == "ours" else alone(rows), settings)
                    if device != "cpu":
                        torch.cuda.synchronize()
                except torch.OutOfMemoryError:
                    print(f"| {size} | {budget} | {checkpointing} | {mode} | out of memory |||||", flush=True)
                    del seconds[mode]
                    del policy                   # an interrupted backward pass leaves FSDP's hooks half done
                    gc.collect()
                    torch.cuda.empty_cache()
                    policy = build()
                    continue
                norms.setdefault(mode, norm())
                if number:                                # the first round compiles
                    seconds[mode].append(time.perf_counter() - began)
                    peaks[mode] = torch.cuda.max_memory_allocated() / 2**30 if device != "cpu" else 0.0
        if norms and max(norms.values()) > 1.05 * min(norms.values()):
            sys.exit(f"error: the modes do not compute the same gradient, norms {norms}")
        middle = {mode: statistics.median(times) for mode, times in seconds.items() if times}
        for mode, s in middle.items():
            ratio = f"{s / middle['ours']:.2f} x" if mode != "ours" and "ours" in middle else ""
            gpu = f"{work / s / PEAK:.3f} | {peaks[mode]:.1f}" if device != "cpu" else " | "
            print(f"| {size} | {budget} | {checkpointing} | {mode} | {s:.2f} | {tokens / s:.0f} | {gpu} | "
                  f"{ratio} |", flush=True)


if __name__ == "__main__":
    main()
