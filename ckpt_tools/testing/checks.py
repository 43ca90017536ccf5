"""The conformance checks: each is one rule of the analyzer contract, and raises NonConformance when it is broken."""

from __future__ import annotations

import pickle
import random
import sys
from collections.abc import Callable
from typing import Any, cast

import numpy as np

from ..analyzer import NEEDS, SYMMETRIES, Analyzer, declaration_faults
from ..engine.run import Runner
from ..errors import PluginError
from ..results import Group, Record, Series, check_summary, read_results, write_results
from .bench import Bench, Blocked, NonConformance, NotApplicable, differences
from .specimens import Array, Change, one_row, poisoned, zeroed

Check = Callable[[Bench], None]


def declaration(bench: Bench) -> None:
    """The class is declared soundly, and class, outputs and options say what they are."""
    cls = bench.cls
    faults = declaration_faults(cls)
    faults += [] if (cls.__doc__ or "").strip() else ["the class has no docstring: say what is measured"]
    faults += [f"output {name!r} has no long_name" for name, out in cls.outputs.items() if not out.long_name]
    faults += [f"option {o.name!r} has no help" for o in cls.declared.values() if not o.help.strip()]
    if faults:
        raise NonConformance("; ".join(faults))


def outputs(bench: Bench) -> None:
    """Ordinary checkpoints give every declared output with its dimensions, and no warning."""
    for source in (bench.source("ordinary"), bench.attention()):
        _attempt(bench, lambda source=source: bench.run(source), "an ordinary checkpoint")  # type: ignore[misc]


def needs(bench: Bench) -> None:
    """The analyzer needs what it declares, and no less would do."""
    bench.ordinary()
    level = NEEDS.index(bench.cls.needs)
    if level == 0:
        return
    lower = cast(type[Analyzer], type(bench.cls.__name__, (bench.cls,), {"needs": NEEDS[level - 1]}))
    try:
        bench.run(bench.source("ordinary"), lower.parse(bench.options))
    except PluginError:
        return
    raise NonConformance(f"declares needs={NEEDS[level]!r} but {NEEDS[level - 1]!r} is enough: declare that")


def blocks(bench: Bench) -> None:
    """A batched analyzer gives the same for a block of steps as for its steps one by one."""
    if not bench.cls.batched:
        raise NotApplicable("the analyzer is not batched")
    single = bench.ordinary()
    together = _attempt(bench, bench.block, "a block of steps")
    differ = differences(single, together, exact=False)
    if differ:
        raise NonConformance(f"a block of steps differs from its steps one by one in {differ}: keep steps apart")


def summary(bench: Bench) -> None:
    """The summary of a trajectory, and that of a single step, is made of numbers, texts, lists and dicts."""
    records, analyzer = bench.ordinary(), bench.fresh()
    for what, found in (("a trajectory", records), ("a single step", records[:1])):
        series = Series(analyzer.outputs, found)
        _attempt(bench, lambda series=series, what=what: _facts(analyzer, series, what), f"the summary of {what}")  # type: ignore[misc]


def _facts(analyzer: Analyzer, series: Series, what: str) -> list[Record]:
    check_summary(analyzer, analyzer.summarize(series), what)
    return []


def deterministic(bench: Bench) -> None:
    """Two instances give bit-identical outputs: randomness comes from view.rng only."""
    differ = differences(bench.ordinary(), bench.ordinary(), exact=True)
    if differ:
        raise NonConformance(f"two calls differ in {differ}: take randomness from view.rng, avoid clocks and hashes")


def stateless(bench: Bench) -> None:
    """An instance remembers nothing from one checkpoint to the next."""
    analyzer = bench.fresh()
    differ = differences(bench.ordinary(analyzer), bench.ordinary(analyzer), exact=True)
    # A clock or a global generator also differs here, and is `deterministic`'s business.
    if differ and not differences(bench.ordinary(), bench.ordinary(), exact=True):
        raise NonConformance(f"a second pass of one instance differs in {differ}: keep no state between checkpoints")


def global_randomness(bench: Bench) -> None:
    """The global generators of random, numpy and torch are left as they were."""
    bench.ordinary()
    found = _random_state()
    # An analyzer that seeds a generator leaves it as its last run did: start from elsewhere.
    random.seed(found["random"][1][0])
    np.random.seed(random.getrandbits(32))
    before = _random_state()
    try:
        bench.ordinary()
        changed = [name for name, state in _random_state().items() if not _same_state(state, before[name])]
    finally:
        random.setstate(found["random"])
        np.random.set_state(found["numpy"])
    if changed:
        raise NonConformance(f"uses the global generator of {', '.join(changed)}: use view.rng")


def _random_state() -> dict[str, Any]:
    states: dict[str, Any] = {"random": random.getstate(), "numpy": np.random.get_state()}
    if "torch" in sys.modules:
        states["torch"] = sys.modules["torch"].get_rng_state().tolist()
    return states


def _same_state(one: Any, other: Any) -> bool:
    return repr(one) == repr(other) if isinstance(one, tuple) else bool(one == other)


def weights_unchanged(bench: Bench) -> None:
    """The weights of the view are not written to."""
    bench.ordinary()
    plan = bench.plan(bench.source("ordinary"))
    runner = Runner(plan)
    weights, _ = runner.weights_of(plan.steps[0])
    names = [*weights.layout.matrices, *weights.layout.vectors]
    before = {name: weights.read(name).copy() for name in names}
    runner.record_of(plan.analyzers[0], 0)
    changed = [name for name in names if not np.array_equal(weights.read(name), before[name], equal_nan=True)]
    runner.close()
    if changed:
        raise NonConformance(f"changes the weights {', '.join(changed)}: copy what you modify")


def degenerate(bench: Bench) -> None:
    """Zero, one-row, NaN and bfloat16 weights are measured without exception or warning; zeros never give NaN."""
    bench.ordinary()
    _attempt(bench, lambda: bench.run(bench.source("zero", zeroed)), "weights that are all zero")
    _attempt(bench, lambda: bench.run(bench.source("nan", poisoned)), "weights with a NaN")
    if not bench.runs_models:
        _attempt(bench, lambda: bench.run(bench.source("one_row", one_row)), "matrices with one row")
        _attempt(bench, lambda: bench.run(bench.source("bf16", dtype="bfloat16")), "bfloat16 weights")


def _attempt(bench: Bench, run: Callable[[], list[Record]], what: str) -> list[Record]:
    try:
        return run()
    except Exception as error:  # whatever a stranger's analyzer raises is the finding
        raise NonConformance(f"{what}: {type(error).__name__}: {error}") from error


def pickles(bench: Bench) -> None:
    """A configured instance survives pickling, so that it can be sent to other processes."""
    analyzer = bench.fresh()
    try:
        again = pickle.loads(pickle.dumps(analyzer))
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise NonConformance(
            f"cannot be pickled ({error}): define the class at module level, keep options only"
        ) from None
    if again.as_dict() != analyzer.as_dict():
        raise NonConformance("options change when pickled")


def round_trip(bench: Bench) -> None:
    """Outputs read back from the results file equal what was returned."""
    records = bench.ordinary()
    group = Group.of(bench.fresh(), records)
    path = bench.folder / "round_trip.h5"
    write_results(path, [group], force=True)
    with read_results(path) as results:
        stored = results[bench.cls.name]
        for name in bench.cls.outputs:
            if not _equal(stored[name].read(), group.series[name]):
                raise NonConformance(f"output {name!r} does not survive being stored as HDF5")


def _equal(stored: Array, given: Array) -> bool:
    if given.dtype.kind == "f":
        return bool(np.array_equal(stored, given, equal_nan=True))
    return bool(stored.tolist() == given.tolist())


def _symmetry(name: str, change: Change) -> Check:
    def check(bench: Bench) -> None:
        if name not in bench.cls.invariant_to:
            raise NotApplicable(f"invariance to {name} is not declared")
        if bench.runs_models:
            raise NotApplicable("symmetries are checked on weights alone")
        # Outputs per neuron move with their neuron.
        leave = frozenset(
            key for key, out in bench.cls.outputs.items() if name == "neuron_permutation" and "neuron" in out.dims
        )
        differ = differences(bench.ordinary(), bench.run(bench.source(name, change)), exact=False, leave=leave)
        if differ:
            raise NonConformance(f"declares invariance to {name}, but {differ} changes")

    check.__doc__ = f"Outputs do not change under {name}, if that is declared."
    return check


def _generator(name: str) -> np.random.Generator:
    return np.random.default_rng(list(name.encode()))


def _orthogonal(rng: np.random.Generator, n: int) -> Array:
    return cast(Array, np.linalg.qr(rng.standard_normal((n, n)))[0])


def _rotated(name: str, matrix: Array) -> Array:
    rng = _generator(name)
    left, right = (_orthogonal(rng, n) for n in matrix.shape)
    return cast(Array, (left @ matrix @ right).astype("f4"))


def _flipped(name: str, matrix: Array) -> Array:
    signs = _generator(name).choice(np.array([-1.0, 1.0], "f4"), (matrix.shape[0], 1))
    return cast(Array, matrix * signs)


def _permuted(name: str, matrix: Array) -> Array:
    return matrix[_generator(name).permutation(matrix.shape[0])]


# What each declared symmetry does to every matrix `[out, in]` of a checkpoint; a matrix's bias is left as it is, so an
# analyzer that joins biases to neurons may declare only what then still holds.
TRANSFORMS: dict[str, Change] = {
    "scale": lambda name, matrix: matrix * np.float32(4.0),
    "rotation": _rotated,
    "sign": _flipped,
    "neuron_permutation": _permuted,
}
assert set(TRANSFORMS) == set(SYMMETRIES)

CHECKS: dict[str, Check] = {
    "declaration": declaration,
    "outputs": outputs,
    "needs": needs,
    "blocks": blocks,
    "summary": summary,
    "deterministic": deterministic,
    "stateless": stateless,
    "global_randomness": global_randomness,
    "weights_unchanged": weights_unchanged,
    "degenerate": degenerate,
    "pickles": pickles,
    "round_trip": round_trip,
    **{f"invariant_to_{name}": _symmetry(name, change) for name, change in TRANSFORMS.items()},
}

__all__ = ["CHECKS", "Blocked", "Check", "NonConformance", "NotApplicable"]
