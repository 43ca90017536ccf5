"""The page on formats is true where it can be run."""

from __future__ import annotations

import re
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest

from ckpt_tools import open_trajectory
from ckpt_tools.checkpoint.log import FRAME_BYTES
from ckpt_tools.run import RunWriter
from ckpt_tools.run.log import ROTATE_BYTES, SMALL
from ckpt_tools.run.saving import BACKGROUND_BYTES
from ckpt_tools.run.store import SHARE, TIMED

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "formats.md").read_text("utf-8")
RUNS = PAGE.partition("\n## Runs\n")[2]


def test_the_recorded_loop_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"```python\n(.*?)```", RUNS, re.DOTALL)
    exec(compile(code, "formats.md", "exec"), {})
    assert open_trajectory(tmp_path / "runs/linear").steps == list(range(101))


@pytest.mark.parametrize("width", [3, 200])
def test_a_log_is_read_by_its_description_alone(tmp_path: Path, width: int) -> None:
    with RunWriter(tmp_path / "run", family="", family_version=1, config={}, mode="log") as run:
        for step in (5, 7):
            run.save(step, {"w": np.full((width, width), step, "f4"), "n": np.arange(3, dtype="i1")})
    sizes = [int(n) for n in re.findall(r"^\| (\d) \| \w+ \|", RUNS, re.MULTILINE)]
    assert sum(sizes) == FRAME_BYTES == 48
    data = next((tmp_path / "run").glob("*.stlog")).read_bytes()
    at, steps = 0, []
    while at < len(data):
        fields = struct.unpack("<" + "".join({8: "Q", 4: "I"}[n] for n in sizes), data[at : at + 48])
        magic, serial, step, length, every, check, zero, crc = fields
        body = data[at + 48 : at + 48 + length]
        assert magic.to_bytes(8, "little") == b"CKPTLOG1"
        assert (serial, zero, crc) == (len(steps), 0, zlib.crc32(data[at : at + 44]))
        assert check == zlib.crc32(b"".join(body[i : i + 8] for i in range(0, length, 8 * every)))
        assert every == (1 if length <= SMALL else 512)
        steps.append(step)
        at += 48 + length
    assert steps == [5, 7]


def test_numbers() -> None:
    assert f"the first {TIMED + 1} checkpoints" in RUNS
    assert f"more than {SHARE:.0%}".replace("%", " %") in RUNS
    assert f"at {ROTATE_BYTES // 2**30} GiB" in RUNS
    assert f"up to {SMALL // 2**10} KiB" in RUNS
    assert f"above {BACKGROUND_BYTES // 2**20} MB" in RUNS
