"""How flat the loss is around each checkpoint: curvature, its trace and spectrum, and the cost of moving the weights.

`eigenvalue` are the largest eigenvalues of the loss's Hessian (or Gauss-Newton matrix) in the chosen parameters, by
Lanczos; `eigenvalue_residual` bounds each one's distance from a true eigenvalue. `trace` is exact within the Lanczos
space and sampled outside (Hutch++ with that space as sketch). `loss_increase` and `sam_increase` are defined in
`landscape`, density nodes and weights in `lanczos`.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from ckpt_tools import Analyzer, Figure, OptionError, Out, hookimpl, option

if TYPE_CHECKING:
    import torch

    from ckpt_tools import Model, View

    from .hessian import Curvature, Part

    Batch = Mapping[str, torch.Tensor]
    Tensors = dict[str, torch.Tensor]

SMALL_MODEL = 100_000
"""With at most this many parameters, `precision=auto` computes in float64."""


class Flatness(Analyzer):
    """Top Hessian eigenvalues, trace, spectral density, and loss increase under noise and along the gradient."""

    name = "flatness"
    needs = "loss"
    reading = (
        "The loss is a landscape over the weights. The largest eigenvalue of its Hessian says how steeply it curves in "
        "the sharpest direction, the trace how much in all directions together; `loss_increase` is what random changes "
        "of the weights cost. Flat places forgive such changes, sharp ones do not."
    )
    params: tuple[str, ...] = option((), help="Globs of roles or parameter names, as layers.0.*; none: all trainable.")
    k: int = option(3, help="How many of the largest eigenvalues.", min=1)
    tol: float = option(1e-2, help="Residual at which an eigenvalue is done, relative to it.", min=0.0)
    max_products: int = option(100, help="Most Hessian-vector products for eigenvalues.", min=2)
    curvature: Literal["hessian", "gauss_newton"] = option("hessian", help="Which matrix.")
    probes: int = option(10, help="Random vectors for the trace.", min=2)
    density_probes: int = option(0, help="Random vectors for the spectral density; 0: leave it out.", min=0)
    density_steps: int = option(32, help="Products per vector of the density.", min=2)
    sigma: tuple[float, ...] = option((0.01, 0.02, 0.04), help="Sizes of random perturbations.", min=0.0)
    draws: int = option(8, help="Pairs of perturbations per size.", min=8)
    rho: tuple[float, ...] = option((0.05,), help="Lengths of the step along the gradient.", min=0.0)
    rows: int = option(0, help="Examples per graph; 0: all at once, fastest, most memory.", min=0)
    precision: Literal["auto", "float32", "float64"] = option("auto", help="auto: float64 up to 100,000 parameters.")

    figures = (
        Figure("eigenvalue"),
        Figure("trace"),
        Figure("loss_increase", "profile", log="x"),
    )
    outputs: ClassVar[Mapping[str, Out]] = {
        "loss": Out(unit="nat", long_name="Loss on the batch"),
        "gradient_norm": Out(unit="nat", long_name="Length of the gradient"),
        "eigenvalue": Out(("index",), "nat", "Largest eigenvalues, descending"),
        "eigenvalue_residual": Out(("index",), "nat", "||H v - eigenvalue v||, v of length 1", error_of="eigenvalue"),
        "lowest": Out(unit="nat", long_name="Lowest eigenvalue seen on the way"),
        "lowest_residual": Out(unit="nat", long_name="Residual of the lowest eigenvalue", error_of="lowest"),
        "trace": Out(unit="nat", long_name="Trace"),
        "trace_se": Out(unit="nat", long_name="Standard error of the trace", error_of="trace"),
        "loss_increase": Out(("scaling", "sigma"), "nat", "Mean loss increase under noise"),
        "loss_increase_se": Out(("scaling", "sigma"), "nat", "Its standard error", error_of="loss_increase"),
        "sam_increase": Out(("rho",), "nat", "Loss increase of a step of length rho along the gradient"),
        "density_node": Out(("probe", "node"), "nat", "Nodes of the spectral density"),
        "density_weight": Out(("probe", "node"), "1", "Weights of the nodes, summing to 1 per probe"),
        "parameters": Out(dtype="i8", long_name="How many numbers the curvature is taken in"),
        "products": Out(dtype="i8", long_name="Products with the matrix spent"),
    }

    def analyze(self, view: View) -> Mapping[str, Any]:
        """Return curvature and loss increases; each estimate has random numbers of its own."""
        from .hessian import Curvature

        model = self._model(view)
        chosen = {name: model.parameters()[name] for name in model.select(self.params)}
        parts = self._parts(model, view.batch())
        operator = Curvature(parts, chosen, gauss_newton=self.curvature == "gauss_newton")
        if len(parts) > 1:
            self._check_sum(model, operator.loss, float(model.loss(view.batch())))
        for_curvature, for_noise = view.rng.spawn(2)
        return {
            "loss": operator.loss,
            "gradient_norm": np.linalg.norm(operator.gradient),
            "parameters": operator.size,
            **self._spectrum(operator, for_curvature),
            **self._moved(parts, chosen, operator, model, for_noise),
        }

    def _model(self, view: View) -> Model:
        if self.precision != "auto":
            return view.model(dtype=self.precision)
        model = view.model()
        small = sum(p.numel() for p in model.parameters().values()) <= SMALL_MODEL
        return view.model(dtype="float64") if small else model

    def _parts(self, model: Model, batch: Batch) -> list[Part]:
        pieces = model.split(batch, self.rows)
        if self.curvature == "gauss_newton":
            return [(share, partial(_loss_and_logits, model, piece)) for share, piece in pieces]
        return [(share, partial(_loss, model, piece)) for share, piece in pieces]

    def _check_sum(self, model: Model, parts: float, whole: float) -> None:
        if not np.isclose(parts, whole, rtol=1e-4, equal_nan=True):
            raise OptionError(
                f"flatness.rows={self.rows}: the loss of family {model.family.name!r} is no mean over its examples: "
                f"parts make {parts:.6g} and not {whole:.6g}. Leave rows at 0."
            )

    def _spectrum(self, operator: Curvature, rng: np.random.Generator) -> dict[str, Any]:
        from .lanczos import deflated_trace, lanczos, slq

        ritz = lanczos(
            operator.matvec,
            operator.size,
            rng,
            k=self.k,
            tol=self.tol,
            max_products=self.max_products,
            dtype=operator.dtype,
        )
        trace = deflated_trace(operator.matvec, ritz.basis, float(ritz.values.sum()), rng, probes=self.probes)
        steps = min(self.density_steps, operator.size) if self.density_probes else 0
        nodes, weights = slq(
            operator.matvec, operator.size, rng, probes=self.density_probes, steps=steps, dtype=operator.dtype
        )
        return {
            "eigenvalue": _first(ritz.values, self.k),
            "eigenvalue_residual": _first(ritz.residuals, self.k),
            "lowest": ritz.values[-1],
            "lowest_residual": ritz.residuals[-1],
            "trace": trace.value,
            "trace_se": trace.error,
            "density_node": nodes,
            "density_weight": weights,
            "products": ritz.products + trace.products + int((weights > 0).sum()),
        }

    def _moved(
        self,
        parts: list[Part],
        params: Tensors,
        operator: Curvature,
        model: Model,
        rng: np.random.Generator,
    ) -> dict[str, Any]:
        from .landscape import SCALINGS, loss_increase, sharpness_aware

        def loss(at: Tensors) -> float:
            return sum(share * float(function(at)[0]) for share, function in parts)

        increase, error = loss_increase(
            loss, params, rng, sigmas=self.sigma, draws=self.draws, transposed=model.transposed
        )
        return {
            "scaling": list(SCALINGS),
            "sigma": list(self.sigma),
            "rho": list(self.rho),
            "loss_increase": increase,
            "loss_increase_se": error,
            "sam_increase": sharpness_aware(loss, params, operator.gradient, self.rho),
        }


def _loss(model: Model, batch: Batch, params: Tensors) -> tuple[torch.Tensor, None]:
    return model.loss(batch, tensors=params), None


def _loss_and_logits(model: Model, batch: Batch, params: Tensors) -> tuple[torch.Tensor, torch.Tensor]:
    return model.loss_and_logits(batch, tensors=params)


def _first(values: np.ndarray[Any, Any], k: int) -> np.ndarray[Any, Any]:
    """Return the first k values, NaN where a smaller matrix has none."""
    full = np.full(k, np.nan)
    full[: len(values[:k])] = values[:k]
    return full


@hookimpl
def ckpt_analyzers() -> list[type[Analyzer]]:
    """Provide the analyzer `flatness`."""
    return [Flatness]
