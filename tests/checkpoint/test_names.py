"""Numbers in names: what counts steps, and which names are one run."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckpt_tools.checkpoint.names import ending, keyed, numbers_in
from ckpt_tools.checkpoint.series import find_series


@pytest.mark.parametrize(
    ("name", "number"),
    [
        ("model_epoch_10.pt", ("epoch", 10)), ("epoch=3-step=1200.ckpt", ("step", 1200)), ("e10.pt", ("epoch", 10)),
        ("step=400-val_loss=0.53.ckpt", ("step", 400)), ("step10k", ("step", 10_000)), ("model.step10", ("step", 10)),
        ("checkpoint-128", ("checkpoint", 128)), ("stage1-step140000-tokens294B", ("step", 140_000)),
        ("global_step5", ("step", 5)), ("pythia-160m-step3000", ("step", 3000)), ("f1=0.8-epoch=2.pt", ("epoch", 2)),
        ("27-0.83.hdf5", None), ("resnet18", None), ("llama-7b", None), ("seed_0.pt", None), ("step-1e3", None),
        ("mp_rank_00_model_states.pt", None), ("consolidated.00.pth", None), ("model.h5", None), ("step-٣", None),
        ("step-" + "9" * 5000, None), ("wd0.pt", None), ("v2.1", None),
    ],
)  # fmt: skip
def test_the_number_that_counts(name, number):
    found = keyed(numbers_in(name))
    assert (found and (found.kind, found.value)) == number


@pytest.mark.parametrize(
    ("name", "suffix"),
    [
        ("a.pt", ".pt"),
        ("a.pth.tar", ".pth.tar"),
        ("a.weights.h5", ".weights.h5"),
        ("a.10", ""),
        ("a.step10", ""),
        ("a", ""),
    ],
)
def test_endings(name, suffix):
    assert ending(name) == suffix


def series(*names):
    return [(s.label, s.unit, s.keyed, dict(s.members)) for s in find_series(names)]


def test_two_runs_in_one_folder_are_two_series():
    found = series("runA_step10.pt", "runB_step10.pt", "runA_step9.pt", "runB_step20.pt")
    assert found == [
        ("runA", "step", True, {9: "runA_step9.pt", 10: "runA_step10.pt"}),
        ("runB", "step", True, {10: "runB_step10.pt", 20: "runB_step20.pt"}),
    ]


@pytest.mark.parametrize(
    ("names", "steps", "unit"),
    [
        (["27-0.83.hdf5", "3-0.91.hdf5", "05-0.87.hdf5"], [3, 5, 27], "step"),
        (["weights.05-1.23.h5", "weights.10-1.01.h5"], [5, 10], "step"),
        (["epoch=3-step=1200.ckpt", "epoch=4-step=1600.ckpt", "epoch=0-step=400.ckpt"], [400, 1200, 1600], "step"),
        (["model_epoch_10.pt", "model_epoch_9.pt"], [9, 10], "epoch"),
        (["checkpoint_1_500.pt", "checkpoint_2_1000.pt", "checkpoint_2_1500.pt"], [500, 1000, 1500], "step"),
        (["05-87.pt", "06-91.pt", "07-89.pt"], [5, 6, 7], "step"),
        (["2024-01-05_10.pt", "2024-01-05_20.pt"], [10, 20], "step"),
        (["10_2024-01-05.pt", "20_2024-01-05.pt"], [10, 20], "step"),
        (["resnet18_100.pth.tar", "resnet18_20.pth.tar"], [20, 100], "step"),
        (["step-5", "step_6", "checkpoint-7"], [5, 6, 7], "step"),
        (["step1000-tokens4B", "step2000-tokens8B"], [1000, 2000], "step"),
        (["run/step10/model.safetensors", "run/step20/model.safetensors"], [10, 20], "step"),
        (["1000.pt", "200.pt"], [200, 1000], "step"),
    ],
)
def test_the_number_that_differs_counts(names, steps, unit):
    [found] = find_series(names)
    assert ([step for step, _ in found.members], found.unit) == (steps, unit)


def test_numbers_that_tell_runs_apart():
    assert [label for label, *_ in series("0_100.pt", "0_200.pt", "1_100.pt", "1_200.pt")] == ["0", "1"]
    assert len(find_series(["seed0_step1", "seed1_step1"])) == 2
    assert len(find_series(["1_step100", "2_step200", "1_step300"])) == 2
    assert find_series(["seed0.pt", "seed1.pt", "p13_frac0.50_wd0_seed0.pt"]) == []


def test_a_number_twice_stays_in_its_series_to_be_refused():
    [found] = find_series(["step-05", "step-5"])
    assert [step for step, _ in found.members] == [5, 5]


@given(st.lists(st.integers(0, 10**9), min_size=1, max_size=30, unique=True), st.sampled_from(["step", "iter"]))
def test_any_word_any_padding(steps, word):
    names = [f"my-model_{word}{'-_='[step % 3]}{step:0{step % 12}d}.pt" for step in steps]
    [found] = find_series(names)
    assert [step for step, _ in found.members] == sorted(steps) and found.label == "my-model"


@given(st.text(max_size=40))
def test_no_name_is_too_strange(name):
    assert len(find_series([name])) <= 1
