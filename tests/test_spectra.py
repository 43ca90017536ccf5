"""Oracles: exactly representable matrices of known spectrum (Hadamard), float64 SVD, the dense product."""

import subprocess
import sys
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ckpt_tools import blocked, spectra
from ckpt_tools.spectra import product_singular_values, singular_values, singular_values_batch, spectrum_of_rows

GROWING = np.arange(1.0, 65.0)


def spectrum_families(n):
    i = np.arange(1.0, n + 1)
    return {
        "i^-1/2": i**-0.5,
        "1/i": 1 / i,
        "i^-2": i**-2,
        "power law to 1e-8": i ** (-8 / np.log10(n)),
        "geometric to 1e-8": np.geomspace(1, 1e-8, n),
        "geometric to 1e-2": np.geomspace(1, 1e-2, n),
        "10 spikes over 1e-4": np.where(i <= 10, 1, 1e-4),
        "one spike over 1e-3": np.where(i <= 1, 1, 1e-3),
        "half over 1e-2": np.where(i <= n // 2, 1, 1e-2),
        "flat": np.ones(n),
        "exact rank": np.where(i <= n // 12, 1.0, 0.0),
    }


def matrix_with(s, m, rng):
    left = np.linalg.qr(rng.standard_normal((len(s), len(s))))[0]
    right = np.linalg.qr(rng.standard_normal((m, len(s))))[0]
    return (left * s) @ right.T


def orthogonal_64():
    """A 64 x 64 orthogonal matrix whose entries, +-1/8, are exact."""
    h = np.ones((1, 1))
    for _ in range(6):
        h = np.block([[h, h], [h, -h]])
    return h / 8


def entropy_rank(s):
    p = s[s > 0] / s.sum()
    return np.exp(-(p * np.log(p)).sum())


def svd(matrix):
    return np.linalg.svd(matrix.astype(np.float64), compute_uv=False)


def bfloat16(matrix):
    """Round to nearest bfloat16, ties to even, kept in float32."""
    bits = matrix.astype(np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000).astype(np.uint32).view(np.float32)


STORED = {
    "float64": lambda a: a,
    "float32": lambda a: a.astype(np.float32),
    "float16": lambda a: a.astype(np.float16),
    "bfloat16": bfloat16,
}


@pytest.mark.parametrize("stored", STORED)
@pytest.mark.parametrize("shape", [(48, 48), (48, 160), (160, 48)])
@pytest.mark.parametrize("family", spectrum_families(48))
def test_known_families_agree_with_a_float64_svd(family, shape, stored):
    built = matrix_with(spectrum_families(48)[family], max(shape), np.random.default_rng(7))
    matrix = STORED[stored](built if shape[0] <= shape[1] else built.T)
    found, truth = singular_values(matrix), svd(matrix)
    assert found.values.dtype == np.float64 and (np.diff(found.values) <= 0).all()
    assert found.values.sum() == pytest.approx(truth.sum(), rel=1e-10)
    assert entropy_rank(found.values) == pytest.approx(entropy_rank(truth), rel=1e-9)
    assert (abs(found.values - truth) <= found.error + 100 * np.finfo(float).eps * truth[0]).all()


EXACT = {
    "1/i, columns": (orthogonal_64() * (1 / GROWING), 1 / GROWING),
    "1/i, rows": ((orthogonal_64() * (1 / GROWING)).T, 1 / GROWING),
    "geometric to 1e-3": (orthogonal_64() * np.geomspace(1, 1e-3, 64), np.geomspace(1, 1e-3, 64)),
    "geometric to 1e-12": (orthogonal_64() * np.geomspace(1, 1e-12, 64), np.geomspace(1, 1e-12, 64)),
    "integers": ((orthogonal_64() * 64 * GROWING) @ orthogonal_64().T, 64 * GROWING[::-1]),
    "powers of two": ((orthogonal_64() * 2.0 ** (GROWING // 3)) @ orthogonal_64().T, 2.0 ** (GROWING // 3)[::-1]),
    "rank 32": ((orthogonal_64() * (GROWING > 32)) @ orthogonal_64().T, (GROWING <= 32) * 1.0),
}


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("case", EXACT)
def test_error_bounds_hold_against_spectra_known_exactly(case, exact):
    matrix, truth = EXACT[case]
    found = singular_values(matrix, exact=exact)
    assert (abs(found.values - truth) <= found.error).all()
    assert abs(found.values.sum() / truth.sum() - 1) <= found.nuclear_error <= 1e-10


def test_gram_bounds_hold_where_the_gram_route_would_not_be_chosen():
    for case in ("1/i, rows", "geometric to 1e-3", "integers"):
        matrix, truth = EXACT[case]
        loose = singular_values(matrix, tol=1.0)
        assert loose.route == "gram"
        assert (abs(loose.values - truth) <= loose.error).all()


def test_gram_bounds_hold_for_clusters_of_nearly_equal_values():
    rng = np.random.default_rng(11)
    for n in (16, 64, 128):
        for low in (1.0, 1e-5):
            s = np.where(np.arange(n) < n // 2, 1.0, low)
            matrix = matrix_with(s, n, rng).astype(np.float32)
            loose, exact = singular_values(matrix, tol=1.0), singular_values(matrix, exact=True)
            assert (loose.route, exact.route) == ("gram", "svd")
            assert (abs(loose.values - exact.values) <= loose.error).all()


def test_route_is_squares_when_accurate_and_a_decomposition_when_not():
    rng = np.random.default_rng(0)
    assert singular_values(rng.standard_normal((64, 64))).route == "gram"
    assert singular_values(rng.standard_normal((64, 64)), exact=True).route == "svd"
    assert singular_values(EXACT["geometric to 1e-12"][0]).route == "svd"
    assert singular_values(EXACT["rank 32"][0]).route == "svd"
    one_unresolved = orthogonal_64() * np.where(GROWING < 64, 1, 2.5e-7)
    assert singular_values(one_unresolved).route == "svd"


def test_small_values_are_neither_floored_nor_lost():
    found = singular_values(EXACT["geometric to 1e-12"][0])
    np.testing.assert_allclose(found.values, np.geomspace(1, 1e-12, 64), rtol=0, atol=1e-14)


def test_bound_holds_for_very_tall_matrices():
    rng = np.random.default_rng(1)
    for s in (np.geomspace(1, 1e-3, 16), np.where(np.arange(16) < 8, 1, 1e-2)):
        tall = matrix_with(s, 60_000, rng).T
        found = singular_values(tall)
        assert found.route == "gram"
        assert (abs(found.values - svd(tall)) <= found.error).all()


@given(
    rows=st.integers(1, 30),
    columns=st.integers(1, 12),
    cut=st.integers(1, 30),
    tile=st.integers(1, 400),
    deficient=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
@settings(max_examples=80, deadline=None)
def test_streaming_equals_dense(rows, columns, cut, tile, deficient, seed):
    matrix = np.random.default_rng(seed).standard_normal((rows, columns)).astype(np.float32)
    if deficient:
        matrix[:, -1] = matrix[:, 0]
    buffer = np.empty((cut, columns), np.float32)

    def blocks():
        for start in range(0, rows, cut):
            part = matrix[start : start + cut]
            buffer[: len(part)] = part
            yield buffer[: len(part)]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blocked, "TILE_BYTES", tile)
        found = spectrum_of_rows(blocks, matrix.shape)
    np.testing.assert_allclose(found.values, svd(matrix), rtol=0, atol=1e-10 * max(1, svd(matrix)[0]))
    assert (abs(found.values - svd(matrix)) <= found.error + 1e-14 * svd(matrix)[0]).all()


def test_rank_deficient_tall_matrices_go_through_blocked_qr(monkeypatch):
    rng = np.random.default_rng(3)
    tall = rng.standard_normal((500, 8)) @ rng.standard_normal((8, 20))
    monkeypatch.setattr(blocked, "TILE_BYTES", 8 * 20 * 30)
    found = spectrum_of_rows(lambda: (tall[:170], tall[170:]), tall.shape)
    assert found.route == "qr"
    np.testing.assert_allclose(found.values, svd(tall), rtol=0, atol=1e-13 * svd(tall)[0])
    assert singular_values(tall.T).route == "qr"


def test_streaming_never_holds_the_matrix():
    shape = (40_000, 64)

    def blocks():
        rng = np.random.default_rng(0)
        for _ in range(40):
            yield rng.standard_normal((1000, 64), dtype=np.float32)

    tracemalloc.start()
    found = spectrum_of_rows(blocks, shape)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found.values.shape == (64,)
    assert peak < 0.2 * 4 * shape[0] * shape[1]


def test_blocks_that_do_not_make_the_shape_are_refused():
    part = np.random.default_rng(0).standard_normal((3, 2))
    for shape in [(4, 2), (2, 2), (4, 20), (7, 2)]:
        with pytest.raises(ValueError, match=r"rows|broadcast"):
            spectrum_of_rows(lambda: (part,), shape)
    with pytest.raises(ValueError, match="2-D"):
        singular_values(np.ones(3))
    with pytest.raises(ValueError, match="at least 2 dimensions"):
        singular_values_batch(np.ones(3))


@pytest.mark.parametrize("shape", [(5, 3), (3, 5), (1, 4), (4, 1), (1, 1)])
def test_zero_nan_and_infinite_matrices(shape):
    zero = singular_values(np.zeros(shape, np.float32))
    assert (zero.values == 0).all() and zero.nuclear_error == 0 and zero.values.shape == (min(shape),)
    for bad in (np.nan, np.inf, -np.inf):
        matrix = np.ones(shape)
        matrix[0, -1] = bad
        found = singular_values(matrix)
        assert np.isnan(found.values).all() and found.values.shape == (min(shape),)
        assert np.isnan(found.nuclear_error)


def test_nan_in_a_streamed_block_reaches_every_value(monkeypatch):
    tall = np.ones((90, 3))
    tall[80, 1] = np.nan
    monkeypatch.setattr(blocked, "TILE_BYTES", 240)
    assert np.isnan(spectrum_of_rows(lambda: iter(np.split(tall, 3)), tall.shape).values).all()


def test_one_row_is_its_norm_and_empty_matrices_have_no_values():
    assert singular_values(np.array([[3.0, 4.0]])).values == pytest.approx([5.0])
    for shape in [(0, 3), (3, 0), (0, 0)]:
        empty = singular_values(np.zeros(shape))
        assert empty.values.shape == (0,) and empty.nuclear_error == 0


@pytest.mark.parametrize("scale", [1e-310, 1e-200, 1e-130, 1e130, 1e200])
def test_squares_that_leave_the_float_range_are_not_used(scale):
    matrix = np.diag([3.0, 2.0, 1.0]) * scale
    found = singular_values(matrix)
    assert found.route == "svd"
    np.testing.assert_allclose(found.values, np.array([3.0, 2.0, 1.0]) * scale, rtol=1e-12)


def test_batch_equals_one_by_one_and_mends_only_what_needs_it():
    rng = np.random.default_rng(5)
    stack = rng.standard_normal((2, 3, 6, 9)).astype(np.float32)
    plain = singular_values_batch(stack)
    assert plain.route == "gram" and plain.values.shape == (2, 3, 6)
    stack[0, 1] = 0
    stack[1, 2, 0, 0] = np.nan
    stack[1, 0, 5] = stack[1, 0, 4]
    for batch in (stack, stack.swapaxes(-1, -2)):
        found = singular_values_batch(batch)
        assert found.route == "mixed"
        singles = np.array([[singular_values(m).values for m in row] for row in batch])
        np.testing.assert_allclose(found.values, singles, rtol=0, atol=1e-12)
        np.testing.assert_array_equal(np.isnan(found.nuclear_error), [[False] * 3, [False, False, True]])


def test_batch_has_its_limits_tiled_and_its_edges(monkeypatch):
    stack = np.random.default_rng(6).standard_normal((5, 7, 4))
    whole = singular_values_batch(stack).values
    for cache, tile in ((8 * 7 * 4 * 2, 1 << 20), (0, 1 << 20), (0, 8 * 4 * 3)):
        monkeypatch.setattr(blocked, "CACHE_BYTES", cache)
        monkeypatch.setattr(blocked, "TILE_BYTES", tile)
        np.testing.assert_allclose(singular_values_batch(stack).values, whole, rtol=1e-12)
    assert singular_values_batch(stack[0]).values.shape == (4,)
    assert singular_values_batch(np.zeros((0, 3, 2))).values.shape == (0, 2)
    assert singular_values_batch(np.zeros((4, 3, 0))).values.shape == (4, 0)
    assert singular_values_batch(np.zeros((2, 3, 3))).route == "svd"


@given(
    m=st.integers(1, 12),
    r=st.integers(1, 8),
    n=st.integers(1, 12),
    heads=st.integers(1, 3),
    decay=st.sampled_from([1.0, 0.3, 1e-3]),
    seed=st.integers(0, 2**32 - 1),
    tol=st.sampled_from([1e-11, 0.0]),
)
@settings(max_examples=100, deadline=None)
def test_products_equal_the_dense_product(m, r, n, heads, decay, seed, tol):
    rng = np.random.default_rng(seed)
    a = rng.standard_normal((heads, m, r)) * decay ** np.arange(r)
    b = rng.standard_normal((heads, r, n))
    found = product_singular_values(a, b, tol=tol)
    k = min(m, r, n)
    truth = np.linalg.svd(a @ b, compute_uv=False)
    assert found.values.shape == (heads, k)
    scale = np.linalg.norm(a, axis=(-2, -1)) * np.linalg.norm(b, axis=(-2, -1))
    assert (abs(found.values - truth[:, :k]) <= 1e-12 * scale[:, None]).all()
    assert (abs(found.values - truth[:, :k]) <= found.error + 1e-15 * scale[:, None]).all()


def test_products_of_well_conditioned_heads_use_squares_and_singular_ones_two_qrs():
    rng = np.random.default_rng(8)
    a, b = rng.standard_normal((4, 64, 16)), rng.standard_normal((4, 16, 64))
    assert product_singular_values(a, b).route == "gram"
    b[2, 3] = b[2, 4]
    assert product_singular_values(a, b).route == "mixed"
    a[1] = 0
    found = product_singular_values(a, b)
    assert found.route == "mixed" and (found.values[1] == 0).all()
    alone = product_singular_values(a[3], b[3])
    assert alone.route == "gram" and np.array_equal(found.values[3], alone.values)
    np.testing.assert_allclose(found.values, np.linalg.svd(a @ b, compute_uv=False)[:, :16], rtol=0, atol=1e-11)


def test_products_broadcast_keep_nan_apart_and_check_their_inner_dimension():
    rng = np.random.default_rng(9)
    a, b = rng.standard_normal((2, 3, 10, 4)), rng.standard_normal((2, 1, 4, 7))
    found = product_singular_values(a, b).values
    np.testing.assert_allclose(found, np.linalg.svd(a @ b, compute_uv=False)[..., :4], rtol=1e-12)
    a[1, 2, 0, 0] = np.nan
    found = product_singular_values(a, b)
    assert np.isnan(found.values[1, 2]).all() and np.isfinite(found.values).sum() == 5 * 4
    assert product_singular_values(a[:0], b[:0]).values.shape == (0, 3, 4)
    assert product_singular_values(a[..., :0], b[..., :0, :]).values.shape == (2, 3, 0)
    with pytest.raises(ValueError, match="Inner dimensions differ"):
        product_singular_values(a, b[..., :3, :])


def test_eigenvalues_of_large_matrices_come_from_torch_when_it_is_there(monkeypatch):
    matrix = np.random.default_rng(2).standard_normal((12, 20))
    small = singular_values(matrix).values
    monkeypatch.setattr(spectra, "TORCH_FROM", 4)
    np.testing.assert_allclose(singular_values(matrix).values, small, rtol=1e-12)
    monkeypatch.setitem(sys.modules, "torch", None)
    np.testing.assert_array_equal(singular_values(matrix).values, small)


def test_input_may_be_read_only_integer_and_strided_and_stays_as_it_is():
    matrix = np.random.default_rng(4).integers(-9, 9, (8, 12)).astype(np.int8)
    copy = matrix.copy()
    matrix.flags.writeable = False
    np.testing.assert_allclose(singular_values(matrix[::2, ::3]).values, svd(matrix[::2, ::3]), rtol=1e-12)
    np.testing.assert_array_equal(matrix, copy)


def test_importing_and_using_spectra_leaves_torch_alone():
    code = (
        "import sys, numpy, ckpt_tools.spectra as s; s.singular_values(numpy.eye(3)); sys.exit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
