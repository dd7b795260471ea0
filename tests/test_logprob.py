"""token_logprob() against its definition in fp64: values, entropy, gradients, memory, operations.

Guards against: a log-prob above 0, a gradient that is wrong for one odd size, target, magnitude or setting
only, work for rows that need none, logits that exist as a whole after all, results that depend on chunks or
neighbours.

The last test runs this file once more with the Triton kernel in its interpreter.
"""

import os
import subprocess
import sys
from functools import partial

import pytest
import torch
from conftest import ROOT
from hypothesis import given, settings, strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

import grpo
from grpo import IGNORE, naive_token_logprob, token_logprob

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
KEEP = 5_000_000_000


def gradient_gates(dtype, n: int) -> tuple[float, float]:
    """Relative errors (Frobenius) allowed in d hidden and d weight."""
    if dtype is not torch.bfloat16:
        return (1e-12, 1e-12) if dtype is torch.float64 else (1e-5, 1e-5)
    # Two and three roundings of up to 2^-9 each, which add up in a single row and average out over many.  The
    # interpreter cuts the first one off instead of rounding: up to 2^-8, always downwards.
    few, many = (2 * 2 ** -9, 3 * 2 ** -9), (3e-3, 3.5e-3)
    return tuple(gate + INTERPRETED * 2 ** -9 for gate in (many if n > 100 else few))


@pytest.fixture(scope="module", autouse=True)
def device():
    """All tensors of these tests lie on a GPU where there is one."""
    with torch.device("cuda" if torch.cuda.is_available() and not INTERPRETED else "cpu"):
        yield


def inputs(n: int, h: int, v: int, dtype=torch.float32, sd: float = 3.0, seed: int = 0):
    """hidden and weight whose logits have this standard deviation, targets, and a gradient per token."""
    torch.manual_seed(seed)
    hidden = torch.randn(n, h).to(dtype).requires_grad_()
    weight = (torch.randn(v, h) * sd / h ** 0.5).to(dtype).requires_grad_()
    return hidden, weight, torch.randint(v, (n,)), torch.randn(n)


def by_definition(hidden, weight, targets, g, temperature=1.0, forbidden=None):
    """-> logp, entropy, d hidden, d weight in fp64, of the same (rounded) inputs."""
    hidden, weight = (x.detach().double().requires_grad_() for x in (hidden, weight))
    logp, entropy = naive_token_logprob(hidden, weight, targets, temperature, forbidden)
    return logp.detach(), entropy, *torch.autograd.grad(logp, (hidden, weight), g.double())


def fused(hidden, weight, targets, g, *arguments, **more):
    logp, entropy = token_logprob(hidden, weight, targets, *arguments, return_entropy=True, **more)
    return logp.detach(), entropy, *torch.autograd.grad(logp, (hidden, weight), g.to(logp.dtype))


def error(got: torch.Tensor, true: torch.Tensor, floor: float = 1e-30) -> float:
    return ((got.double() - true).norm() / true.norm().clamp(min=floor)).item()


def assert_right(hidden, weight, targets, g, temperature=1.0, forbidden=None, keep_bytes=KEEP):
    true = by_definition(hidden, weight, targets, g, temperature, forbidden)
    got = fused(hidden, weight, targets, g, temperature, forbidden=forbidden, keep_bytes=keep_bytes)
    assert got[0].dtype == got[1].dtype == (torch.float64 if hidden.dtype is torch.float64 else torch.float32)
    assert got[2].dtype == got[3].dtype == hidden.dtype and (got[0] <= 0).all()
    # The sums of the logits are fp32's own error: it grows with their size.
    # Logits in bf16 would be off by 0.1.
    largest = max((hidden.detach().double() @ weight.detach().double().T).abs().max().item() / temperature
                  if len(hidden) else 0.0, 1.0)
    digits = 1e-14 if hidden.dtype is torch.float64 else 1e-6
    for value, exact in zip(got[:2], true[:2]):
        torch.testing.assert_close(value.double(), exact, rtol=digits, atol=digits * largest)
    gates = gradient_gates(hidden.dtype, len(hidden))
    if hidden.dtype is not torch.bfloat16:
        gates = [gate * max(largest / 10, 1) for gate in gates]   # an error of a logit is a relative one of p
    for gradient, exact, other, gate in zip(got[2:], true[2:], (weight, hidden), gates):
        # onehot - p of a sure token: the definition itself has no digits left, not even in fp64
        floor = 1e-30 + 1e-4 * (g.norm() * other.norm()).item()
        assert error(gradient, exact, floor) < gate
    return got


# ----------------------------------------------------------------------------------------------------- parity

@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("n", [0, 1, 127, 129] if INTERPRETED else [0, 1, 127, 128, 129, 4099])
def test_values_and_gradients_at_odd_sizes(n, dtype, monkeypatch):
    # Several blocks of columns, the last one short.
    monkeypatch.setattr(grpo, "SCRATCH_BYTES", [4 * 512 * max(n, 1) if INTERPRETED else 40_000] * 2)
    monkeypatch.setattr(grpo, "CHUNK_ROWS", [100] * 2)
    hidden, weight, targets, g = inputs(n, 33, 1187, dtype)
    targets[:2] = torch.tensor([0, 1186])[:n]
    for temperature, keep_bytes in ((1.0, KEEP), (0.7, 0), (1.3, 250 * 1187 * hidden.element_size())):
        assert_right(hidden, weight, targets, g, temperature, keep_bytes=keep_bytes)


@settings(max_examples=20 if INTERPRETED else 150, deadline=None)
@given(n=st.integers(0, 10 if INTERPRETED else 40), h=st.integers(1, 40), v=st.integers(1, 400),
       sd=st.floats(0.01, 60),
       temperature=st.floats(0.3, 3), seed=st.integers(0, 99), keep=st.booleans(),
       dtype=st.sampled_from([torch.float64, torch.float32]), zeros=st.floats(0, 1), forbid=st.floats(0, 0.9))
def test_any_shape_and_magnitude(n, h, v, sd, temperature, seed, keep, dtype, zeros, forbid):
    hidden, weight, targets, g = inputs(n, h, v, dtype, sd, seed)
    g = g * (torch.rand(n) >= zeros)
    forbidden = torch.rand(v) < forbid
    targets = torch.where(forbidden[targets], IGNORE, targets)
    assert_right(hidden, weight, targets, g, temperature, forbidden, KEEP if keep else 0)


def test_gradcheck():
    for keep_bytes, seed in ((KEEP, 0), (0, 1)):
        hidden, weight, targets, _ = inputs(5, 4, 7, torch.float64, seed=seed)
        forbidden = torch.arange(7) == (targets[0] + 1) % 7
        targets = torch.where(forbidden[targets], (targets + 1) % 7, targets)
        targets[2] = IGNORE
        function = partial(token_logprob, targets=targets, temperature=0.8, forbidden=forbidden,
                           keep_bytes=keep_bytes)
        assert torch.autograd.gradcheck(function, (hidden, weight), eps=1e-6, atol=1e-8)


def test_ignored_targets_are_zero_and_get_no_gradient():
    hidden, weight, targets, g = inputs(20, 8, 50)
    targets[3:9] = IGNORE
    logp, entropy, d_hidden, _ = assert_right(hidden, weight, targets, g)
    assert (logp[3:9] == 0).all() and (entropy[3:9] == 0).all() and (d_hidden[3:9] == 0).all()
    targets[:] = IGNORE
    logp, _, d_hidden, d_weight = fused(hidden, weight, targets, g)
    assert not logp.any() and not d_hidden.any() and not d_weight.any() and d_weight.shape == weight.shape


def test_rows_without_gradient_change_nothing_in_the_others(monkeypatch):
    monkeypatch.setattr(grpo, "FEW_ROWS", 3)
    hidden, weight, targets, g = inputs(200, 16, 300)
    for kept_share in (0.0, 0.02, 0.3, 0.97, 1.0):
        some = torch.where(torch.rand(200) < kept_share, g, 0.0)
        for keep_bytes in (KEEP, 0):
            _, _, d_hidden, _ = assert_right(hidden, weight, targets, some, keep_bytes=keep_bytes)
            assert not d_hidden[some == 0].any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_sure_and_hopeless_targets(dtype):
    """The target's logit above or below all others, up to 300: log-probs from -1e-30 or so to -300,
    in one batch."""
    hidden, weight, targets, g = inputs(64, 64, 500, dtype, sd=1.0)
    with torch.no_grad():
        direction = weight[targets].float() / weight[targets].float().norm(dim=-1, keepdim=True) ** 2
        hidden += (torch.linspace(-300, 300, 64)[:, None] * direction).to(dtype)
    logp, *_ = assert_right(hidden, weight, targets, g)
    assert logp.min() < -250 and logp.max() > -1e-20


def test_sure_tokens_keep_their_digits():
    """log p = -1e-9 is 0 to a softmax in fp32, and so is its gradient."""
    hidden, weight, targets, g = inputs(64, 64, 500, sd=1.0)
    with torch.no_grad():
        direction = weight[targets] / weight[targets].norm(dim=-1, keepdim=True) ** 2
        hidden[:] = torch.linspace(20, 36, 64)[:, None] * direction
    exact, _, d_hidden, _ = by_definition(hidden, weight, targets, g)
    logp, _, got, _ = fused(hidden, weight, targets, g)
    assert exact.max() > -1e-8 and (naive_token_logprob(hidden, weight, targets)[0] == 0).any()
    assert (logp / exact - 1).abs().max() < 1e-4
    assert max(error(row, true) for row, true in zip(got, d_hidden)) < 1e-4


def test_every_row_anchored_at_its_maximum(monkeypatch):
    hidden, weight, targets, g = inputs(50, 16, 300)
    usual = fused(hidden, weight, targets, g)
    monkeypatch.setattr(grpo, "ANCHOR_LIMIT", -1000.0)
    monkeypatch.setattr(grpo, "FEW_ROWS", 7)
    for value, other in zip(assert_right(hidden, weight, targets, g), usual):
        torch.testing.assert_close(value, other, rtol=1e-4, atol=2e-6)


def test_one_huge_row_of_the_head():
    hidden, weight, targets, g = inputs(40, 16, 300)
    with torch.no_grad():
        weight[123] *= 1000
    assert_right(hidden, weight, targets, g)
    assert_right(hidden, weight, torch.full_like(targets, 123), g)


def test_forbidden_ids_have_no_share():
    hidden, weight, targets, g = inputs(40, 16, 300)
    forbidden = torch.zeros(300, dtype=torch.bool)
    forbidden[[0, 7, 299]] = True
    targets = torch.where(forbidden[targets], 8, targets)
    with torch.no_grad():
        weight[7] = 50 * hidden[0]                              # what it may not say would be all but certain
    logp, _, _, d_weight = assert_right(hidden, weight, targets, g, forbidden=forbidden)
    assert not d_weight[forbidden].any()
    kept = weight[~forbidden]
    others = torch.log_softmax((hidden @ kept.T), -1).exp().sum(-1)
    torch.testing.assert_close(others, torch.ones(40))
    assert token_logprob(hidden[:1], weight, torch.tensor([7]), forbidden=forbidden).item() == -torch.inf


def test_the_largest_logit_may_be_a_forbidden_one():
    """z = 0, 100, 99, 400 and the last is forbidden: log p = -100 - ln(1 + 1/e),
    the anchor is 100 and not 400."""
    weight, forbidden = torch.tensor([[0.0], [100.0], [99.0], [400.0]]), torch.arange(4) == 3
    logp = token_logprob(torch.ones(1, 1), weight, torch.tensor([0]), forbidden=forbidden)
    assert logp.item() == pytest.approx(-100.3133, abs=1e-4)


def test_forbidden_ids_beyond_the_first_tile_of_the_kernel():
    hidden, weight, targets, g = inputs(6, 16, 4500)
    forbidden = torch.arange(4500) % 2300 == 7
    assert_right(hidden, weight, torch.where(forbidden[targets], 0, targets), g, forbidden=forbidden)


def test_strides_do_not_matter():
    hidden, weight, targets, g = inputs(30, 8, 100)
    forbidden = torch.arange(100) == (targets[0] + 1) % 100
    targets = torch.where(forbidden[targets], targets[0], targets)
    expected = fused(hidden, weight, targets, g, forbidden=forbidden)
    wide, tall = torch.randn(30, 24), torch.randn(8, 100).T
    with torch.no_grad():
        wide[:, 8:16], tall[:] = hidden, weight
    got = fused(wide[:, 8:16].requires_grad_(), tall.requires_grad_(), torch.stack([targets] * 2, 1)[:, 0], g,
                forbidden=torch.stack([forbidden, ~forbidden], 1)[:, 0])
    for value, other in zip(got, expected):
        torch.testing.assert_close(value, other, rtol=1e-5, atol=1e-6)


def test_a_tied_head_gets_both_gradients():
    table = torch.randn(60, 8, requires_grad=True)
    ids, targets = torch.randint(60, (2, 25))
    got, = torch.autograd.grad(token_logprob(table[ids].tanh(), table, targets).sum(), table)
    expected, = torch.autograd.grad(naive_token_logprob(table[ids].tanh(), table, targets)[0].sum(), table)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


def test_a_frozen_head_or_frozen_hidden():
    hidden, weight, targets, g = inputs(30, 8, 100)
    _, _, d_hidden, d_weight = by_definition(hidden, weight, targets, g)
    for keep_bytes in (KEEP, 0):
        got, = torch.autograd.grad(token_logprob(hidden, weight.detach(), targets,
                                                 keep_bytes=keep_bytes), hidden, g)
        assert error(got, d_hidden) < 1e-5
        got, = torch.autograd.grad(token_logprob(hidden.detach(), weight, targets,
                                                 keep_bytes=keep_bytes), weight, g)
        assert error(got, d_weight) < 1e-5


# ---------------------------------------------------------------------------------- sameness and independence

@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("keep_bytes", [KEEP, 0])
def test_two_runs_are_equal_to_the_last_bit(dtype, keep_bytes):
    arguments = inputs(150, 32, 700, dtype)
    first, second = (fused(*arguments, keep_bytes=keep_bytes) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second))
    with torch.no_grad():                               # and so are log-probs with and without a gradient
        assert torch.equal(token_logprob(*arguments[:3], keep_bytes=keep_bytes), first[0])


def test_chunks_and_blocks_change_rounding_only(monkeypatch):
    arguments = inputs(150, 32, 700)
    expected = fused(*arguments)
    for rows, scratch, few in ((150, 1 << 20, 256), (64, 30_000, 5), (1, 1, 1)):
        for name, value in (("CHUNK_ROWS", [rows] * 2), ("SCRATCH_BYTES", [scratch] * 2), ("FEW_ROWS", few)):
            monkeypatch.setattr(grpo, name, value)
        for keep_bytes in (KEEP, 200_000, 0):
            for value, other in zip(fused(*arguments, keep_bytes=keep_bytes), expected):
                torch.testing.assert_close(value, other, rtol=1e-5, atol=5e-6)


def test_products_have_the_same_shapes_with_and_without_a_gradient(monkeypatch):
    """A product of another shape may round differently, on a GPU above all:
    old and current log-probs would differ."""
    hidden, weight, targets, _ = inputs(300, 8, 5000)
    shapes, product = [], grpo.matmul_fp32
    monkeypatch.setattr(grpo, "matmul_fp32", lambda a, b: shapes.append((*a.shape, *b.shape))
                        or product(a, b))
    for keep_bytes in (KEEP, 100 * 5000 * 4, 0):
        for context in (torch.enable_grad, torch.no_grad):
            shapes.append(keep_bytes)
            with context():
                token_logprob(hidden, weight, targets, keep_bytes=keep_bytes)
        first = shapes.index(keep_bytes, 1) if shapes[0] == keep_bytes else None
        assert shapes[1:first] == shapes[first + 1:] and first > 1
        shapes.clear()


def test_a_row_does_not_depend_on_the_others():
    hidden, weight, targets, _ = inputs(64, 32, 700)
    before = token_logprob(hidden, weight, targets)
    with torch.no_grad():
        hidden[10:] = 30 * torch.randn(54, 32)
    assert torch.equal(before[:10], token_logprob(hidden, weight, targets)[:10])


def test_a_second_backward_pass_makes_it_again_and_a_second_derivative_is_refused():
    hidden, weight, targets, g = inputs(30, 8, 100)
    g[::3] = 0                                          # so that the first pass moves rows about
    logp = token_logprob(hidden, weight, targets)
    first = torch.autograd.grad(logp, (hidden, weight), g, retain_graph=True)
    for a, b in zip(first, torch.autograd.grad(logp, (hidden, weight), g, retain_graph=True)):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
    slope, = torch.autograd.grad(logp, hidden, g.requires_grad_(), create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        slope.sum().backward()


def test_autocast_does_not_round_it():
    hidden, weight, targets, g = inputs(30, 8, 100)
    expected = fused(hidden, weight, targets, g)
    with torch.autocast(hidden.device.type, dtype=torch.bfloat16):
        assert all(torch.equal(a, b) for a, b in zip(fused(hidden, weight, targets, g), expected))


def test_nan_is_not_hidden():
    hidden, weight, targets, _ = inputs(5, 8, 100)
    with torch.no_grad():
        hidden[2, 3] = torch.nan
    assert token_logprob(hidden, weight, targets).isnan().tolist() == [False, False, True, False, False]
    hidden, weight, targets, g = inputs(5, 8, 100)
    g[3] = torch.nan
    _, _, d_hidden, d_weight = fused(hidden, weight, targets, g)
    assert d_hidden.isnan().any(-1).tolist() == [False, False, False, True, False] and d_weight.isnan().any()


@pytest.mark.parametrize("change, message", [
    (dict(hidden=torch.zeros(3, 5)), r"hidden \(3, 5\), weight \(9, 4\), targets \(3,\) are not \[N, H\]"),
    (dict(targets=torch.zeros(2, dtype=torch.long)), r"targets \(2,\) are not"),
    (dict(hidden=torch.zeros(3, 4, dtype=torch.bfloat16)),
     "hidden is torch.bfloat16, weight torch.float32: both"),
    (dict(hidden=torch.zeros(3, 4).half(), weight=torch.zeros(9, 4).half()),
     "must be bfloat16, float32 or float64"),
    (dict(forbidden=torch.tensor([3, 8])), r"forbidden is torch.int64 \(2,\), must be bool \[V\]"),
    (dict(temperature=0.0), "temperature is 0.0, must be above 0"),
    (dict(temperature=float("inf")), "and finite")])
def test_what_does_not_fit_is_refused(change, message):
    arguments = dict(hidden=torch.zeros(3, 4), weight=torch.zeros(9, 4),
                     targets=torch.zeros(3, dtype=torch.long))
    with pytest.raises(ValueError, match=message):
        token_logprob(**(arguments | change))
    if arguments["hidden"].device.type == "cpu":                    # a GPU's assertion would end this process
        with pytest.raises(IndexError):
            token_logprob(**(arguments | dict(targets=torch.tensor([0, 9, 0]))))


# -------------------------------------------------------------------------------------- memory and operations

class Largest(TorchDispatchMode):
    """Elements of the largest tensor that any operation makes."""

    elements = 0

    def __torch_dispatch__(self, function, types, arguments=(), more=None):
        out = function(*arguments, **(more or {}))
        for tensor in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(tensor, torch.Tensor):
                self.elements = max(self.elements, tensor.numel())
        return out


def test_the_logits_never_exist_together(monkeypatch):
    n, h, v = 300, 8, 5000
    monkeypatch.setattr(grpo, "SCRATCH_BYTES", [4 * n * 256] * 2)
    monkeypatch.setattr(grpo, "CHUNK_ROWS", [50] * 2)
    hidden, weight, targets, g = inputs(n, h, v)

    def largest(function, *more, **options) -> int:
        with Largest() as seen:
            logp = function(hidden, weight, targets, *more, **options)
            (logp[0] if isinstance(logp, tuple) else logp).backward(g)
        return seen.elements

    assert largest(naive_token_logprob) == n * v
    assert largest(token_logprob) == n * v                               # E, once: kept for the backward pass
    assert largest(token_logprob, keep_bytes=0) == 50 * v                    # E of a chunk
    with torch.no_grad(), Largest() as seen:
        token_logprob(hidden, weight, targets)
    assert seen.elements <= n * 256                                          # nothing but the scratch


def test_operations(monkeypatch):
    """Matrix products in units of N H V multiply-adds: 2 operations each, so 6NHV is three products."""
    n, h, v = 256, 64, 2000
    monkeypatch.setattr(grpo, "CHUNK_ROWS", [50] * 2)
    hidden, weight, targets, g = inputs(n, h, v)

    def products(weight=weight, g=g, hidden=hidden, **more) -> float:
        counter = FlopCounterMode(display=False)
        with counter:
            logp = token_logprob(hidden, weight, targets, **more)
            if logp.requires_grad and g is not None:
                logp.backward(g)
        return counter.get_total_flops() / (2 * n * h * v)

    few = torch.where(torch.arange(n) % 4 == 0, g, 0.0)
    assert products() == pytest.approx(3, rel=0.02)                          # kept: as the naive way
    assert products(keep_bytes=0) == pytest.approx(4, rel=0.02)              # E made again
    assert products(keep_bytes=150 * v * 4) == pytest.approx(3 + 128 / 256, rel=0.02)        # 128 rows kept
    assert products(g=None) == pytest.approx(1, rel=0.02)
    assert products(weight.detach()) == pytest.approx(2, rel=0.02)           # a frozen head
    assert products(hidden=hidden.detach()) == pytest.approx(2, rel=0.02)    # or nothing but the head
    assert products(g=few) == pytest.approx(1 + 2 / 4, rel=0.02)       # rows without gradient cost no product
    assert products(g=few, keep_bytes=0) == pytest.approx(1 + 3 / 4, rel=0.02)
    targets[:128] = IGNORE
    assert products() == pytest.approx(1.5, rel=0.02)


# ----------------------------------------------------------------------------------------------------- Triton

def test_the_kernel_compiles_for_gpus_without_one():
    """For Ampere and Hopper: 16-byte loads and stores, and no array that lies in memory."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    kernel = grpo.exponentials_kernel
    types = dict(z="*fp32", z_stride="i32", targets="*i64", first="i32", width="i32",
                 anchor="*fp32", scale="fp32",
                 forbidden="*i1", E="*bf16", E_stride="i32", Q="*fp32", Qu="*fp32", u_y="*fp32",
                 TILE="constexpr")
    assert list(types) == kernel.arg_names
    aligned = {(kernel.arg_names.index(name),): [["tt.divisibility", 16]]
               for name in ("z", "z_stride", "E", "E_stride", "width", "forbidden")}
    for capability in (80, 90):
        source = ASTSource(fn=kernel, signature=types, constexprs={"TILE": 2048}, attrs=aligned)
        ptx = triton_compile(source, GPUTarget("cuda", capability, 32))
        assert "ld.global.v4" in ptx and "st.global.v4" in ptx and "ex2.approx" in ptx and ".local" not in ptx


def triton_compile(source, target) -> str:
    import triton

    return triton.compile(source, target=target, options={"num_warps": 8}).asm["ptx"]


def test_all_of_this_with_the_triton_kernel_in_its_interpreter():
    if INTERPRETED:
        assert type(grpo.exponentials_kernel).__name__ == "InterpretedFunction"
        return
    # not its business
    others = "not exist_together and not operations and not chunks_and_blocks and not compiles"
    done = subprocess.run([sys.executable, "-m", "pytest", "-q", "-x", "-k", others, __file__],
                          cwd=ROOT, text=True,
                          env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, timeout=600)
    assert done.returncode == 0, done.stdout[-3000:]
