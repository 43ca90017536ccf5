"""Limit ranks of trajectories whose limit is known, ratios, whole spectra and the product of the embeddings."""

from __future__ import annotations

import doctest
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ckpt_plugins import rank_limits
from ckpt_plugins.rank import Rank
from ckpt_plugins.rank_limits import limit_change, limit_rank, normalized
from ckpt_tools import BatchView, analyze, read_results
from ckpt_tools.testing import analyzer_checks

RNG = np.random.default_rng
STEPS = range(0, 21)


def orthogonal(n: int, seed: int) -> Any:
    return np.linalg.qr(RNG(seed).standard_normal((n, n)))[0]


def falling(step: int, rank: int) -> Any:
    """A matrix 8 x 8 whose first `rank` singular values grow, the others staying: its direction has that rank."""
    s = np.where(np.arange(8) < rank, 1 + 3.0**step, 1.0)
    return orthogonal(8, 0) * s @ orthogonal(8, 1)


@pytest.fixture
def measured(trajectory: Callable[..., Path], tmp_path: Path) -> Callable[..., Any]:
    def run(steps: dict[int, dict[str, Any]], **options: Any) -> Any:
        analyze(trajectory(steps), [Rank(**options)], output=tmp_path / "r.h5")
        with read_results(tmp_path / "r.h5") as results:
            group = results["rank"]
            return {name: group[name].read() for name in Rank.outputs} | {"summary": group.attrs["summary"]}

    return run


def test_limit_rank_is_that_of_the_direction_the_matrix_takes(measured: Callable[..., Any]) -> None:
    steps = {t: {"one": falling(t, 1), "three": falling(t, 3), "still": falling(0, 8)} for t in STEPS}
    facts = measured(steps)["summary"]
    assert facts["limit_rank"] == {"one": 1, "three": 3, "still": 8}
    assert max(facts["limit_change"].values()) < 1e-6


def test_a_direction_that_still_turns_has_no_limit_in_sight(measured: Callable[..., Any]) -> None:
    steps = {t: {"w": np.diag([1.0, t / 20])} for t in STEPS}
    facts = measured(steps)["summary"]
    # The last tenth begins at step 18: values (1, .9) and (1, 1) over their norms.
    expected = max(abs(np.array([1, 0.9]) / np.hypot(1, 0.9) - np.array([1, 1]) / np.sqrt(2)))
    assert facts["limit_change"]["w"] == pytest.approx(expected)


def test_ratios_compare_the_ends(measured: Callable[..., Any]) -> None:
    found = measured({0: {"w": np.eye(4)}, 5: {"w": 3 * np.eye(4)}, 9: {"w": np.diag([2.0, 0, 0, 0])}})
    growth = {name: ratio["w"] for name, ratio in found["summary"].items() if name.endswith("_growth")}
    ranks = dict.fromkeys(("effective_rank_growth", "stable_rank_growth", "participation_ratio_growth"), 1 / 4)
    norms = {"nuclear_norm_growth": 1 / 2, "frobenius_norm_growth": 1.0, "spectral_norm_growth": 2.0}
    assert growth == pytest.approx(ranks | norms)


def test_what_begins_at_zero_has_no_ratio(measured: Callable[..., Any]) -> None:
    facts = measured({0: {"w": np.zeros((4, 4))}, 1: {"w": np.eye(4)}})["summary"]
    assert facts["limit_rank"] == {"w": 4} and facts["stable_rank_growth"] == {"w": None}


def test_zero_broken_and_cut_off_spectra_have_no_limit_rank() -> None:
    values = np.array([[0.0, 0.0], [np.nan, np.nan], [1.0, 1.0], [1.0, 1.0]])
    norm = np.array([0.0, np.nan, np.sqrt(2), 2.0])  # the last has singular values that are not among its two
    assert limit_rank(values, norm, 0.05).tolist() == [-1, -1, 2, -1]
    unit = normalized(values, norm)
    assert np.isneginf(limit_change(unit[None], unit)[:2]).all()


def test_all_singular_values_are_stored_when_asked_for(measured: Callable[..., Any]) -> None:
    matrices = {"wide": RNG(0).standard_normal((5, 40)), "tall": RNG(1).standard_normal((30, 12))}
    found = measured({0: matrices}, spectrum=True, k=2)
    assert found["spectrum"].shape == (1, 2, 12) and found["singular_values"].shape == (1, 2, 2)
    for row, matrix in zip(found["spectrum"][0], (matrices["tall"], matrices["wide"]), strict=True):
        s = np.linalg.svd(matrix, compute_uv=False)
        np.testing.assert_allclose(row[: len(s)], s, rtol=1e-9)
        assert np.isnan(row[len(s) :]).all()
    assert measured({1: matrices})["spectrum"].size == 0


@pytest.mark.parametrize("tied", [True, False])
def test_embedding_product_is_the_dense_one(look: Any, tied: bool) -> None:
    config = {"model_type": "llama", "num_attention_heads": 2, "num_hidden_layers": 1, "tie_word_embeddings": tied}
    embed, unembed = RNG(0).standard_normal((11, 4)), RNG(1).standard_normal((11, 4))
    tensors = {"model.embed_tokens.weight": embed, "model.norm.weight": np.ones(4)}
    tensors |= {} if tied else {"lm_head.weight": unembed}
    found = Rank(embedding=True).analyze(BatchView([look(Rank(embedding=True), tensors, config=config)]))
    s = np.linalg.svd((embed if tied else unembed) @ embed.T, compute_uv=False)[:4]
    assert found["product"] == ["unembed.embed"] and found["product_full_rank"].tolist() == [[4]]
    np.testing.assert_allclose(found["product_singular_values"][0, 0, :4], s, rtol=1e-9)
    assert found["product_stored_dtype"].tolist() == [["float64"]]
    assert Rank().analyze(BatchView([look(Rank(), tensors, config=config)]))["product"] == []


def test_models_without_an_embedding_have_no_such_product(look: Any) -> None:
    found = Rank(embedding=True).analyze(BatchView([look(Rank(embedding=True), {"w": np.eye(3)})]))
    assert found["product"] == []


def test_docstring_examples_hold() -> None:
    found = doctest.testmod(rank_limits)
    assert found.failed == 0 and found.attempted >= 2


@pytest.mark.parametrize("check", analyzer_checks(Rank, embedding=True, spectrum=True), ids=str)
def test_it_conforms_with_everything_on(check: Callable[[], None]) -> None:
    check()
