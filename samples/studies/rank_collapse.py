"""From condensation to rank collapse (arXiv 2510.06954): values and MLP condense first, then queries and keys."""

import numpy as np

from ckpt_tools import Analyzer, Out, hookimpl, to_numpy
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
        x, y, d = to_numpy(batch["inputs"]), to_numpy(batch["targets"]), batch["inputs"].shape[2]
        v = (y[:, None] * x.sum(1)).sum(0)
        columns = weights[VALUE]  # stored [out, in]: a row is a column of W_V
        along = columns @ v / np.linalg.norm(columns, axis=1) / np.linalg.norm(v)
        loss = np.exp(-y * to_numpy(shown.logits[:, 0, 0]))
        chain = weights["layers.0.mlp.down"][0] @ weights[UP] @ columns  # E
        spread = np.einsum("ijd,ije,d->ie", x, x - x.mean(1, keepdims=True), chain)
        force = np.einsum("i,id,ie->de", y * loss, x[:, -1], spread) / (len(x) * x.shape[1] * d**0.5)
        maps = to_numpy(shown.attention[0])
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


def condensed_alone(run):
    """Smallest effective rank of W_V over its first while W_Q has moved less than a quarter of its norm."""

    def measure(found):
        still = found[run]["drift"]("distance", matrix=QUERY) < 0.25
        return (rank(found, run, VALUE)[still] / rank(found, run, VALUE)[0]).min()

    return measure


def both(found, run):
    """The larger of the effective ranks of W_Q and W_K, each over its first."""
    return np.maximum(*(rank(found, run, m) / rank(found, run, m)[0] for m in (QUERY, KEY)))


def collapsed(run):
    return lambda found: both(found, run).min()


def rises(run):
    """Largest effective rank of W_V behind its smallest, over the smallest."""

    def measure(found):
        values = rank(found, run, VALUE)
        return values[values.argmin() :].max() / values.min()

    return measure


def anchor_claims(run, name):
    return [
        Claim(
            f"{name}: smallest rank of W_V over its first, W_Q having moved < 25 %", condensed_alone(run), below=0.15
        ),
        Claim(f"{name}: later ranks of W_Q and W_K over their first, the larger", collapsed(run), below=0.35),
        Claim(f"{name}: rank of W_V behind its smallest, over the smallest", rises(run), above=1.3),
    ]


def draw_binary(figure, found):
    left, middle, right = figure.subplots(1, 3)
    for one in found:
        measures = one["binary"]["rank"]
        for matrix, label, colour in (
            (VALUE, "W_V", BLUE),
            (UP, "W_1", GREEN),
            (QUERY, "W_Q", RED),
            (KEY, "W_K", PINK),
        ):
            left.plot(
                measures.steps, rank(one, "binary", matrix), color=colour, label=label if one is found[0] else None
            )
        for output, label, colour in (("value_cos", "W_V to v", BLUE), ("query_cos", "W_Q to F", RED)):
            values = one["binary"]["collapse"](output)
            middle.plot(measures.steps, values, color=colour, label=label if one is found[0] else None)
        right.plot(measures.steps, one["binary"]["trajectory"]("loss"), color=BLACK)
        if (place := condensed(one)) is not None:
            for axes in (left, middle, right):
                axes.axvline(measures.steps[place], color="grey", lw=0.8)
    left.set(xlabel="step", ylabel="effective rank", yscale="log")
    middle.set(xlabel="step", ylabel="|cos|", ylim=(0, 1.02))
    right.set(xlabel="step", ylabel="loss")
    left.legend()
    middle.legend(loc="lower right")


def draw_anchor(figure, found):
    runs = (("anchor", "SGD"), ("adamw", "AdamW"))
    for axes, (run, title) in zip(figure.subplots(1, 2, sharey=True), runs, strict=True):
        for one in found:
            for matrix, label, colour in ((VALUE, "W_V", BLUE), (QUERY, "W_Q", RED), (KEY, "W_K", PINK)):
                values = rank(one, run, matrix)
                label = label if one is found[0] else None
                axes.plot(one[run]["rank"].steps, values / values[0], color=colour, label=label)
        axes.set(xlabel="step", title=title, ylim=(0, 1.1))
        axes.legend(loc="lower left")
        axes.set_ylabel("effective rank over its first")


def wiki_rows(found):
    for one in found:
        if "wiki" in one:
            measures = one["wiki"]["rank"]
            for matrix in measures.labels["matrix"]:
                values = rank(one, "wiki", matrix) / rank(one, "wiki", matrix)[0]
                low = int(values.argmin())
                yield [one.seed, matrix, float(values[low]), int(measures.steps[low]), float(values[-1])]


SIGNAL_RUNS = ("binary", "rate-0.5", "rate-1")

study = Study(
    title="From condensation to rank collapse",
    paper="arXiv 2510.06954, *From Condensation to Rank Collapse*",
    trained="""
f = tanh(A X W_V W1) W2 with the attention A of the last vector learns the sign that one marked vector of a sequence
carries: 512 sequences of 8 vectors in 32 dimensions, loss exp(-y f), gradient descent at rate 0.5 from weights of
standard deviation d^-2. Negative controls: d^-0.5 and d^-1.

The anchor form: one layer without residual and norm gives, from 9 random items and an anchor among them, the item
behind the anchor, plus one for odd anchors; embeddings are random and frozen. SGD at rate 2 from d^-1.7, with d = 64,
and once more AdamW from d^-0.85, which is the optimizer of the paper's figure at a tenth of its width (d = 640,
preset `paper`).

Given `--data wikitext=FILE`, two layers with residual learn its characters by AdamW from d^-1.2. That run has no
thresholds.
""",
    claimed="""
With v = sum_i y_i sum_j X_ij, the value matrix and W1 condense first, along v, while W_Q and W_K stand still and
attention is uniform. Then dW_Q/dt = F W_K and dW_K/dt = F^T W_Q with a matrix F that no longer changes its direction,
and W_Q and W_K collapse to its top singular direction: their rank is lost after that of the values. Larger weights do
neither. In the anchor form the rank of W_V rises again behind the collapse, as the model begins to copy items.
""",
    runs={
        "binary": Run("attn_mlp", "signal", BINARY, mini={"gamma": 2.0}),
        "rate-0.5": Run(
            "attn_mlp",
            "signal",
            {"save": "every:50", "steps": 1000},
            mini={"gamma": 0.5},
            about="control: larger weights",
        ),
        "rate-1": Run(
            "attn_mlp",
            "signal",
            {"save": "every:50", "steps": 1000},
            mini={"gamma": 1.0},
            about="control: larger weights",
        ),
        "anchor": Run(
            "transformer",
            "next_item",
            {"batch": 1000, "save": "every:10"},
            mini={"steps": 1600},
            about="anchor form",
        ),
        "adamw": Run(
            "transformer",
            "next_item",
            {
                "optimizer": "adamw",
                "gamma": 0.85,
                "lr_first": 0.067,
                "clip": 1.0,
                "batch": 1000,
                "save": "every:20",
            },
            mini={"lr": 1e-3, "warmup": 100, "steps": 1500},
            paper={"lr": 1.5e-4, "warmup": 1000, "steps": 6000, "d_model": 640, "d_ff": 1280},
            about="anchor form with AdamW; at paper scale the number of steps is our choice",
        ),
        "wiki": Run(
            "transformer",
            "text",
            {"layers": 2, "heads": 1, "d_model": 64, "activation": "gelu", "norm": "none", "gamma": 1.2, "clip": 0.0},
            mini={"d_ff": 256, "length": 64, "batch": 16, "lr": 1e-3, "lr_schedule": "constant", "steps": 800},
            paper={"preset": "paper"},
            data="wikitext",
            about="text form",
        ),
    },
    analyses=[
        Analysis("rank", {"products": False}),
        Analysis("drift", {"turning": False}),
        Analysis("collapse", runs=SIGNAL_RUNS),
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
        *anchor_claims("anchor", "anchor, SGD"),
        *anchor_claims("adamw", "anchor, AdamW"),
    ],
    figures=[
        Figure(
            "binary", "Binary form; lines of all seeds, the onset of condensation in grey.", draw_binary, (9.6, 3.0)
        ),
        Figure("anchor", "Anchor form.", draw_anchor),
    ],
    tables=[
        Table(
            "WikiText: effective ranks, relative to their first",
            ["seed", "matrix", "smallest", "at step", "last"],
            wiki_rows,
            needs=("wiki",),
        )
    ],
    shown="""
Binary form: W_V and W1 lose their rank together, and W_V's columns lie along v, at a time when W_Q and W_K have moved
by less than a thousandth. Only when the loss falls do W_Q and W_K collapse, to the direction of F. From larger
weights W_V keeps its rank. Anchor form with SGD: the same order, values first, then queries and keys, and then W_V's
rank rises.

Anchor form with AdamW: not reproduced at a tenth of the paper's width. From the paper's rate, d^-0.85, W_V keeps
three quarters of its rank while W_Q already moves. From smaller weights everything condenses, but at once: with
d^-1.32 (the standard deviation of the paper's width) and with d^-1.7, W_Q and W_K had moved to 3 and 12 times their
norm within 100 updates, when W_V was at 0.43 and 0.12 of its first rank. AdamW divides each entry's gradient by its
size, so that small gradients, which hold W_Q and W_K still under SGD, hold nothing still. Preset `paper` has the
published width and rates; it was not run.
""",
)
