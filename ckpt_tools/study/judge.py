"""Claims against results: a number, its threshold, and whether it holds."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from .declare import Claim
from .found import Found, Missing
from .load import Loaded

CLAIMS_FILE = "claims.json"


@dataclass(frozen=True)
class Verdict:
    """One claim for one seed, or for all of them (`seed` None).

    `measured` is None where what the claim is about never happened; it then does not hold. `holds` is None where the
    claim could not be measured at all, and `reason` says why. `error` is the standard error of a mean over seeds.
    """

    claim: Claim
    seed: int | None
    measured: float | None
    holds: bool | None
    reason: str = ""
    error: float | None = None

    def as_dict(self, study: str) -> dict[str, Any]:
        """Return the verdict as one entry of `claims.json`; `reason` and `standard_error` are there where they are."""
        row = {
            "study": study,
            "claim": self.claim.label,
            "seed": self.seed,
            "measured": self.measured,
            "direction": self.claim.direction,
            "threshold": self.claim.threshold,
            "holds": self.holds,
        }
        row |= {"reason": self.reason} if self.reason else {}
        return row if self.error is None else row | {"standard_error": self.error}


def verdicts(claims: Iterable[Claim], found: Sequence[Found]) -> list[Verdict]:
    """Return all claims for all seeds, claim by claim."""
    return [verdict for claim in claims for verdict in _of(claim, found)]


def _of(claim: Claim, found: Sequence[Found]) -> Iterator[Verdict]:
    single = [_measured(claim, one) for one in found]
    if claim.over is None:
        yield from single
        return
    missing = next((v for v in single if v.holds is None), None)
    if missing is not None:
        yield Verdict(claim, None, None, None, missing.reason)
    elif any(v.measured is None for v in single):
        yield Verdict(claim, None, None, False)
    else:
        values = [v.measured for v in single if v.measured is not None]
        error = stdev(values) / math.sqrt(len(values)) if claim.over is mean and len(values) > 1 else None
        yield replace(_judged(claim, None, claim.over(values)), error=error)


def _measured(claim: Claim, found: Found) -> Verdict:
    try:
        number = claim.measure(found)
    except Missing as error:
        return Verdict(claim, found.seed, None, None, str(error))
    return _judged(claim, found.seed, number)


def _judged(claim: Claim, seed: int | None, number: float | None) -> Verdict:
    measured = None if number is None or math.isnan(number) else float(number)
    return Verdict(claim, seed, measured, measured is not None and bool(claim.holds(measured)))


def write_claims(loaded: Loaded, judged: Iterable[Verdict], out: Path) -> Path:
    """Write `claims.json` and return its path."""
    path = out / CLAIMS_FILE
    rows = [verdict.as_dict(loaded.name) for verdict in judged]
    path.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    return path
