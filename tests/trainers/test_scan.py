"""Scans: equal to the recurrence written out, and so are their derivatives of every kind and order."""

from __future__ import annotations

import json
import runpy
import sys
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.autograd import forward_ad, gradcheck, gradgradcheck
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, vmap

from ckpt_trainers import scan as scans
from ckpt_trainers.scan import Recurrence, decay, scan, selective_scan, ssd

# torch builds its tables for forward mode with its own deprecated torch.jit.script.
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning"),
]

Scan = Callable[..., Tensor]


def written_out(a: Tensor, b: Tensor) -> Tensor:
    h = [b[:, 0]]
    for t in range(1, b.shape[1]):
        h.append(a[:, t] * h[-1] + b[:, t])
    return torch.stack(h, dim=1)


def selective_written_out(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor) -> Tensor:
    """The state space one step at a time, [B, T, d]."""
    h, y = x.new_zeros(()), []
    for t in range(x.shape[1]):
        h = torch.exp(dt[:, t, :, None] * A) * h + (dt[:, t] * x[:, t])[..., None] * B[:, t, None]
        y.append((h * C[:, t, None]).sum(-1) + D * x[:, t])
    return torch.stack(y, dim=1)


def heads_written_out(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor) -> Tensor:
    """The state space with one rate per head, each head by itself, [B, T, H, P]."""
    each = x.shape[2] // B.shape[2]
    heads = []
    for h in range(x.shape[2]):
        rates = A[h].expand(x.shape[3], B.shape[3])
        step = dt[:, :, h, None].expand_as(x[:, :, h])
        skip = D[h].expand(x.shape[3])
        heads.append(selective_written_out(x[:, :, h], step, rates, B[:, :, h // each], C[:, :, h // each], skip))
    return torch.stack(heads, dim=2)


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def pair(length: int = 5, dtype: torch.dtype = torch.float64, **_: Any) -> list[Tensor]:
    return [random(2, length, 3, dtype=dtype).sigmoid(), random(2, length, 3, seed=1, dtype=dtype)]


def channels(length: int = 5, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    shapes = [(2, length, 3), (2, length, 3), (3, 2), (2, length, 2), (2, length, 2), (3,)]
    x, dt, A, B, C, D = (random(*shape, seed=i, dtype=dtype) for i, shape in enumerate(shapes))
    return [x, dt.sigmoid(), -A.exp(), B, C, D]


def heads(length: int = 5, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    shapes = [(2, length, 4, 3), (2, length, 4), (4,), (2, length, 2, 5), (2, length, 2, 5), (4,)]
    x, dt, A, B, C, D = (random(*shape, seed=i, dtype=dtype) for i, shape in enumerate(shapes))
    return [x, dt.sigmoid(), -A.exp(), B, C, D]


def ssd_in_twos(*inputs: Tensor) -> Tensor:
    return ssd(*inputs, chunk=2)


CASES: dict[str, tuple[Scan, Scan, Callable[..., list[Tensor]]]] = {
    "scan": (scan, written_out, pair),
    "selective_scan": (selective_scan, selective_written_out, channels),
    "ssd": (ssd, heads_written_out, heads),
    "ssd, chunks of 2": (ssd_in_twos, heads_written_out, heads),
}
every_scan = pytest.mark.parametrize(("ours", "plain", "inputs"), CASES.values(), ids=CASES.keys())


@every_scan
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-12)])
@pytest.mark.parametrize("length", [1, 2, 5, 64, 200])
def test_equal_to_the_recurrence(
    ours: Scan, plain: Scan, inputs: Any, dtype: torch.dtype, tolerance: float, length: int
) -> None:
    """The largest difference, relative to the largest value; float32 is measured against float64."""
    exact = plain(*inputs(length))
    found = ours(*(v.to(dtype) for v in inputs(length)))
    assert found.dtype == dtype
    assert found.shape == exact.shape
    assert (found - exact).abs().max() <= tolerance * exact.abs().max()


@every_scan
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradients_without_a_graph(ours: Scan, plain: Scan, inputs: Any, dtype: torch.dtype) -> None:
    values = [v.to(dtype).requires_grad_() for v in inputs(40)]
    weight = random(*plain(*inputs(40)).shape, seed=9)
    found = torch.autograd.grad((ours(*values) * weight).sum(), values)
    exact_values = [v.requires_grad_() for v in inputs(40)]
    exact = torch.autograd.grad((plain(*exact_values) * weight).sum(), exact_values)
    tolerance = 1e-5 if dtype == torch.float32 else 1e-12
    for one, other in zip(found, exact, strict=True):
        assert (one - other).abs().max() <= tolerance * other.abs().max()


@every_scan
def test_gradcheck(ours: Scan, plain: Scan, inputs: Any) -> None:
    values = [v.requires_grad_() for v in inputs(3)]
    assert gradcheck(ours, values, check_forward_ad=True)
    assert gradgradcheck(ours, values, check_fwd_over_rev=True)


def test_gradcheck_of_the_transpose() -> None:
    values = [v.requires_grad_() for v in pair()]
    transpose = lambda a, b: Recurrence.apply(a, b, True)  # noqa: E731
    assert gradcheck(transpose, values, check_forward_ad=True)
    assert gradgradcheck(transpose, values, check_fwd_over_rev=True)


def test_transpose_is_the_transpose() -> None:
    a, b = pair(7)
    g = random(2, 7, 3, seed=4)
    forth = (scans.recurrence(a, b, False) * g).sum()
    back = (b * scans.recurrence(a, g, True)).sum()
    torch.testing.assert_close(forth, back, rtol=1e-13, atol=0)


def loss(f: Scan, weight: float = 1.0) -> Callable[..., Tensor]:
    return lambda *values: weight * (f(*values) ** 3).sum()


def close(one: Any, other: Any) -> None:
    torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


@every_scan
def test_products_with_the_hessian(ours: Scan, plain: Scan, inputs: Any) -> None:
    values = tuple(inputs())
    along = tuple(random(*v.shape, seed=20 + i) for i, v in enumerate(values))
    every = tuple(range(len(values)))
    _, expected = jvp(grad(loss(plain), every), values, along)
    close(jvp(grad(loss(ours), every), values, along)[1], expected)
    marked = [v.clone().requires_grad_() for v in values]
    slope = torch.autograd.grad(loss(ours)(*marked), marked, create_graph=True)
    dot = sum((s * v).sum() for s, v in zip(slope, along, strict=True))
    close(torch.autograd.grad(dot, marked), expected)


@every_scan
@pytest.mark.parametrize("order", [1, 2, 3])
def test_every_nesting_of_derivatives(ours: Scan, plain: Scan, inputs: Any, order: int) -> None:
    """Along a curve through the inputs; forward over forward is silently zero without care."""
    values = inputs()
    along = [random(*v.shape, seed=30 + i) for i, v in enumerate(values)]
    here, one = torch.tensor(0.3, dtype=torch.float64), torch.tensor(1.0, dtype=torch.float64)

    def derived(f: Scan, ways: tuple[str, ...]) -> Tensor:
        def curve(s: Tensor) -> Tensor:
            return loss(f)(*(v + 0.1 * torch.sin(s * w) for v, w in zip(values, along, strict=True)))

        for way in ways:
            curve = grad(curve) if way == "reverse" else (lambda s, g=curve: jvp(g, (s,), (one,))[1])
        return curve(here)

    for ways in product(["forward", "reverse"], repeat=order):
        close(derived(ours, ways), derived(plain, ways))


@every_scan
@pytest.mark.parametrize("how", [hessian, lambda f: jacrev(jacrev(f)), lambda f: jacfwd(jacfwd(f))])
def test_whole_hessian(ours: Scan, plain: Scan, inputs: Any, how: Any) -> None:
    values = inputs(3)
    close(how(loss(ours))(*values), how(loss(plain))(*values))


@every_scan
def test_batched_over_any_axis(ours: Scan, plain: Scan, inputs: Any) -> None:
    values = inputs()
    stacked = [torch.stack([v, 2 * v, -v], dim=-1 if i % 2 else 0) for i, v in enumerate(values)]
    for which in ({0}, {1}, set(range(len(values)))):
        dims = tuple((-1 if i % 2 else 0) if i in which else None for i in range(len(values)))
        given = [stacked[i] if i in which else v for i, v in enumerate(values)]
        found = vmap(ours, in_dims=dims)(*given)
        for k, factor in enumerate((1, 2, -1)):
            alone = [factor * v if i in which else v for i, v in enumerate(values)]
            close(found[k], plain(*alone))


def test_dual_numbers_through_a_backward_pass() -> None:
    values, along = channels(), [random(*v.shape, seed=40 + i) for i, v in enumerate(channels())]
    _, expected = jvp(grad(loss(selective_written_out)), tuple(values), tuple(along))
    with forward_ad.dual_level():
        duals = [forward_ad.make_dual(v.requires_grad_(), w) for v, w in zip(values, along, strict=True)]
        slope = torch.autograd.grad(loss(selective_scan)(*duals), duals[0], create_graph=True)[0]
        found = forward_ad.unpack_dual(slope).tangent
    close(found.detach(), expected)


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 40), st.integers(1, 41))
def test_chunks_do_not_matter(length: int, chunk: int) -> None:
    torch.testing.assert_close(ssd(*heads(length), chunk=chunk), ssd(*heads(length)), rtol=1e-12, atol=1e-12)


def test_long_decay_is_exact() -> None:
    """Differences of sums from the start would cancel: 1e5 steps back, exp(-1e-3) is still right to 1e-6."""
    rate = torch.cat([torch.full((99,), -1e3), torch.tensor([-1e-3])])
    assert decay(rate)[99, 98].item() == pytest.approx(0.9990005, rel=1e-6)
    assert decay(rate).isfinite().all()


def test_memory_of_the_caller_is_left_alone() -> None:
    for ours, _, inputs in CASES.values():
        values = inputs()
        before = [v.clone() for v in values]
        ours(*(v.requires_grad_() for v in values)).sum().backward()
        assert all(torch.equal(v, w) for v, w in zip(values, before, strict=True))


def test_rates_expand_to_the_inputs() -> None:
    a, b = pair()
    close(scan(a[:, :, :1], b), written_out(a[:, :, :1].expand_as(b), b))
    a.requires_grad_()
    (slope,) = torch.autograd.grad(scan(a[:1, :, :1], b).sum(), a)
    assert slope[1:].abs().max() == 0 and slope[0, 1:, 0].abs().min() > 0


def test_mixed_precision_is_computed_in_the_widest() -> None:
    x, dt, A, B, C, D = channels(dtype=torch.float32)
    found = selective_scan(x.bfloat16(), dt, A, B.bfloat16(), C, D)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, selective_scan(x.bfloat16().float(), dt, A, B.bfloat16().float(), C, D))


class Filter(torch.nn.Module):
    """One rate, learned."""

    def __init__(self) -> None:
        super().__init__()
        self.rate = torch.nn.Parameter(torch.tensor(0.3, dtype=torch.float64))

    def forward(self, b: Tensor) -> Tensor:
        return scan(self.rate[None, None, None], b)


def test_under_functional_call() -> None:
    """h_2 of inputs 1, 1, 1 is 1 + r + r^2, so that its second derivative is 2."""
    b, module = torch.ones(1, 3, 1, dtype=torch.float64), Filter()
    last = lambda r: functional_call(module, {"rate": r}, (b,))[0, -1, 0]  # noqa: E731
    at = torch.tensor(0.5, dtype=torch.float64)
    assert (last(at).item(), grad(last)(at).item(), grad(grad(last))(at).item()) == (1.75, 2.0, 2.0)


def test_the_benchmark_runs_without_its_peer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    file = Path(__file__).resolve().parents[2] / "benchmarks" / "scan.py"
    sizes = ["--batch", "2", "--length", "6", "--width", "3", "--states", "2", "--rounds", "2"]
    monkeypatch.setattr("sys.argv", [str(file), *sizes, "--json", str(tmp_path / "scan.json")])
    monkeypatch.setitem(sys.modules, "mambapy", None)
    monkeypatch.syspath_prepend(str(file.parent))
    threads = torch.get_num_threads()
    runpy.run_path(str(file), run_name="__main__")
    torch.set_num_threads(threads)
    printed, report = capsys.readouterr().out, json.loads((tmp_path / "scan.json").read_text())
    found = report["found"]
    assert "mamba.py is not there" in printed and "--peer FOLDER" in printed
    assert found["second_order_ours"] == "right"
    assert report["machine"]["versions"]["torch"] == torch.__version__
    assert not report["goals"]
    assert all(case["ours"]["error"] < 1e-6 and "ratio" not in case for case in found["cases"].values())
