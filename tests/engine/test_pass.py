"""One pass: what analyzers see, what is stored, what happens when something is wrong."""

import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from safetensors.numpy import save_file

import ckpt_tools
from ckpt_tools import Analyzer, Out, analyze, option
from ckpt_tools.engine.keys import Keys
from ckpt_tools.engine.run import Runner
from ckpt_tools.errors import OptionError, PluginError, ResultsError

NAMES = ["model.embed_tokens.weight", *(f"model.layers.0.self_attn.{p}_proj.weight" for p in "qkvo")]


class Mean(Analyzer):
    """Mean entry of every matrix."""

    name = "mean"
    outputs = {"mean": Out(dims=("matrix",), unit="1"), "draw": Out(unit="1")}
    scale: float = option(1.0, help="factor")

    def analyze(self, view: Any) -> dict[str, Any]:
        matrices = view.matrices()
        means = [self.scale * m.mean(dtype="f8") for m in matrices.values()]
        return {"matrix": list(matrices), "mean": means, "draw": view.rng.random()}


class Change(Analyzer):
    """Distance of every matrix from a reference checkpoint."""

    name = "change"
    outputs = {"distance": Out(dims=("matrix",), unit="1"), "against": Out(unit="1", dtype="i8")}
    reference = "first"

    def analyze(self, view: Any) -> dict[str, Any]:
        before = view.reference.matrices()
        distance = [np.linalg.norm(m - before[n]) for n, m in view.matrices().items()]
        return {"matrix": list(before), "distance": distance, "against": view.reference.step}


class Previous(Change):
    name = "previous_change"
    reference = "previous"


class Last(Change):
    name = "last_change"
    reference = "last"


@pytest.fixture
def trajectory(tmp_path: Path) -> Path:
    """Five checkpoints whose every weight equals the step."""
    for step in (0, 1, 2, 4, 8):
        folder = tmp_path / "t" / f"checkpoint-{step}"
        folder.mkdir(parents=True)
        save_file({n: np.full((4, 4), step, "f4") for n in NAMES}, folder / "model.safetensors")
        config = {"model_type": "llama", "num_attention_heads": 2, "hidden_size": 4, "head_dim": 2}
        (folder / "config.json").write_text(json.dumps(config))
    return tmp_path / "t"


def values(path: Path, group: str, name: str) -> Any:
    with h5py.File(path) as file:
        return file[group][name][...]


def test_values_steps_and_labels(trajectory: Path, tmp_path: Path) -> None:
    outcome = analyze(trajectory, [Mean], output=tmp_path / "r.h5", options={"mean": {"scale": "2"}})
    assert (outcome.steps, outcome.matrices, outcome.interrupted) == ([0, 1, 2, 4, 8], 5, False)
    assert values(tmp_path / "r.h5", "mean", "mean")[:, 0].tolist() == [0, 2, 4, 8, 16]
    labels = [x.decode() for x in values(tmp_path / "r.h5", "mean", "matrix")]
    assert labels == ["embed", *(f"layers.0.attn.{p}" for p in "qkvo")]


def test_steps_and_matrices_are_selected(trajectory: Path, tmp_path: Path) -> None:
    analyze(trajectory, [Mean], output=tmp_path / "r.h5", steps="at:1,last", matrices=["*.q", "embed"])
    assert values(tmp_path / "r.h5", "mean", "step").tolist() == [1, 8]
    assert [x.decode() for x in values(tmp_path / "r.h5", "mean", "matrix")] == ["embed", "layers.0.attn.q"]


def test_references(trajectory: Path, tmp_path: Path) -> None:
    analyze(trajectory, [Change, Previous, Last], output=tmp_path / "r.h5")
    for group, against in [
        ("change", [0, 0, 0, 0, 0]),
        ("previous_change", [0, 0, 1, 2, 4]),
        ("last_change", [8, 8, 8, 8, 8]),
    ]:
        assert values(tmp_path / "r.h5", group, "against").tolist() == against
        expected = 4.0 * np.abs(np.array([0, 1, 2, 4, 8]) - against)
        assert np.allclose(values(tmp_path / "r.h5", group, "distance")[:, 0], expected)


def test_randomness_depends_on_step_and_not_on_the_call(trajectory: Path, tmp_path: Path) -> None:
    analyze(trajectory, [Mean], output=tmp_path / "a.h5")
    analyze(trajectory, [Mean], output=tmp_path / "b.h5", steps="at:4")
    draws = values(tmp_path / "a.h5", "mean", "draw")
    assert len(set(draws.tolist())) == 5
    assert values(tmp_path / "b.h5", "mean", "draw").tolist() == [draws[3]]


def test_provenance(trajectory: Path, tmp_path: Path) -> None:
    analyze(trajectory, ["rank"], output=tmp_path / "r.h5", options={"rank": {"k": 2}}, steps="at:0,1")
    with h5py.File(tmp_path / "r.h5") as file:
        assert file.attrs["source"] == str(trajectory) and file.attrs["family"] == "llama"
        hashes = json.loads(file.attrs["content_hashes"])
        assert set(hashes) == {"0", "1"} and hashes["0"] != hashes["1"] and len(hashes["0"]) == 64
        rank = file["rank"]
        assert json.loads(rank.attrs["options"])["k"] == 2
        assert rank.attrs["distribution"] == "ckpt-tools" and rank.attrs["distribution_version"]
        assert rank["effective_rank"].attrs["units"] == "1"


def test_every_tensor_is_read_once_for_several_analyzers(
    trajectory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads: list[str] = []
    original = ckpt_tools.Checkpoint.read

    def counted(self: Any, name: str, rows: slice | None = None) -> Any:
        reads.append(name)
        return original(self, name, rows)

    monkeypatch.setattr(ckpt_tools.Checkpoint, "read", counted)
    analyze(trajectory, [Mean, "rank"], output=tmp_path / "r.h5", steps="at:0")
    assert sorted(reads) == sorted(NAMES)


def test_ctrl_c_keeps_what_is_done(trajectory: Path, tmp_path: Path) -> None:
    def stop(done: int, total: int, detail: str) -> None:
        if done == 3:
            raise KeyboardInterrupt

    outcome = analyze(trajectory, [Mean], output=tmp_path / "r.h5", on_progress=stop)
    assert outcome.interrupted and outcome.steps == [0, 1, 2] and outcome.planned == 5
    assert values(tmp_path / "r.h5", "mean", "step").tolist() == [0, 1, 2]


def test_mistakes_are_found_before_the_work(trajectory: Path, tmp_path: Path) -> None:
    (tmp_path / "old.h5").write_bytes(b"")
    with pytest.raises(ResultsError, match="--force"):
        analyze(trajectory, [Mean], output=tmp_path / "old.h5")
    with pytest.raises(PluginError, match="'rank', which is not among"):
        analyze(trajectory, [Mean], output=tmp_path / "r.h5", options={"rank": {"k": "1"}})
    with pytest.raises(OptionError, match="No matrix matches"):
        analyze(trajectory, [Mean], output=tmp_path / "r.h5", matrices=["nothing*"])
    assert not (tmp_path / "r.h5").exists()


class Curious(Mean):
    name = "curious"

    def analyze(self, view: Any) -> dict[str, Any]:
        return {"distance": view.reference.step}


class Vandal(Mean):
    name = "vandal"

    def analyze(self, view: Any) -> dict[str, Any]:
        next(iter(view.matrices().values()))[0, 0] = 1.0
        return {}


def test_the_view_refuses_what_was_not_declared(trajectory: Path, tmp_path: Path) -> None:
    with pytest.raises(PluginError, match="declares none"):
        analyze(trajectory, [Curious], output=tmp_path / "r.h5")
    with pytest.raises(PluginError, match=r"vandal at step 0 failed: ValueError: .*read-only"):
        analyze(trajectory, [Vandal], output=tmp_path / "r.h5")


class BatchedMean(Mean):
    """The same for a block of steps at once."""

    name = "batched_mean"
    batched = True
    outputs = {**Mean.outputs, "steps_seen": Out(unit="1", dtype="i8")}

    def analyze(self, view: Any) -> dict[str, Any]:
        matrices = view.matrices()
        means = np.stack([self.scale * m.mean(axis=(1, 2), dtype="f8") for m in matrices.values()], axis=1)
        count = len(view.steps)
        return {"matrix": list(matrices), "mean": means, "draw": np.zeros(count), "steps_seen": np.full(count, count)}


def test_batched_analyzers_see_blocks_of_steps(trajectory: Path, tmp_path: Path) -> None:
    analyze(trajectory, [Mean, BatchedMean], output=tmp_path / "r.h5")
    for key in ("mean", "step"):
        assert np.array_equal(values(tmp_path / "r.h5", "mean", key), values(tmp_path / "r.h5", "batched_mean", key))
    assert set(values(tmp_path / "r.h5", "batched_mean", "steps_seen").tolist()) == {5}


def test_blocks_break_where_the_layout_changes(trajectory: Path, tmp_path: Path) -> None:
    grown = {n: np.ones((4, 4), "f4") for n in [*NAMES, "model.layers.0.mlp.up_proj.weight"]}
    save_file(grown, trajectory / "checkpoint-4" / "model.safetensors")
    analyze(trajectory, [BatchedMean], output=tmp_path / "r.h5")
    assert values(tmp_path / "r.h5", "batched_mean", "steps_seen").tolist() == [3, 3, 3, 1, 1]
    added = values(tmp_path / "r.h5", "batched_mean", "mean")[:, 5]
    assert np.isnan(added[[0, 1, 2, 4]]).all() and added[3] == 1.0


def test_the_block_size_does_not_change_results(
    trajectory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    for step in (0, 1, 2, 4, 8):
        tensors = {n: rng.standard_normal((40, 24)).astype("f4") for n in NAMES}
        save_file(tensors, trajectory / f"checkpoint-{step}" / "model.safetensors")
    analyze(trajectory, ["rank"], output=tmp_path / "blocks.h5", options={"rank": {"products": False}})
    monkeypatch.setattr("ckpt_tools.engine.run.MAX_BLOCK", 1)
    analyze(trajectory, ["rank"], output=tmp_path / "single.h5", options={"rank": {"products": False}})
    for name in ("effective_rank", "nuclear_norm", "singular_values"):
        one, other = values(tmp_path / "blocks.h5", "rank", name), values(tmp_path / "single.h5", "rank", name)
        assert np.array_equal(one, other)


def test_headers_are_opened_once_for_the_size_and_once_for_the_work(
    trajectory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[int] = []
    before = Runner.weights_of

    def counted(self: Runner, step: int) -> Any:
        opened.extend([step] if step not in self._open else [])
        return before(self, step)

    monkeypatch.setattr(Runner, "weights_of", counted)
    analyze(trajectory, [Mean], output=tmp_path / "r.h5")
    assert opened == [0, 0, 1, 2, 4, 8]
    analyze(trajectory, [Mean], output=tmp_path / "r.h5")
    assert len(opened) == 6, "nothing is missing, so nothing need be opened"


def test_the_journal_is_asked_once_for_what_is_missing(
    trajectory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    before = Keys.known

    def counted(self: Keys, analyzer: Analyzer, position: int) -> str | None:
        asked.append(position)
        return before(self, analyzer, position)

    monkeypatch.setattr(Keys, "known", counted)
    analyze(trajectory, [Mean], output=tmp_path / "r.h5", steps="0:1")
    analyze(trajectory, [Mean], output=tmp_path / "r.h5")
    assert asked == [0, 1, 0, 1, 2, 3, 4]
