"""Kurtosis of weights: outliers that few-bit quantization must spend its range on.

With m_k the k-th central moment of a matrix's entries the excess kurtosis is m_4 / m_2^2 - 3: 0 for Gaussian entries,
-1.2 for uniform ones, large where few entries dwarf the others. `peak` is the largest |entry - mean| in standard
deviations.
"""

import numpy as np

from ckpt_tools import Analyzer, Out, hookimpl


class Kurtosis(Analyzer):
    """Excess kurtosis and largest outlier of the entries of every weight matrix."""

    name = "kurtosis"
    batched = True
    invariant_to = {"scale", "neuron_permutation"}
    outputs = {
        "kurtosis": Out(("matrix",), long_name="excess kurtosis of the entries, 0 if all are equal"),
        "peak": Out(("matrix",), long_name="largest deviation from the mean in standard deviations"),
    }

    def analyze(self, view):
        found = [moments(m) for m in view.matrices().values()]
        kurtosis, peak = (
            np.reshape(x, (-1, len(view.steps))).T for x in ([k for k, _ in found], [p for _, p in found])
        )
        return {"matrix": view.matrix_names(), "kurtosis": kurtosis, "peak": peak}

    def summarize(self, series):
        """Return, per matrix, the step at which its kurtosis was largest."""
        if not len(series):
            return {}
        worst = np.nan_to_num(series["kurtosis"], nan=-np.inf).argmax(axis=0)
        return {"largest_kurtosis_step": dict(zip(series.labels("matrix"), series.steps[worst].tolist(), strict=True))}


def moments(matrices):
    """Return excess kurtosis and peak, each `[step]`, of matrices `[step, out, in]`."""
    x = matrices.reshape(len(matrices), -1).astype(np.float64)
    x -= x.mean(axis=1, keepdims=True)
    spread = np.sqrt((x**2).mean(axis=1, keepdims=True))
    z = np.divide(x, spread, out=np.zeros_like(x), where=spread != 0)
    flat = spread[:, 0] == 0
    return np.where(flat, 0.0, (z**4).mean(axis=1) - 3), np.abs(z).max(axis=1)


@hookimpl
def ckpt_analyzers():
    return [Kurtosis]
