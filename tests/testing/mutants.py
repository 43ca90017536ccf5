"""Guilty analyzers: each breaks one rule of the contract, and only the check of that rule may catch it."""

import random
from typing import Any

import numpy as np

from ckpt_tools import Analyzer, Out, option


class Innocent(Analyzer):
    """Frobenius norm of every matrix."""

    name = "innocent"
    outputs = {"norm": Out(dims=("matrix",), unit="1", long_name="Frobenius norm")}
    invariant_to = {"rotation", "sign", "neuron_permutation"}
    power: float = option(2.0, help="Power of the norm.", min=1.0)

    def analyze(self, view: Any) -> dict[str, Any]:
        matrices = view.matrices()
        return {"matrix": list(matrices), "norm": [self.measure(view, m) for m in matrices.values()]}

    def measure(self, view: Any, m: Any) -> float:
        return float(np.sqrt(np.sum(np.square(m, dtype="f8"))))


class Mute(Innocent):
    """A norm of unknown meaning."""

    name = "declaration"
    outputs = {"norm": Out(dims=("matrix",), unit="1")}


class Forgetful(Innocent):
    """Declares an output and does not give it."""

    name = "outputs"
    outputs = {**Innocent.outputs, "rank": Out(unit="1", long_name="never given")}


class Greedy(Innocent):
    """Asks for a model and never runs it."""

    name = "needs"
    needs = "forward"
    invariant_to: set[str] = set()


class Blurred(Innocent):
    """Measures steps against the mean of their block."""

    name = "blocks"
    batched = True
    invariant_to: set[str] = set()

    def analyze(self, view: Any) -> dict[str, Any]:
        norms = [np.linalg.norm(m, axis=(1, 2)) for m in view.matrices().values()]
        return {"matrix": view.matrix_names(), "norm": np.transpose([n - n.mean() for n in norms])}


class Hasty(Innocent):
    """Compares the second step with the first, whether there is one or not."""

    name = "summary"

    def summarize(self, series: Any) -> dict[str, Any]:
        return {"growth": series["norm"][1] - series["norm"][0]}


class Dice(Innocent):
    """Draws from a generator of its own that nobody seeded."""

    name = "deterministic"
    invariant_to: set[str] = set()

    def measure(self, view: Any, m: Any) -> float:
        return float(np.random.default_rng().random())


class Counter(Innocent):
    """Counts its calls."""

    name = "stateless"
    invariant_to: set[str] = set()

    def measure(self, view: Any, m: Any) -> float:
        self.calls = getattr(self, "calls", 0) + 1
        return float(self.calls)


class Reseeder(Innocent):
    """Seeds the global generator, then draws from it."""

    name = "global_randomness"

    def measure(self, view: Any, m: Any) -> float:
        random.seed(0)
        return super().measure(view, m) + 0.0 * random.random()


class Scribbler(Innocent):
    """Makes the weights writeable and rounds them."""

    name = "weights_unchanged"

    def analyze(self, view: Any) -> dict[str, Any]:
        found = super().analyze(view)
        for m in view.matrices().values():
            base = m if m.base is None else m.base
            base.setflags(write=True)
            base[...] = np.round(base)
        return found


class Divider(Innocent):
    """Divides by the norm."""

    name = "degenerate"

    def measure(self, view: Any, m: Any) -> float:
        norm = np.float64(super().measure(view, m))
        return float(norm / norm + norm)


class Closure(Innocent):
    """Keeps a function as state."""

    name = "pickles"

    def __init__(self, **values: Any) -> None:
        super().__init__(**values)
        self.function = lambda x: x


class Speller(Innocent):
    """Returns text that HDF5 cannot hold as it is."""

    name = "round_trip"
    outputs = {"text": Out(unit="1", long_name="a text with NUL", dtype="str")}
    invariant_to: set[str] = set()

    def analyze(self, view: Any) -> dict[str, Any]:
        return {"text": "a\0b"}


class Scaled(Innocent):
    """Calls a norm scale-free."""

    name = "invariant_to_scale"
    invariant_to = {"scale"}


class Summed(Innocent):
    """Calls the sum of absolute entries rotation-free."""

    name = "invariant_to_rotation"
    invariant_to = {"rotation", "sign", "neuron_permutation"}

    def measure(self, view: Any, m: Any) -> float:
        return float(np.abs(m).sum(dtype="f8"))


class Signed(Innocent):
    """Calls the sum of entries sign-free."""

    name = "invariant_to_sign"
    invariant_to = {"sign", "neuron_permutation"}

    def measure(self, view: Any, m: Any) -> float:
        return float(m.sum(dtype="f8"))


class Ordered(Innocent):
    """Weighs rows by their position and calls that permutation-free."""

    name = "invariant_to_neuron_permutation"
    invariant_to = {"sign", "neuron_permutation"}

    def measure(self, view: Any, m: Any) -> float:
        return float((np.arange(len(m))[:, None] * np.abs(m)).sum(dtype="f8"))


MUTANTS = [
    Mute, Forgetful, Greedy, Blurred, Hasty, Dice, Counter, Reseeder, Scribbler, Divider, Closure, Speller, Scaled,
    Summed, Signed, Ordered,
]  # fmt: skip
