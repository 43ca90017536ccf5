"""Trajectories on a hub are verified by the hashes it lists, without reading weights."""

from __future__ import annotations

import numpy as np

from ckpt_tools.verify import verify

from .conftest import Blob


def test_copies_are_found_by_the_hashes_of_files(hub, packed):
    rng = np.random.default_rng(0)
    start, drift = rng.standard_normal((2, 500, 100)).astype(np.float32)
    data = {step: packed({"w": start + 0.1 * step * drift}) for step in (0, 1, 2, 3, 4)}
    data[1] = data[4]
    for step, blob in data.items():
        hub.commit("org/m", {"model.safetensors": Blob(blob)}, branch=f"step{step}")
    report = verify("hf://org/m@step*", read="nothing")
    assert [(f.kind, f.steps) for f in report.findings if f.severity != "note"] == [("identical", (1, 4))]
    assert report.bytes_read == 0 and hub.bytes_sent() < 0.2 * sum(map(len, data.values()))
    whole = verify("hf://org/m@step*")
    assert [(f.kind, f.steps) for f in whole.findings if f.severity != "note"] == [("identical", (1, 4))]
    assert "step 1 is out of place" in whole.findings[0].message
