"""Log-prob of the sampled token: time, memory and error of grpo.py's and of its peers.

    python -m experiments.speed.logprob             all shapes on one CUDA GPU in bf16; one on a CPU in fp32
    python -m experiments.speed.logprob --hidden 4096 --modes token --minutes 9
    python -m experiments.speed.logprob --check     seconds: only the errors, at small sizes

Peers take part if they are installed: liger-kernel, cut-cross-entropy, quack-kernels; of verl and trl one
file each is loaded, so that `pip install --no-deps verl trl` will do.  TRITON_INTERPRET=1 runs some Triton
peers without a GPU.

    token     log-prob of each token, backward with a gradient drawn for each token
    scalar    mean cross entropy, backward with 1: all that some peers can do, perhaps with fewer operations
    grpo      from hidden states to the clipped loss with KL.  tf32: torch's float32 matmul precision is high

Each implementation is tried in a process of its own first: for the peak of memory beyond what is resident
with the inputs (CUDA, or Linux), for the errors of the first rows (256, on a CPU 64) against fp64, and for
the time of the first call, which compiles.  Then all take turns; `x ours` is the median over the rounds of
the ratio to `ours`.  The limit is the time of the matrix products alone, at the best rate that one large
product reached at the start of this run or in its own turns: 2 N H V operations forward, 6 with backward,
also for what spends 8 on making logits twice.
"""

import argparse
import gc
import importlib.metadata
import importlib.util
import itertools
import json
import math
import statistics
import subprocess
import sys
import time
import types
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F

import grpo

ROOT = Path(__file__).resolve().parents[2]
CUDA = torch.cuda.is_available()
DEVICE = "cuda" if CUDA else "cpu"
CLIP, KL = 0.2, 0.01
SHAPE = "mode", "hidden", "tokens"
PACKAGES = ("torch", "triton", "liger-kernel", "cut-cross-entropy", "verl", "trl", "quack-kernels")
NOTES = {"ours": "any gradient, entropy too; 6 N H V operations where E is kept, 8 where not",
         "naive": "whole logits, entropy too",
         "naive logp": "whole logits, cross entropy in fp32, no entropy",
         "naive compiled": "torch.compile of `naive`, entropy left out",
         "Liger FLCE": "per token 8; as a mean 6, all gradients made in the forward pass",
         "Liger scaled CE": "8; CuTe kernels on compute capability 9.0, elsewhere chunks in torch",
         "CCE": "8; unless `exact` it leaves out tiles whose gradient is small", "verl": "8, entropy too",
         "TRL": "8, no entropy, vocabulary chunk of 32768 as in its trainers", "QuACK": "6, mean only",
         "Liger GRPO": "8, of it the backward products in fp32; all gradients made in the forward pass"}


# --------------------------------------------- implementations: data -> log-probs [N], or in the end a scalar

def ours(d, keep=1.0):
    return grpo.token_logprob(d.h, d.W, d.y, keep_bytes=int(keep * d.h.element_size() * len(d.h) * len(d.W)))


def naive(d):
    return grpo.naive_token_logprob(d.h, d.W, d.y)[0]


@partial(torch.compile, dynamic=False)
def compiled(h, W, y):
    return grpo.naive_token_logprob(h, W, y)[0]


def liger_ce(d, reduction="none"):
    from liger_kernel.ops.fused_linear_cross_entropy import LigerFusedLinearCrossEntropyFunction as Function
    return -Function.apply(d.h, d.W, d.y, None, None, -100, 0.0, 0.0, reduction)[0]


def liger_scaled(d):
    from liger_kernel.ops.fused_linear_scaled_cross_entropy import LigerFusedLinearScaledCrossEntropyFunction
    return -LigerFusedLinearScaledCrossEntropyFunction.apply(d.h, d.W, d.y)


def liger_grpo(d):
    from liger_kernel.chunked_loss.grpo_loss import LigerFusedLinearGRPOLoss
    length = math.gcd(len(d.y), 1024)
    h, y, old, ref, A = (x.view(-1, length, *x.shape[1:]) for x in (d.h, d.y, d.old, d.ref, d.A))
    loss = LigerFusedLinearGRPOLoss(beta=KL, compiled=CUDA, epsilon_low=CLIP, epsilon_high=CLIP,
                                    loss_type="dapo")
    return loss(h, d.W, y, torch.ones_like(old), A[:, 0], ref_per_token_logps=ref, old_per_token_logps=old)[0]


def cce(d, reduction="none", filter_eps="auto"):
    from cut_cross_entropy import linear_cross_entropy
    return -linear_cross_entropy(d.h, d.W, d.y, reduction=reduction, filter_eps=filter_eps)


def quack(d):
    from quack.linear_cross_entropy import chunked_linear_cross_entropy
    return chunked_linear_cross_entropy(d.h, d.W, d.y)


def verl(d):
    stand_ins("verl", {"utils": {}, "utils.kernel": {}, "utils.device": {
        "is_cuda_available": CUDA, "get_device_capability": torch.cuda.get_device_capability,
        "get_device_name": lambda: "cuda", "get_torch_device": lambda: torch.cuda}})
    from verl.utils.kernel.linear_cross_entropy import linear_cross_entropy
    return linear_cross_entropy(d.h, d.W, d.y, 1.0, "none")[0]


def trl(d):
    stand_ins("trl", {"kernels": {}, "trainer": {}, "trainer.utils": {
        "maybe_gather_lm_head_ctx": lambda *_: nullcontext()}})
    stand_ins("transformers", {"utils": {"is_triton_available": lambda: grpo.triton is not None}},
              instead=True)
    from trl.kernels.chunked_logprob import ChunkedLogProbFunction
    return ChunkedLogProbFunction.apply(d.h, d.W, None, d.y, 1.0, 32768, None, 1.0, ())[0]


def stand_ins(package, modules, instead=False):
    """Empty modules in place of a package's own, so that one of its files can be imported without all the
    others."""
    if package in sys.modules:
        return
    spec = importlib.util.find_spec(package)
    if spec is None and not instead:
        raise ModuleNotFoundError(f"No module named '{package}'")
    for name, names in {"": {}, **modules}.items():
        made = sys.modules[f"{package}.{name}".strip(".")] = types.ModuleType(name or package)
        made.__path__ = [] if instead else [str(Path(spec.submodule_search_locations[0], *name.split(".")))]
        vars(made).update(names)


def loss(of, d):
    weight, on_policy = torch.full_like(d.A, 1 / len(d.A)), torch.ones_like(d.A).bool()
    tokens = grpo.LossInputs(of(d), d.old, d.A, weight, on_policy, ref_T=d.ref)
    return grpo.policy_loss(tokens, CLIP, CLIP, KL)[0]


MODES = {
    "token": {"ours": ours, "ours, half kept": partial(ours, keep=0.5),
              "ours, none kept": partial(ours, keep=0), "naive": naive,
              "naive logp": lambda d: -F.cross_entropy((d.h @ d.W.T).float(), d.y, reduction="none"),
              "naive compiled": lambda d: compiled(d.h, d.W, d.y), "Liger FLCE": liger_ce,
              "Liger scaled CE": liger_scaled, "CCE": cce, "CCE exact": partial(cce, filter_eps=None),
              "verl": verl, "TRL": trl},
    "scalar": {"ours": lambda d: -ours(d).mean(), "naive": lambda d: -naive(d).mean(), "QuACK": quack,
               "naive logp": lambda d: F.cross_entropy((d.h @ d.W.T).float(), d.y),
               "Liger FLCE": lambda d: -liger_ce(d, "mean"), "CCE": lambda d: -cce(d, "mean"),
               "CCE exact": lambda d: -cce(d, "mean", None)},
    "grpo": {"ours": partial(loss, ours), "naive": partial(loss, naive), "TRL": partial(loss, trl),
             "TRL tf32": partial(loss, trl), "Liger GRPO": liger_grpo, "Liger GRPO tf32": liger_grpo}}


# -------------------------------------------------------------------------------------------------- measuring

def make_data(args, mode, hidden, tokens):
    """Logits of standard deviation 3, targets drawn evenly; or `peaked`: median probability of the target
    0.99."""
    torch.manual_seed(0)
    torch.compiler.reset()                # after some shapes the compiler would give up and run eagerly
    h, W = (torch.randn(rows, hidden, device=DEVICE, dtype=args.dtype) for rows in (tokens, args.vocabulary))
    targets = torch.randint(len(W), (tokens,), device=DEVICE)
    d = types.SimpleNamespace(h=h, W=W.mul_(3 / hidden ** 0.5), y=targets)
    d.g, d.A = torch.randn(2, tokens, device=DEVICE)
    if args.data == "peaked":
        d.h += (math.log(args.vocabulary) + 3 ** 2 / 2 + math.log(99)) / 3 ** 2 * W[d.y]
    if mode == "grpo":
        length = math.gcd(tokens, 1024)
        d.A = d.A[::length].repeat_interleave(length)                      # one advantage for each response
        # Ratios stay away from the clip bounds: at one, an error of logp however small would decide about a
        # gradient.
        offsets = torch.tensor([-0.5, -0.05, 0.05, 0.5], device=DEVICE)
        offsets = offsets[torch.randint(4, (2, tokens), device=DEVICE)]
        d.old, d.ref = grpo.token_logprob(d.h, d.W, d.y) + offsets
    return d


def first_rows(d, rows=None, gradient=False, wide=False):
    """The first rows of the data, in fp64 if `wide`."""
    out = {key: x if key == "W" else x[:rows] for key, x in vars(d).items()}
    out = {key: x.double() if wide and x.is_floating_point() else x for key, x in out.items()}
    leaves = {key: out[key].detach().requires_grad_(gradient) for key in ("h", "W")}
    return types.SimpleNamespace(**out | leaves)


def forward(mode, name, d):
    torch.set_float32_matmul_precision("high" if name.endswith("tf32") else "highest")
    return MODES[mode][name](d)


def forward_backward(mode, name, d):
    out = forward(mode, name, d)
    return out.detach(), *torch.autograd.grad(out, (d.h, d.W), d.g.to(out.dtype) if mode == "token" else None)


def errors(mode, name, d):
    """Largest error of logp, or that of the loss; relative errors of dh and dW by Frobenius norm."""
    rows = 256 if CUDA else 64
    found = forward_backward(mode, name, first_rows(d, rows, True))
    truth = forward_backward(mode, "naive", first_rows(d, rows, True, wide=True))
    return [(found[0].double() - truth[0]).abs().max().item(),
            *(((a.double() - b).norm() / b.norm()).item() for a, b in zip(found[1:], truth[1:]))]


def problem_text(error):
    kinds = {torch.OutOfMemoryError: "out of memory", ModuleNotFoundError: f"not installed ({error})"}
    text = " ".join(f"{type(error).__name__}: {error}".split())
    return kinds.get(type(error), text[:150].replace("|", "/"))


def free_memory():
    gc.collect()
    if CUDA:
        torch.cuda.empty_cache()


def seconds(work):
    if not CUDA:
        began = time.perf_counter()
        work()
        return time.perf_counter() - began
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    work()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end) / 1000


def product_rate(calls=30):
    """FLOP/s of one large product."""
    size = 8192 if CUDA else 2048
    a, b = torch.randn(2, size, size, device=DEVICE, dtype=torch.bfloat16 if CUDA else torch.float32)
    return 2 * size ** 3 / statistics.median([seconds(lambda: a @ b) for _ in range(calls + 3)][3:])


def peak_bytes(restart=False):
    """Most bytes in use since the restart."""
    if CUDA:
        torch.cuda.reset_peak_memory_stats() if restart else None
        return torch.cuda.max_memory_allocated()
    if restart:
        Path("/proc/self/clear_refs").write_text("5")
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith("VmHWM"))


def measure_alone(args, mode, name, shapes):
    """One implementation in this fresh process: prints what it finds, a line for each shape."""
    for shape in json.loads(shapes):
        found = {}
        try:
            d = first_rows(make_data(args, mode, *shape), gradient=True)
            if CUDA:
                found["first"] = seconds(partial(forward_backward, mode, name, d))       # compiles and tunes
            free_memory()
            before = peak_bytes(restart=True)
            forward_backward(mode, name, d)
            found["peak"] = peak_bytes() - before
            found["errors"] = errors(mode, name, d)
        except Exception as error:
            found["problem"] = problem_text(error)
        print("found", json.dumps(found), flush=True)
        d = None
        free_memory()


def group_rows(rows, *keys):
    found = {}
    for row in rows:
        found.setdefault(tuple(row[key] for key in keys), []).append(row)
    return found.values()


def try_alone(rows, deadline):
    """child() in a process of its own for the shapes of these rows."""
    child = rows[0]["mode"], rows[0]["name"], json.dumps([(row["hidden"], row["tokens"]) for row in rows])
    command = [sys.executable, "-m", "experiments.speed.logprob", *sys.argv[1:], "--child", *child]
    process = subprocess.Popen(command, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        out, log = process.communicate(timeout=max(deadline - time.time(), 0.1))
        died = ("out of memory (killed)" if process.returncode == -9
                else problem_text(RuntimeError(log[-120:])))
    except subprocess.TimeoutExpired:
        process.kill()
        out, died = process.communicate()[0], "not measured (time budget)"
    lines = [line.removeprefix("found ") for line in out.splitlines() if line.startswith("found ")]
    for row, line in itertools.zip_longest(rows, lines):
        row |= json.loads(line) if line else {"problem": died}


def take_turns(args, rows, product, deadline):
    """Times of the rows of one shape that have no problem so far, interleaved, and what follows from them."""
    mode, hidden, tokens = (rows[0][key] for key in SHAPE)
    data, rates = make_data(args, mode, hidden, tokens), [product]
    full, few = ((first_rows(data, n), first_rows(data, n, gradient=True)) for n in (None, 64))

    def once(row, inference, training):
        if "problem" in row or time.time() > deadline:
            return []
        try:
            with torch.no_grad():
                first = seconds(lambda: forward(mode, row["name"], inference))
            return [(first, seconds(lambda: forward_backward(mode, row["name"], training)))]
        except Exception as error:
            row["problem"] = problem_text(error)
        free_memory()                                         # what the failed call held is free only now
        return []

    for row in rows:
        row["times"], row["gradients"], began = [], data.h.nbytes + data.W.nbytes, time.time()
        for _ in range(10 if CUDA else 1):       # warm-up, shorter for what is slow; on a CPU with a few rows
            if time.time() < began + 5:
                once(row, *(full if CUDA else few))
    for turn in range(args.rounds):
        rates += [product_rate(3)] if time.time() < deadline else []
        for row in (rows * 2)[turn % len(rows):][:len(rows)]:
            row["times"] += once(row, *full)
    base = next((row["times"] for row in rows if row["name"] == "ours"), [])
    for row in rows:
        if "problem" not in row and not row["times"]:
            row["problem"] = "not timed (time budget)"
        if "problem" not in row:
            row["limit"] = [factor * tokens * hidden * args.vocabulary / max(rates) for factor in (2, 6)]
            row["time"] = [torch.tensor(column).quantile(torch.tensor([0.5, 0.2, 0.8])).tolist()
                           for column in zip(*row["times"])]
            ratios = [a[1] / b[1] for a, b in zip(row["times"], base)]
            row["x ours"] = statistics.median(ratios) if base else None


# ----------------------------------------------------------------------------------------------------- output

def table(rows):
    columns = ("mode", "H x N", "implementation", "forward ms (20 %, 80 %)", "limit / time",
               "forward + backward ms", "limit / time", "x ours", "peak GB", "of it gradients",
               "error: logp or loss", "dh", "dW", "first s", "rounds")
    print("\n|", " | ".join(columns), "|\n" + "|---" * len(columns) + "|")
    for row in rows:
        cells = [row.get("problem", ""), "", "", "", ""]
        if "problem" not in row:
            ms = ["{:.4g} ({:.4g}, {:.4g})".format(*(1000 * t for t in time)) for time in row["time"]]
            ratio = [f"{limit / time[0]:.3f}" for limit, time in zip(row["limit"], row["time"])]
            cells = [ms[0], ratio[0], ms[1], ratio[1], f"{row['x ours'] or math.nan:.2f}"]
        cells += [f"{row[key] / 1e9:.2f}" if key in row else "" for key in ("peak", "gradients")]
        cells += [f"{e:.1e}" for e in row.get("errors", [])] or ["", "", ""]
        cells += [f"{row['first']:.1f}" if "first" in row else "", str(len(row["times"]))]
        print("|", " | ".join([row["mode"], f"{row['hidden']} x {row['tokens']}", row["name"], *cells]), "|")
    print()
    for name in dict.fromkeys(row["name"] for row in rows if row["name"] in NOTES):
        print(f"{name}: {NOTES[name]}")


def chart(rows, path, title):
    """Several numbers of tokens: the ratio to the limit over them.  One: bars of time and memory."""
    import matplotlib
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    rows = [row for row in rows if "problem" not in row]
    names, modes, sizes = (list(dict.fromkeys(row[key] for row in rows))
                           for key in ("name", "mode", "hidden"))
    if len({row["tokens"] for row in rows}) > 1:
        figure, axes = plt.subplots(
            len(modes), len(sizes), figsize=(3 + 4 * len(sizes), 1 + 3.5 * len(modes)), sharey=True,
            squeeze=False, layout="constrained")
        for axis, panel in zip(axes.flat, itertools.product(modes, sizes)):
            shown = [row for row in rows if (row["mode"], row["hidden"]) == panel]
            for i, name in enumerate(names):
                points = sorted((row["tokens"], row["limit"][1] / row["time"][1][0])
                                for row in shown if row["name"] == name)
                axis.plot(*zip(*points or [(math.nan, math.nan)]), "o-", label=name,
                          color="black" if name == "ours" else plt.get_cmap("tab20")(i))
            axis.set(title=f"{panel[0]}, H = {panel[1]}", xlabel="tokens", xscale="log", ylim=0)
            ticks = sorted({row["tokens"] for row in shown})
            axis.set_xticks(ticks, ticks, rotation=45)
            axis.minorticks_off()
        for axis in axes[:, 0]:
            axis.set_ylabel("limit / time, forward + backward")
        axes[0][-1].legend(loc="center left", bbox_to_anchor=(1, 0.5))
    else:
        figure, (left, right) = plt.subplots(1, 2, figsize=(11, 1.5 + 0.5 * len(rows)), sharey=True,
                                            layout="constrained")
        at = range(len(rows))
        for i, label in enumerate(("forward", "forward + backward")):
            y = [j + 0.4 * i - 0.2 for j in at]
            left.barh(y, [row["time"][i][0] for row in rows], 0.38, color=f"C{i}", label=label)
            left.plot([row["limit"][i] for row in rows], y, "k|", markersize=14, label="limit" if i else "")
        right.barh(at, [row["peak"] / 1e9 for row in rows], 0.6, color="C0", label="peak beyond the inputs")
        right.barh(at, [row["gradients"] / 1e9 for row in rows], 0.6, color="C1", label="of it gradients")
        left.set(yticks=at, yticklabels=[f"{row['mode']}: {row['name']}" for row in rows], xlabel="seconds")
        left.invert_yaxis()
        right.set_xlabel("GB")
        for axis in (left, right):
            axis.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=3, frameon=False)
    figure.suptitle(title, fontsize=10)
    figure.savefig(path, dpi=130)


def main():
    parser = argparse.ArgumentParser("python -m experiments.speed.logprob", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hidden", nargs="+", type=int, help="default 2048 4096 5120; on a CPU 1024")
    parser.add_argument("--tokens", nargs="+", type=int,
                        help="default 4096 16384 65536 and (4096, 8192); CPU 4096")
    parser.add_argument("--vocabulary", type=int, help="default 151936")
    parser.add_argument("--rounds", type=int, default=30 if CUDA else 3)
    parser.add_argument("--modes", nargs="+", choices=MODES,
                        help="default all; on a CPU token, unless --check")
    parser.add_argument("--peers", nargs="+", help="names as in the table; default all")
    parser.add_argument("--data", default="gaussian", choices=["gaussian", "peaked"])
    parser.add_argument("--dtype", type=partial(getattr, torch),
                        default=torch.bfloat16 if CUDA else torch.float32)
    parser.add_argument("--minutes", type=float, default=60,
                        help="what does not fit is listed as not measured")
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--chart", default="logprob.png")
    parser.add_argument("--json", default="logprob.json")
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    args, begin, every = parser.parse_args(), time.time(), CUDA
    if args.check:
        args.hidden, args.tokens, every = args.hidden or [256], args.tokens or [128], True
    args.vocabulary = args.vocabulary or (4224 if args.check else 151936)
    if args.child:
        return measure_alone(args, *args.child)
    shapes = [(h, n) for h in args.hidden or ([2048, 4096, 5120] if CUDA else [1024])
              for n in args.tokens or ([4096, 16384, 65536] if CUDA else [4096])]
    shapes += [(4096, 8192)] if CUDA and not args.hidden and not args.tokens else []
    rows = [{"mode": mode, "name": name, "hidden": hidden, "tokens": tokens}
            for mode in args.modes or (MODES if every else ["token"]) for hidden, tokens in shapes
            for name in MODES[mode]
            if name in (args.peers or [name]) and (every or not name.endswith(("compiled", "tf32")))]
    device = torch.cuda.get_device_name() if CUDA else f"CPU with {torch.get_num_threads()} threads"
    title = f"{device}, {str(args.dtype)[6:]}, {args.data} data, vocabulary {args.vocabulary}"
    versions = {p.name: p.version for p in importlib.metadata.distributions()
                if p.name.replace("_", "-") in PACKAGES}
    print(title, *(f"{name} {version}" for name, version in versions.items()), sep=", ", flush=True)
    if args.check:
        for row in rows:
            mode, name, *shape = row.values()
            try:
                found = [f"{e:.1e}" for e in errors(mode, name, make_data(args, mode, *shape))]
            except Exception as error:
                found = [problem_text(error)]
            print(mode, name, *found, sep=" | ", flush=True)
        return
    source, target = torch.ones(2, 2 ** 28 if CUDA else 2 ** 26, device=DEVICE)
    times = [seconds(lambda: target.copy_(source)) for _ in range(15)]
    copy = 2 * source.nbytes / statistics.median(times[5:])
    product, source, target = product_rate(), None, None
    free_memory()
    print(f"product {product / 1e12:.4g} TFLOP/s, copy {copy / 1e9:.4g} GB/s", flush=True)
    deadline = begin + 60 * args.minutes
    result = {"title": title, "versions": versions, "copy": copy, "rows": rows}
    # A GPU's allocator forgets, a CPU's does not: there, a process for each shape.  Half of the time is for
    # the turns.
    for group in group_rows(rows, "name", *(["mode"] if CUDA else SHAPE)):
        try_alone(group, begin + 30 * args.minutes)
    left = sum(row["hidden"] * row["tokens"] for row in rows)
    for group in group_rows(rows, *SHAPE):
        print(f"{time.time() - begin:.0f} s:", *(group[0][key] for key in SHAPE), file=sys.stderr, flush=True)
        work = sum(row["hidden"] * row["tokens"] for row in group)
        take_turns(args, group, product, time.time() + work / left * (deadline - time.time()))
        left -= work
        free_memory()
        Path(args.json).write_text(json.dumps(result | {"product": product}, indent=1))
    table(rows)
    if any("time" in row for row in rows):
        chart(rows, args.chart, title)


if __name__ == "__main__":
    main()
