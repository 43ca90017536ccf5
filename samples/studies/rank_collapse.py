"""From condensation to rank collapse (arXiv 2510.06954): values and MLP condense first, then queries and keys."""

import numpy as np

from ckpt_tools import Analyzer, Out, hookimpl
from ckpt_tools.study import Analysis, Claim, Figure, Run, Study, Table, first

QUERY, KEY, VALUE, UP = "layers.0.attn.q", "layers.0.attn.k", "layers.0.attn.v", "layers.0.mlp.up"
BLUE, RED, GREEN, PINK, BLACK = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#000000"
BINARY = {"save": "every:10"}


class Collapse(Analyzer):
    """How W_V and W_Q of an attention layer lie to the directions that theory gives, on the run's own examples.

    v = sum_i y_i sum_j X_ij, and with L_i = exp(-y_i f_i) and E = W_V W1 W2
    F = (1 / (n s sqrt d)) sum_i y_i L_i X_is^T E^T sum_j X_ij^T (X_ij - mean X_i), so that dW_Q/dt = F W_K.
    """

    name = "collapse"
    needs = "forward"
    outputs = {
        "value_cos": Out((), "1", "Mean |cos| of the columns of W_V to v"),
        "query_cos": Out((), "1", "|cos| of the top left-singular vectors of W_Q and of F"),
        "deviation": Out((), "1", "Largest distance of an attention weight from 1 / s"),
    }

    def analyze(self, view):
        batch, weights = view.batch(), view.matrices()
        shown = view.model().forward(batch, record=True)
        x, y, d = batch["inputs"].numpy(), batch["targets"].numpy(), batch["inputs"].shape[2]
        v = (y[:, None] * x.sum(1)).sum(0)
        columns = weights[VALUE]  # stored [out, in]: a row is a column of W_V
        along = columns @ v / np.linalg.norm(columns, axis=1) / np.linalg.norm(v)
        loss = np.exp(-y * shown.logits[:, 0, 0].detach().numpy())
        chain = weights["layers.0.mlp.down"][0] @ weights[UP] @ columns  # E
        spread = np.einsum("ijd,ije,d->ie", x, x - x.mean(1, keepdims=True), chain)
        force = np.einsum("i,id,ie->de", y * loss, x[:, -1], spread) / (len(x) * x.shape[1] * d**0.5)
        maps = shown.attention[0].detach().numpy()
        return {
            "value_cos": abs(along).mean(),
            "query_cos": abs(np.linalg.svd(weights[QUERY])[2][0] @ np.linalg.svd(force)[0][:, 0]),
            "deviation": abs(maps - 1 / x.shape[1]).max(),
        }


@hookimpl
def ckpt_analyzers():
    return [Collapse]


def rank(found, run, matrix):
    return found[run]["rank"]("effective_rank", matrix=matrix)


def condensed(found, run="binary"):
    """First checkpoint at which the effective rank of W_V is below 3."""
    return first(rank(found, run, VALUE) < 3)


def at_onset(curve):
    def measure(found):
        place = condensed(found)
        return None if place is None else curve(found)[place]

    return measure


def norm_change(found):
    change = [abs(found["binary"]["drift"]("norm_change", matrix=m)) for m in (QUERY, KEY)]
    return np.maximum(*change)


def later_rank(found):
    """Smallest value behind the onset of the larger of the two effective ranks."""
    begin = condensed(found)
    return None if begin is None else np.maximum(*(rank(found, "binary", m) for m in (QUERY, KEY)))[begin:].min()


def later_cos(found):
    """|cos| of W_Q's and F's directions where W_Q and W_K are closest to rank one."""
    begin = condensed(found)
    if begin is None:
        return None
    place = begin + int(np.maximum(*(rank(found, "binary", m) for m in (QUERY, KEY)))[begin:].argmin())
    return found["binary"]["collapse"]("query_cos")[place]


def smallest(run, matrix):
    return lambda found: rank(found, run, matrix).min()


study = Study(
    title="From condensation to rank collapse",
    paper="arXiv 2510.06954, *From Condensation to Rank Collapse*",
    trained="",
    claimed="",
    runs={
        "binary": Run("attn_mlp", "signal", BINARY, mini={"gamma": 2.0}),
        "rate-0.5": Run(
            "attn_mlp", "signal", {"save": "every:100"}, mini={"gamma": 0.5}, about="Control: larger weights."
        ),
        "rate-1": Run(
            "attn_mlp", "signal", {"save": "every:100"}, mini={"gamma": 1.0}, about="Control: larger weights."
        ),
    },
    analyses=[
        Analysis("rank", {"products": False}),
        Analysis("drift", {"turning": False}),
        Analysis("collapse", runs=("binary", "rate-0.5", "rate-1")),
    ],
    claims=[
        Claim(
            "onset: mean |cos| of W_V's columns to v",
            at_onset(lambda f: f["binary"]["collapse"]("value_cos")),
            above=0.95,
        ),
        Claim("onset: change of |W_Q| and |W_K| since the start", at_onset(norm_change), at_most=0.02),
        Claim(
            "onset: deviation of attention from 1/s",
            at_onset(lambda f: f["binary"]["collapse"]("deviation")),
            below=0.01,
        ),
        Claim("later: effective rank of W_Q and W_K, the larger", later_rank, below=2),
        Claim("later: |cos| of the top directions of W_Q and F", later_cos, above=0.95),
        Claim("std d^-0.5: smallest effective rank of W_V", smallest("rate-0.5", VALUE), at_least=3, control=True),
        Claim("std d^-1: smallest effective rank of W_V", smallest("rate-1", VALUE), at_least=3, control=True),
    ],
)
