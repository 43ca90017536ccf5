"""A complete plugin: share of near-zero entries in every weight matrix."""

from ckpt_tools import Analyzer, Out, hookimpl, option


class Sparsity(Analyzer):
    """Share of near-zero entries in every weight matrix."""

    name = "sparsity"
    outputs = {"share": Out(dims=("matrix",), unit="1", long_name="share of near-zero entries")}
    tol: float = option(1e-3, help="Zero means below tol times the largest entry.", min=0.0)

    def analyze(self, view):
        matrices = view.matrices()
        share = [(abs(m) <= self.tol * abs(m).max()).mean() for m in matrices.values()]
        return {"matrix": list(matrices), "share": share}


@hookimpl
def ckpt_analyzers():
    return [Sparsity]
