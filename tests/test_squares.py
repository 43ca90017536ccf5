"""The device's route to singular values, taken on the CPU by torch: right within its bounds, or not used at all."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from ckpt_tools import squares
from ckpt_tools.spectra import singular_values, singular_values_batch, spectrum_of_rows

RNG = np.random.default_rng(0)
SOLVE = torch.linalg.eigvalsh


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Let torch's CPU be a device that is worth sending every matrix to; return the shapes of what was solved there."""
    solved: list[tuple[int, ...]] = []

    def solve(gram: torch.Tensor) -> torch.Tensor:
        solved.append(tuple(gram.shape))
        return SOLVE(gram)

    monkeypatch.setattr(squares, "CPU", "here")
    monkeypatch.setattr(squares, "WORTH", 0)
    monkeypatch.setattr(torch.linalg, "eigvalsh", solve)
    return solved


def exact(matrix: Any) -> Any:
    return np.linalg.svd(np.asarray(matrix, dtype=np.float64), compute_uv=False)


KINDS: dict[str, Callable[[Any], Any]] = {
    "float32": lambda a: a.astype("f4"),
    "float64": lambda a: a,
    "float16": lambda a: a.astype("f2"),
    "integers": lambda a: (100 * a).astype("i4"),
    "columns first": np.asfortranarray,
    "read-only": lambda a: np.broadcast_to(a, a.shape),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(40, 30), (30, 40), (30, 30)])
def test_values_are_those_of_a_decomposition(sent: Any, kind: str, shape: tuple[int, int]) -> None:
    matrix = KINDS[kind](RNG.standard_normal(shape))
    found, truth = singular_values(matrix, device="cpu"), exact(matrix)
    assert sent == [(30, 30)] and found.route == "gram"
    assert (np.abs(found.values - truth) <= found.error + 1e-13 * truth[0]).all()


def test_graded_and_clustered_values_keep_the_bounds(sent: Any) -> None:
    left, right = (np.linalg.qr(RNG.standard_normal((60, 60)))[0] for _ in "ab")
    for s in (np.geomspace(1, 1e-4, 60), np.repeat([1.0, 1e-2], 30), 1 / np.arange(1, 61)):
        found = singular_values((left * s) @ right, device="cpu", tol=1.0)
        assert (found.route, len(sent)) == ("gram", 1)
        assert (np.abs(found.values - exact((left * s) @ right)) <= found.error + 1e-14).all()
        sent.clear()


def test_rows_are_sent_tile_by_tile(sent: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ckpt_tools.blocked.TILE_BYTES", 8 * 7 * 20)
    matrix = RNG.standard_normal((50, 20)).astype("f4")
    found = spectrum_of_rows(lambda: (matrix[:23], matrix[23:]), (50, 20), device="cpu")
    assert sent == [(20, 20)]
    np.testing.assert_allclose(found.values, exact(matrix), rtol=1e-13)
    with pytest.raises(ValueError, match="hold 23 rows, but the matrix has 50"):
        spectrum_of_rows(lambda: (matrix[:23],), (50, 20), device="cpu")


def test_stacks_are_solved_several_at_once(sent: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    stack = RNG.standard_normal((2, 3, 10, 16))
    monkeypatch.setattr(squares, "STACK_BYTES", 4 * 8 * 160)
    found = singular_values_batch(stack, device="cpu")
    assert sent == [(4, 10, 10), (2, 10, 10)]
    np.testing.assert_allclose(found.values, [[exact(m) for m in row] for row in stack], rtol=1e-12)


def test_matrices_that_the_gram_route_cannot_resolve_are_decomposed(sent: Any) -> None:
    stack = RNG.standard_normal((4, 12, 8))
    stack[1, 2, 3], stack[2, 0, 0] = np.nan, np.inf
    stack[3] = 0
    here, there = (singular_values_batch(stack, device=device) for device in ("here", "cpu"))
    assert (there.route, len(sent)) == ("mixed", 1)
    np.testing.assert_allclose(there.values, here.values, rtol=1e-13)
    assert np.isnan(there.values[1:3]).all() and (there.values[3] == 0).all()


def spoilt(gram: torch.Tensor) -> torch.Tensor:
    """Return eigenvalues that lost the digits beyond the twelfth."""
    return SOLVE(gram) * (1 + 1e-12 * torch.linspace(0, 1, len(gram), dtype=torch.float64))


def swapped(gram: torch.Tensor) -> torch.Tensor:
    """Return eigenvalues whose sum is right."""
    shift = torch.zeros(len(gram), dtype=torch.float64)
    shift[-1], shift[0] = 0.01, -0.01
    return SOLVE(gram) + shift * gram.trace()


def failing(error: Exception) -> Callable[[torch.Tensor], torch.Tensor]:
    def solve(gram: torch.Tensor) -> torch.Tensor:
        raise error

    return solve


FAULTS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "digits": spoilt,
    "a wrong sum of squares": swapped,
    "not a number": lambda gram: SOLVE(gram) * torch.nan,
    "no convergence": failing(torch.linalg.LinAlgError("no convergence")),
    "no memory": failing(torch.OutOfMemoryError("CUDA out of memory")),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_a_device_gets_wrong_the_cpu_computes(sent: Any, monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    matrix = RNG.standard_normal((40, 30))
    here = singular_values(matrix, device="here")
    monkeypatch.setattr(torch.linalg, "eigvalsh", FAULTS[fault])
    there = singular_values(matrix, device="cpu")
    assert np.array_equal(there.values, here.values) and np.array_equal(there.error, here.error)
    with monkeypatch.context() as other:
        other.setattr(torch.linalg, "eigvalsh", lambda gram: torch.stack([FAULTS[fault](one) for one in gram]))
        assert np.array_equal(singular_values_batch(matrix[None], device="cpu").values, here.values[None])


@pytest.mark.parametrize(
    ("device", "shape", "goes"),
    [
        ("cuda:0", (1000, 1000), True),
        ("cuda:0", (999, 1000), False),
        ("cuda:0", (100_000, 100), True),
        ("mps", (5000, 5000), False),
        ("cpu", (5000, 5000), False),
    ],
)
def test_only_large_matrices_go_and_only_where_there_is_float64(
    device: str, shape: tuple[int, int], goes: bool
) -> None:
    assert squares._pays((max(shape), min(shape)), device) == goes
