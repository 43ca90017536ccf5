"""The main job on our own training: stage I of focus and dilution, read from the results file alone."""

from pathlib import Path

import h5py
import numpy as np
import pytest
from click.testing import CliRunner

from ckpt_tools import analyze
from ckpt_tools.cli.main import cli

PI = np.array([0.75, 0.19, 0.05, 0.01])


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_stage_one_shows_in_the_results(tmp_path: Path, seed: int) -> None:
    command = ["train", "transformer", "--task", "markov", "--steps", "300", "--save", "every:10"]
    done = CliRunner().invoke(cli, [*command, "--seed", str(seed), "--out", str(tmp_path / "run"), "--quiet"])
    assert done.exit_code == 0, done.output
    analyze(tmp_path / "run", ["rank"], output=tmp_path / "r.h5")
    with h5py.File(tmp_path / "r.h5") as file:
        loss = file["trajectory"]["loss"][...]
        names = [label.decode() for label in file["rank"]["matrix"][...]]
        effective = dict(zip(names, file["rank"]["effective_rank"][...].T, strict=True))
    entropy = -np.sum(PI * np.log(PI))
    first = int(np.argmax(loss <= entropy + 0.1 * (np.log(4) - entropy)))
    assert first > 0, "the loss never came near the entropy of pi"
    assert effective["embed"][first] < 1.1 and effective["unembed"][first] < 1.1
    for name in ("layers.0.attn.q", "layers.0.attn.k"):
        assert effective[name][first] > 0.9 * effective[name][0]
    # The control: at the start nothing is condensed.
    assert effective["embed"][0] > 3.0
