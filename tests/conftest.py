"""Fixtures for all tests."""

from __future__ import annotations

import os
from pathlib import Path

# Before numpy and torch are loaded: spinning threads on shared cores make small matrices many times slower.
for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(variable, "1")

import pytest  # noqa: E402 - after the variables
from hypothesis import HealthCheck, settings  # noqa: E402


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real artefacts that lie beside the repository on some machines; tests that need them are skipped elsewhere."""
    path = Path(__file__).resolve().parents[2] / "shared" / "data"
    if not path.is_dir():
        pytest.skip("no real artefacts: ../shared/data is absent")
    return path


# Time limits per example measure the machine, not the code.
settings.register_profile("ckpt", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("ckpt")
