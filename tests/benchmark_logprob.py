"""Log-prob of the sampled token from hidden states and head weight: time, memory, error of grpo.py's and of its peers.

    python tests/benchmark_logprob.py             all shapes on one CUDA GPU in bf16; one small shape on a CPU in fp32
    python tests/benchmark_logprob.py --hidden 4096 --modes token --minutes 9
    python tests/benchmark_logprob.py --check     seconds: only the errors, at small sizes
    TRITON_INTERPRET=1 python tests/benchmark_logprob.py --check --peers ours "Liger FLCE"      Triton without a GPU

Peers take part if they are installed (liger-kernel, cut-cross-entropy, quack-kernels; of verl and trl one file each is
loaded, so `pip install --no-deps verl trl` will do).  Modes:

    token     log-prob of each token, backward with a gradient drawn for each token
    scalar    mean cross entropy, backward with 1: all that some peers can do, and may do with fewer operations
    grpo      from hidden states to the clipped loss with KL.  tf32: torch's float32 matmul precision high, not highest

An implementation is tried in a process of its own first.  There the peak of memory is taken, beyond what is resident
with the inputs; the errors of the first rows (256, on a CPU 64) against fp64; and the time of the first call, which
compiles.  Then all take turns; `x ours` is the median of the ratios to `ours` within a round.  The limit is the time
of the matrix products alone, at the rate of one large product measured at the start of this run: 2 N H V operations
forward, 6 N H V forward and backward, also for what spends 8 on making logits twice.  Times: median (20 %, 80 %).
"""

import argparse
import gc
import importlib.metadata
import importlib.util
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

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
import torch.nn.functional as F

import grpo

CUDA = torch.cuda.is_available()
PACKAGES = ("torch", "triton", "liger-kernel", "cut-cross-entropy", "verl", "trl", "quack-kernels")
CLIP, KL = 0.2, 0.01

# ------------------------------------------------------- implementations: data -> log-probs [N], or in the end a loss

def ours(d, keep=1.0):
    """any gradient, entropy too; 6 operations where E is kept, 8 where not"""
    return grpo.token_logprob(d.h, d.W, d.y, keep_bytes=int(keep * d.h.element_size() * len(d.h) * len(d.W)))

def naive(d):
    """whole logits, entropy too"""
    return grpo.naive_token_logprob(d.h, d.W, d.y)[0]

def naive_logp(d):
    """whole logits, cross entropy in fp32, no entropy"""
    return -F.cross_entropy((d.h @ d.W.T).float(), d.y, reduction="none")

@partial(torch.compile, dynamic=False)
def compiled(h, W, y):
    return grpo.naive_token_logprob(h, W, y)[0]

def naive_compiled(d):
    """torch.compile of `naive`, entropy left out"""
    return compiled(d.h, d.W, d.y)

def liger_flce(d, reduction="none"):
    """fused linear cross entropy in Triton; per token 8 operations, as a mean 6, gradients made in the forward pass"""
    from liger_kernel.ops.fused_linear_cross_entropy import LigerFusedLinearCrossEntropyFunction
    return -LigerFusedLinearCrossEntropyFunction.apply(d.h, d.W, d.y, None, None, -100, 0.0, 0.0, reduction)[0]

def liger_scaled(d):
    """fused linear scaled cross entropy, 8; CuTe on compute capability 9.0, elsewhere chunks in torch"""
    from liger_kernel.ops.fused_linear_scaled_cross_entropy import LigerFusedLinearScaledCrossEntropyFunction
    return -LigerFusedLinearScaledCrossEntropyFunction.apply(d.h, d.W, d.y)

def cce(d, reduction="none", filter_eps="auto"):
    """cut cross entropy, 8; unless `exact` it leaves out tiles whose gradient is small"""
    from cut_cross_entropy import linear_cross_entropy
    return -linear_cross_entropy(d.h, d.W, d.y, reduction=reduction, filter_eps=filter_eps)

def stand_ins(package, modules):
    """Empty modules in place of a package's own, so that one of its files can be imported without all the others."""
    if package in sys.modules:
        return
    spec = importlib.util.find_spec(package)
    if spec is None:
        raise ModuleNotFoundError(f"No module named '{package}'")
    for name, names in modules.items():
        made = sys.modules[name] = types.ModuleType(name)
        made.__path__ = [str(Path(spec.submodule_search_locations[0], *name.split(".")[1:]))]
        vars(made).update(names)

def verl(d):
    """Triton kernel, 8, entropy too"""
    stand_ins("verl", {"verl": {}, "verl.utils": {}, "verl.utils.kernel": {}, "verl.utils.device": {
        "is_cuda_available": CUDA, "get_device_capability": torch.cuda.get_device_capability,
        "get_device_name": lambda: "cuda", "get_torch_device": lambda: torch.cuda}})
    from verl.utils.kernel.linear_cross_entropy import linear_cross_entropy
    return linear_cross_entropy(d.h, d.W, d.y, 1.0, "none")[0]

def trl(d):
    """ChunkedLogProbFunction with the chunk of 32768 of its trainers, 8, no entropy"""
    missing = {} if importlib.util.find_spec("transformers") else {"transformers": {}, "transformers.utils": {
        "is_triton_available": lambda: grpo.triton is not None}}
    stand_ins("trl", {"trl": {}, "trl.kernels": {}, "trl.trainer": {}, **missing,
                      "trl.trainer.utils": {"maybe_gather_lm_head_ctx": lambda *_: nullcontext()}})
    from trl.kernels.chunked_logprob import ChunkedLogProbFunction
    return ChunkedLogProbFunction.apply(d.h, d.W, None, d.y, 1.0, 32768, None, 1.0, ())[0]

def quack(d):
    """chunked linear cross entropy in CuTe, 6, mean only"""
    from quack.linear_cross_entropy import chunked_linear_cross_entropy
    return chunked_linear_cross_entropy(d.h, d.W, d.y)

def liger_grpo(d):
    """fused linear GRPO, 8, products of the backward pass in fp32; all gradients made in the forward pass"""
    from liger_kernel.chunked_loss.grpo_loss import LigerFusedLinearGRPOLoss
    length = math.gcd(len(d.y), 1024)
    h, y, old, ref, advantage = (x.view(-1, length, *x.shape[1:]) for x in (d.h, d.y, d.old, d.ref, d.advantage))
    loss = LigerFusedLinearGRPOLoss(beta=KL, compiled=CUDA, epsilon_low=CLIP, epsilon_high=CLIP, loss_type="dapo")
    return loss(h, d.W, y, torch.ones_like(old), advantage[:, 0], ref_per_token_logps=ref, old_per_token_logps=old)[0]

def mean(of):
    return lambda d: -of(d).mean()

def loss(of):
    return lambda d: grpo.policy_loss(of(d), d.old, d.advantage, torch.full_like(d.old, 1 / len(d.old)),
                                      torch.ones_like(d.y, dtype=torch.bool), CLIP, CLIP, ref_T=d.ref, kl_coef=KL)[0]

MODES = {
    "token": {"ours": ours, "ours, half kept": partial(ours, keep=0.5), "ours, none kept": partial(ours, keep=0),
              "naive": naive, "naive logp": naive_logp, "naive compiled": naive_compiled, "Liger FLCE": liger_flce,
              "Liger scaled CE": liger_scaled, "CCE": cce, "CCE exact": partial(cce, filter_eps=None), "verl": verl,
              "TRL": trl},
    "scalar": {"ours": mean(ours), "naive logp": mean(naive_logp), "Liger FLCE": lambda d: -liger_flce(d, "mean"),
               "CCE": lambda d: -cce(d, "mean"), "CCE exact": lambda d: -cce(d, "mean", None), "QuACK": quack},
    "grpo": {"ours": loss(ours), "naive": loss(naive), "TRL": loss(trl), "TRL tf32": loss(trl),
             "Liger GRPO": liger_grpo, "Liger GRPO tf32": liger_grpo}}
CUDA_ONLY = ("naive compiled", "TRL tf32", "Liger GRPO tf32")
LEGEND = {"ours": ours, "naive": naive, "naive logp": naive_logp, "naive compiled": naive_compiled, "CCE": cce,
          "Liger FLCE": liger_flce, "Liger scaled CE": liger_scaled, "verl": verl, "TRL": trl, "QuACK": quack,
          "Liger GRPO": liger_grpo}

# ---------------------------------------------------------------------------------------------------- measuring

def make_data(args, mode, hidden, tokens):
    """Logits of standard deviation 3, targets drawn evenly; or `peaked`: median probability of the target 0.99."""
    torch.manual_seed(0)
    kind = {"device": "cuda" if CUDA else "cpu", "dtype": getattr(torch, args.dtype)}
    d = types.SimpleNamespace(h=torch.randn(tokens, hidden, **kind), W=torch.randn(args.vocabulary, hidden, **kind),
                              y=torch.randint(args.vocabulary, (tokens,), device=kind["device"]))
    d.W *= 3 / hidden ** 0.5
    d.g, d.advantage = torch.randn(2, tokens, device=kind["device"])
    if args.data == "peaked":
        d.h += (math.log(args.vocabulary) + 3 ** 2 / 2 + math.log(99)) / 3 ** 2 * d.W[d.y]
    if mode == "grpo":
        length = math.gcd(tokens, 1024)
        d.advantage = d.advantage[::length].repeat_interleave(length)                      # one for each response
        # Ratios stay away from the clip bounds: at one, an error of logp however small would decide about a gradient.
        offsets = torch.tensor([-0.5, -0.05, 0.05, 0.5], device=kind["device"])
        logp = grpo.token_logprob(d.h, d.W, d.y)
        d.old, d.ref = (logp + offsets[torch.randint(4, (tokens,), device=kind["device"])] for _ in range(2))
    return d

def some(d, rows=None, wide=False, gradient=False):
    """The first rows of the data, in fp64 if `wide`."""
    out = {key: x if key == "W" else x[:rows] for key, x in vars(d).items()}
    out = {key: x.double() if wide and x.is_floating_point() else x for key, x in out.items()}
    out |= {key: out[key].detach().requires_grad_(gradient) for key in ("h", "W")}
    return types.SimpleNamespace(**out)

def both(function, d, mode):
    out = function(d)
    return out.detach(), *torch.autograd.grad(out, (d.h, d.W), d.g.to(out.dtype) if mode == "token" else None)

def errors(function, d, mode, rows):
    """Largest error of logp (or that of the loss), relative errors of dh and dW by Frobenius norm."""
    found = both(function, some(d, rows, gradient=True), mode)
    truth = both({"token": naive, "scalar": mean(naive), "grpo": loss(naive)}[mode], some(d, rows, True, True), mode)
    out, *gradients = ((a.double() - b, b) for a, b in zip(found, truth))
    return [out[0].abs().max().item(), *((difference.norm() / b.norm()).item() for difference, b in gradients)]

def problem(error):
    if isinstance(error, (ModuleNotFoundError, torch.OutOfMemoryError)):
        return "out of memory" if isinstance(error, torch.OutOfMemoryError) else f"not installed ({error})"
    return " ".join(f"{type(error).__name__}: {error}".split())[:160].replace("|", "/")

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

def clean():
    gc.collect()
    if CUDA:
        torch.cuda.empty_cache()

def rates():
    """-> FLOP/s of one large product, bytes per second that a copy reads and writes."""
    kind, (m, k, n) = ("cuda", (8192, 8192, 8192)) if CUDA else ("cpu", (512, 1024, 16384))
    a, b = (torch.randn(*shape, device=kind, dtype=torch.bfloat16 if CUDA else None) for shape in ((m, k), (n, k)))
    source, target = torch.ones(2, 2 ** 28 if CUDA else 2 ** 26, device=kind)
    product = statistics.median([seconds(lambda: a @ b.T) for _ in range(40)][10:])
    return 2 * m * n * k / product, 8 * len(source) / statistics.median(
        [seconds(lambda: target.copy_(source)) for _ in range(15)][5:])

def resident(field):
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith(field))

def child(args, mode, name):
    """One implementation in this fresh process: prints a line of JSON for each shape."""
    function = MODES[mode][name]
    for hidden, tokens in args.shapes:
        row = {"mode": mode, "name": name, "hidden": hidden, "tokens": tokens}
        try:
            torch.compiler.reset()                      # after some shapes the compiler would give up and run eagerly
            torch.set_float32_matmul_precision("high" if name.endswith("tf32") else "highest")
            d = some(make_data(args, mode, hidden, tokens), gradient=True)
            if CUDA:
                row["first"] = seconds(lambda: both(function, d, mode))
                clean()
                torch.cuda.reset_peak_memory_stats()
                before = torch.cuda.memory_allocated()
                both(function, d, mode)
                row["peak"] = torch.cuda.max_memory_allocated() - before
            else:
                Path("/proc/self/clear_refs").write_text("5")                   # VmHWM starts again from VmRSS
                before = resident("VmRSS")
                row["first"] = seconds(lambda: both(function, d, mode))
                row["peak"] = resident("VmHWM") - before
            row["errors"] = errors(function, d, mode, 256 if CUDA else 64)
        except Exception as error:
            row["problem"] = problem(error)
        print(json.dumps(row), flush=True)
        d = None
        clean()

def try_alone(args, mode, name, deadline):
    """child() in a process of its own -> its rows, one for each shape."""
    done = subprocess.Popen([sys.executable, __file__, *args.argv, "--child", mode, name], text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        out, err = done.communicate(timeout=max(deadline - time.time(), 0.1))
        died = "out of memory (killed)" if done.returncode == -9 else f"ended with {done.returncode}: {err[-150:]}"
    except subprocess.TimeoutExpired:
        done.kill()
        out, died = done.communicate()[0], "not measured (time budget)"
    rows = [json.loads(line) for line in out.splitlines() if line.startswith('{"mode"')]
    return rows + [{"mode": mode, "name": name, "hidden": hidden, "tokens": tokens, "problem": " ".join(died.split())}
                   for hidden, tokens in args.shapes[len(rows):]]

def take_turns(args, mode, hidden, tokens, rows, product, deadline):
    """Times of the rows of one shape that have no problem so far, interleaved, and their medians."""
    data = make_data(args, mode, hidden, tokens)
    inference, training = some(data), some(data, gradient=True)
    alive, times = [row for row in rows if "problem" not in row], {row["name"]: [] for row in rows}
    torch.compiler.reset()

    def once(row, inference, training):
        torch.set_float32_matmul_precision("high" if row["name"].endswith("tf32") else "highest")
        function = MODES[mode][row["name"]]
        try:
            with torch.no_grad():
                forward = seconds(lambda: function(inference))
            return forward, seconds(lambda: both(function, training, mode))
        except Exception as error:
            row["problem"] = problem(error)
            alive.remove(row)
        clean()                                         # what the failed call held is free only now

    few = (inference, training) if CUDA else (some(data, 64), some(data, 64, gradient=True))
    for row in list(alive):                             # warm-up: 10 calls, fewer of what is slow; on a CPU one of few rows
        began, calls = time.time(), 0
        while calls < (10 if CUDA else 1) and time.time() < min(began + 5, deadline) and once(row, *few):
            calls += 1
    for round_ in range(args.rounds):
        turn = round_ % max(len(alive), 1)
        for row in alive[turn:] + alive[:turn]:
            if time.time() < deadline and (measured := once(row, inference, training)):
                times[row["name"]].append(measured)
    for row in rows:
        row["times"] = times[row["name"]]
        row["gradients"] = (training.h.numel() + training.W.numel()) * training.W.element_size()
        if "problem" not in row and not row["times"]:
            row["problem"] = "not timed (time budget)"
        for i, (work, operations) in enumerate((("forward", 2), ("both", 6))):
            if "problem" not in row:
                measured = torch.tensor(row["times"], dtype=torch.float64)[:, i]
                row[work] = [measured.quantile(q).item() for q in (0.5, 0.2, 0.8)]
                row[work + " limit"] = operations * tokens * hidden * args.vocabulary / product
        if row["times"] and times.get("ours"):
            row["x ours"] = statistics.median(a[1] / b[1] for a, b in zip(row["times"], times["ours"]))

# ------------------------------------------------------------------------------------------------------- output

def table(rows):
    print("\n| mode | H x N | implementation | forward ms | limit / time | forward + backward ms | limit / time | "
          "x ours | peak GB | of it gradients | error: logp or loss | dh | dW | first call s | rounds |\n" + "|---" * 15
          + "|")
    for row in rows:
        cells = [row["mode"], f"{row['hidden']} x {row['tokens']}", row["name"]]
        for work in ("forward", "both"):
            if "problem" not in row:
                cells += ["{:.4g} ({:.4g}, {:.4g})".format(*(1000 * t for t in row[work])),
                          f"{row[work + ' limit'] / row[work][0]:.3f}"]
        cells += [row["problem"], "", "", ""] if "problem" in row else []
        cells += [f"{row['x ours']:.2f}" if "x ours" in row else ""]
        cells += [f"{row['peak'] / 1e9:.2f}" if "peak" in row else "", f"{row['gradients'] / 1e9:.2f}"]
        cells += [f"{e:.1e}" for e in row.get("errors", [])] or [""] * 3
        cells += [f"{row['first']:.1f}" if "first" in row else "", str(len(row["times"]))]
        print("| " + " | ".join(cells) + " |")
    print("\n" + "\n".join(f"{name}: {LEGEND[name].__doc__}" for name in LEGEND if name in {r["name"] for r in rows}))

def chart(rows, path, title):
    """Several numbers of tokens: the ratio to the limit over them.  One: bars of time and memory."""
    import matplotlib
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    rows = [row for row in rows if "problem" not in row]
    names = list(dict.fromkeys(row["name"] for row in rows))
    panels = list(dict.fromkeys((row["mode"], row["hidden"]) for row in rows))
    if len({row["tokens"] for row in rows}) > 1:
        figure, axes = plt.subplots(1, len(panels), figsize=(3 + 4 * len(panels), 4.5), sharey=True, squeeze=False,
                                    layout="constrained")
        for axis, (mode, hidden) in zip(axes[0], panels):
            shown = [row for row in rows if (row["mode"], row["hidden"]) == (mode, hidden)]
            for i, name in enumerate(names):
                points = [(r["tokens"], r["both limit"] / r["both"][0]) for r in shown if r["name"] == name]
                axis.plot(*zip(*sorted(points) or [(math.nan, math.nan)]), "o-", label=name,
                          color="black" if name == "ours" else plt.get_cmap("tab20")(i))
            ticks = sorted({row["tokens"] for row in shown})
            axis.set(title=f"{mode}, H = {hidden}", xlabel="tokens", xscale="log", ylim=(0, 1.05))
            axis.set_xticks(ticks, ticks, rotation=45)
            axis.minorticks_off()
        axes[0][0].set_ylabel("limit / time, forward + backward")
        axes[0][-1].legend(loc="center left", bbox_to_anchor=(1, 0.5))
    else:
        figure, (left, right) = plt.subplots(1, 2, figsize=(11, 2 + 0.5 * len(rows)), sharey=True, layout="constrained")
        at = range(len(rows))
        for work, shift, colour in (("forward", -0.2, "lightsteelblue"), ("both", 0.2, "steelblue")):
            label = work.replace("both", "forward + backward")
            left.barh([i + shift for i in at], [row[work][0] for row in rows], 0.38, color=colour, label=label)
            left.plot([row[work + " limit"] for row in rows], [i + shift for i in at], "k|", markersize=14)
        left.plot([], [], "k|", label="matrix products alone")
        right.barh(at, [row["peak"] / 1e9 for row in rows], 0.6, color="lightsteelblue", label="peak beyond the inputs")
        right.barh(at, [row["gradients"] / 1e9 for row in rows], 0.6, color="steelblue", label="of it the gradients")
        labels = [f"{r['mode']}, {r['hidden']}: {r['name']}" if len(panels) > 1 else r["name"] for r in rows]
        left.set(yticks=at, yticklabels=labels, xlabel="seconds")
        left.invert_yaxis()
        right.set(xlabel="GB")
        for axis in (left, right):
            axis.spines[["top", "right"]].set_visible(False)
            axis.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=3, frameon=False, fontsize=9)
    figure.suptitle(title, fontsize=10)
    figure.savefig(path, dpi=130)

def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hidden", nargs="+", type=int, help="default 2048 4096 5120; on a CPU 1024")
    parser.add_argument("--tokens", nargs="+", type=int, help="default 4096 16384 65536, 8192 too for 4096; on a CPU 4096")
    parser.add_argument("--vocabulary", type=int, default=0, help="default 151936")
    parser.add_argument("--rounds", type=int, default=30 if CUDA else 3)
    parser.add_argument("--modes", nargs="+", choices=MODES, help="default all; on a CPU token, unless --check")
    parser.add_argument("--peers", nargs="+", default=[name for mode in MODES.values() for name in mode])
    parser.add_argument("--data", default="gaussian", choices=["gaussian", "peaked"])
    parser.add_argument("--dtype", default="bfloat16" if CUDA else "float32", choices=["bfloat16", "float32"])
    parser.add_argument("--minutes", type=float, default=60, help="what does not fit is listed as not measured")
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--chart", default="logprob.png")
    parser.add_argument("--json", default="logprob.json")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    args.argv, begin = sys.argv[1:] if argv is None else argv, time.time()
    usual = ([256], [128], 4224) if args.check else ([2048, 4096, 5120], [4096, 16384, 65536], 151936) if CUDA else (
        [1024], [4096], 151936)
    args.vocabulary, args.modes = args.vocabulary or usual[2], args.modes or [*MODES][:None if CUDA or args.check else 1]
    args.shapes = [(h, n) for h in args.hidden or usual[0] for n in args.tokens or usual[1]]
    if not (args.hidden or args.tokens) and (4096, 4096) in args.shapes:
        args.shapes.append((4096, 8192))
    if args.child:
        return child(args, *args.child)
    chosen = [(mode, name) for mode in args.modes for name in MODES[mode]
              if name in args.peers and (CUDA or args.check or name not in CUDA_ONLY)]
    versions = {p.metadata["Name"]: p.version for p in importlib.metadata.distributions() if p.metadata["Name"] in PACKAGES}
    device = torch.cuda.get_device_name() if CUDA else f"CPU with {torch.get_num_threads()} threads"
    title = f"{device}, {args.dtype}, {args.data} data, vocabulary {args.vocabulary}"
    print(title, versions, sep="; ", flush=True)
    if args.check:
        for mode, name in chosen:
            try:
                data = make_data(args, mode, *args.shapes[0])
                print(mode, name, *(f"{e:.1e}" for e in errors(MODES[mode][name], data, mode, 256)), sep=" | ")
            except Exception as error:
                print(mode, name, problem(error), sep=" | ")
        return
    product, copy = rates()
    clean()
    print(f"product {product / 1e12:.4g} TFLOP/s, copy {copy / 1e9:.4g} GB/s", flush=True)
    deadline, tried, rows = begin + 60 * args.minutes, [], []
    for mode, name in chosen:
        tried += try_alone(args, mode, name, deadline)
        print(f"{time.time() - begin:.0f} s: tried {mode}, {name}", file=sys.stderr, flush=True)
    work = [(mode, *shape) for mode in args.modes for shape in args.shapes]
    for i, (mode, hidden, tokens) in enumerate(work):
        mine = [row for row in tried if (row["mode"], row["hidden"], row["tokens"]) == (mode, hidden, tokens)]
        share = hidden * tokens / sum(h * n for _, h, n in work[i:])
        take_turns(args, mode, hidden, tokens, mine, product, time.time() + share * (deadline - time.time()))
        clean()
        rows += mine
        result = {"title": title, "versions": versions, "product": product, "copy": copy, "rows": rows}
        Path(args.json).write_text(json.dumps(result, indent=1))
        print(f"{time.time() - begin:.0f} s: timed {mode}, {hidden} x {tokens}", file=sys.stderr, flush=True)
    print(f"product at the end {rates()[0] / 1e12:.4g} TFLOP/s")
    table(rows)
    chart(rows, args.chart, title)


if __name__ == "__main__":
    main()
