"""What a run says about itself is checked before anybody believes it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ckpt_tools.errors import FormatError, SourceError
from ckpt_tools.run import RunWriter, is_run, read_metrics, read_probe, read_run


@pytest.fixture
def run(tmp_path: Path) -> Path:
    with RunWriter(tmp_path / "run", family="transformer", family_version=1, config={}, probe=None) as writer:
        writer.log(0, {"loss": 1.0})
        writer.log(1, {"loss": 0.5})
    return tmp_path / "run"


def edit(run: Path, **changes: Any) -> None:
    file = run / "run.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def test_is_run(run: Path, tmp_path: Path) -> None:
    assert is_run(run)
    assert not is_run(tmp_path)
    assert not is_run(tmp_path / "nowhere")


def test_not_a_run(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"is not a run: it has no run\.json"):
        read_run(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": 2}, "run format 2; this version reads up to 1. Upgrade ckpt-tools."),
        ({"format": None}, "'format' must be 1. Got None"),
        ({"format": True}, "'format' must be 1. Got True"),
        ({"family": 3}, "'family' must be str. Got 3"),
        ({"seed": True}, "'seed' must be int. Got True"),
        ({"status": "done"}, "'status' must be one of running, finished, interrupted. Got 'done'"),
        ({"tied": {"a": 1}}, "'tied' must map names to text"),
        ({"tensors": {"a": {"shape": [-1]}}}, "tensor 'a' must have a shape of integers"),
        ({"tensors": {"a": 1}}, "tensor 'a' must have a shape of integers"),
    ],
)
def test_damaged_facts(run: Path, changes: dict[str, Any], message: str) -> None:
    edit(run, **changes)
    with pytest.raises(FormatError) as caught:
        read_run(run)
    assert message in str(caught.value)
    assert str(run / "run.json") in str(caught.value)


@pytest.mark.parametrize("text", ['{"format": 1, ', "[1]", "\xff", "[" * 100_000])
def test_broken_json(run: Path, text: str) -> None:
    (run / "run.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(FormatError, match=r"run\.json (is not valid JSON|must hold a JSON object)"):
        read_run(run)


def test_huge_file_is_not_read(run: Path) -> None:
    with (run / "run.json").open("r+b") as file:
        file.truncate(1 << 40)
    with pytest.raises(FormatError, match="has at most"):
        read_run(run)


@pytest.mark.parametrize("torn", ["", "{", '{"step": 2, "loss": 0.2', '{"step": 2, "loss": 0.2}'])
def test_torn_last_line(run: Path, torn: str) -> None:
    with (run / "metrics.jsonl").open("a") as file:
        file.write(torn)
    assert read_metrics(run)["loss"].tolist() == [1.0, 0.5]


@pytest.mark.parametrize("bad", ["{", "[]", '{"loss": 1}', '{"step": 2, "loss": "x"}'])
def test_damage_before_the_last_line(run: Path, bad: str) -> None:
    with (run / "metrics.jsonl").open("a") as file:
        file.write(bad + "\n")
    with pytest.raises(FormatError, match=r"metrics\.jsonl, line 3: expected a JSON object with 'step'"):
        read_metrics(run)


def test_no_metrics_no_probe(run: Path) -> None:
    (run / "metrics.jsonl").unlink()
    assert read_metrics(run)["step"].tolist() == []
    assert read_probe(run) == {}


def test_damaged_probe(run: Path) -> None:
    (run / "probe.safetensors").write_bytes(b"\xff" * 40)
    with pytest.raises(FormatError, match=r"probe\.safetensors is not a valid safetensors file"):
        read_probe(run)
