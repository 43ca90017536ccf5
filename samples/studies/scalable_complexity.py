"""Scalable complexity control (arXiv 2505.23013): a constant rate of initialization instead of a constant std.

A std that is the same for all widths d is a rate that falls with width, gamma_eff(d) = -ln std / ln d: the larger the
model, the larger its weights for its width, and the more complex what it learns.
"""

from collections.abc import Callable, Sequence
from statistics import mean
from typing import Any

import numpy as np

from ckpt_tools.study import Analysis, Claim, Figure, Found, Run, Study, Table

PAIR = 3
STD = 0.1
STARTS = {"rate": {"gamma": 0.8}, "half": {"gamma": 0.5}, "fixed": {"std": STD}}
LABELS = {"rate": "gamma .8", "half": "gamma .5", "fixed": f"std {STD}"}
WIDTHS = (32, 64, 128)
LAYERS = 2
TEXT = {
    "length": 64,
    "batch": 16,
    "steps": 300,
    "warmup": 30,
    "lr": 2e-3,
    "weight_decay": 0.1,
    "layers": LAYERS,
    "save": "at:0,300",
}
ANCHOR = {"preset": "mini", "save": "every:100", "probes": 1024}
W_Q = "layers.0.attn.q"

Measure = Callable[[Found], float]


def name(start: str, width: int) -> str:
    return f"{start}_{width}"


TEXT_RUNS = tuple(name(start, width) for start in STARTS for width in WIDTHS)


def inferential(run: str) -> Measure:
    return lambda found: float(found[run]["answers"]("inferential", split=PAIR)[-1])


def stable_rank(found: Found, run: str, matrix: str) -> float:
    return float(found[run]["rank"]("stable_rank", matrix=matrix)[-1])


def size(width: int) -> int:
    """Return the number of weights without embeddings: 12 d^2 for each layer."""
    return 12 * LAYERS * width**2


def losses(found: Sequence[Found], start: str) -> np.ndarray:
    """Return ln of size and of the validation loss at the last checkpoint, [width x seed, 2]."""
    return np.array(
        [
            [np.log(size(width)), np.log(one[name(start, width)]["answers"]("loss", split=0)[-1])]
            for width in WIDTHS
            for one in found
        ]
    )


def line(xy: np.ndarray) -> tuple[float, float, float]:
    """Return slope and intercept of the least-squares line, and the slope's standard error."""
    (x, y), n = xy.T, len(xy)
    design = np.stack([x, np.ones(n)], axis=1)
    (slope, intercept), *_ = np.linalg.lstsq(design, y, rcond=None)
    spread = np.sum((y - slope * x - intercept) ** 2) / max(1, n - 2)
    return float(slope), float(intercept), float(np.sqrt(spread / np.sum((x - x.mean()) ** 2)))


def scaling(figure: Any, found: Sequence[Found]) -> None:
    left, right = figure.subplots(1, 2)
    for colour, start in enumerate(STARTS):
        xy = losses(found, start)
        slope, intercept, error = line(xy)
        label = f"{LABELS[start]}: slope {slope:.4f} ± {error:.4f}"
        left.plot(np.exp(xy[:, 0]), np.exp(xy[:, 1]), "o", ms=4, color=f"C{colour}")
        ends = np.array([xy[0, 0], xy[-1, 0]])
        left.plot(np.exp(ends), np.exp(slope * ends + intercept), color=f"C{colour}", label=label)
        for one in found:
            ranks = [stable_rank(one, name(start, width), W_Q) for width in WIDTHS]
            right.plot(WIDTHS, ranks, "o-", ms=3, color=f"C{colour}")
    left.set(xscale="log", yscale="log", xlabel="weights without embeddings", ylabel="validation loss (nat)")
    left.set_xticks([size(width) for width in WIDTHS], [f"{size(width) / 1e3:.0f}k" for width in WIDTHS])
    left.tick_params(axis="x", which="minor", bottom=False, labelbottom=False)
    left.yaxis.set_major_formatter("{x:.2f}")
    left.yaxis.set_minor_formatter("{x:.2f}")
    left.legend()
    right.set(title="stable rank of W_Q, layer 0", xlabel="width", xscale="log", ylim=(0, None))
    right.set_xticks(WIDTHS, WIDTHS)
    right.minorticks_off()


def composing(figure: Any, found: Sequence[Found]) -> None:
    axes = figure.subplots()
    for colour, run in enumerate(("controlled", "uncontrolled")):
        for one in found:
            known = {"label": run} if one is found[0] else {}
            shown = one[run]["answers"]
            axes.plot(shown.steps, shown("inferential", split=PAIR), color=f"C{colour}", **known)
    axes.set(xlabel="step", ylabel="inferential share", title="the pair that was never shown", ylim=(-0.03, 1.05))
    axes.legend()


def fits(found: Sequence[Found]) -> list[list[Any]]:
    found_lines = {start: line(losses(found, start)) for start in STARTS}
    return [
        [LABELS[start], len(losses(found, start)), slope, error] for start, (slope, _, error) in found_lines.items()
    ]


def rows(found: Sequence[Found]) -> list[list[Any]]:
    return [
        [
            LABELS[start],
            width,
            one.seed,
            float(one[name(start, width)]["answers"]("loss", split=0)[-1]),
            stable_rank(one, name(start, width), W_Q),
            stable_rank(one, name(start, width), "embed"),
        ]
        for start in STARTS
        for width in WIDTHS
        for one in found
    ]


study = Study(
    title="Scalable complexity control: a constant rate of initialization",
    paper="arXiv 2505.23013",
    trained="""
Language models of two layers on a text, by character, at three widths with the same number of tokens: initialized at
a rate, std = d_in^-gamma with gamma .8 or .5, or with std .1 at every width, which is gamma .66, .55 and .47. They
need a text: `--data text=FILE`. And the composite task at one size, with complexity control (gamma .65, decay .1) and
without (gamma .40, decay .01), which needs none.
""",
    claimed="""
With the rate held constant, and with weight decay, the loss falls faster with the sizes of model and data than with
the usual constant std, and reasoning improves most (2.4B parameters, 1T tokens). No exponent can be told at the sizes
of a miniature, so nothing is checked about the lines: the report gives the fitted slopes with their standard errors.
What is checked is what complexity control does to the weights and to the composite task; of the ranks only the
direction is, the paper's abstract giving no number.
""",
    runs={
        "controlled": Run(
            "transformer", "anchor", {**ANCHOR, "gamma": 0.65, "weight_decay": 0.1, "lr": 4e-3, "steps": 1200}
        ),
        "uncontrolled": Run("transformer", "anchor", {**ANCHOR, "gamma": 0.4}, about="control"),
        **{
            name(start, width): Run(
                "gpt",
                "text",
                {**TEXT, "d_model": width, **chosen},
                about="control: fixed std" if start == "fixed" else "",
                data="text",
            )
            for start, chosen in STARTS.items()
            for width in WIDTHS
        },
    },
    analyses=[Analysis("answers"), Analysis("rank", matrices=("embed", "*.attn.q"))],
    claims=[
        Claim(
            "composite task, controlled: mean inferential share", inferential("controlled"), at_least=0.65, over=mean
        ),
        Claim(
            "composite task, uncontrolled: mean inferential share",
            inferential("uncontrolled"),
            at_most=0.4,
            over=mean,
            control=True,
        ),
        Claim(
            "composite task: stable rank of the embedding, controlled / uncontrolled",
            lambda found: stable_rank(found, "controlled", "embed") / stable_rank(found, "uncontrolled", "embed"),
            below=1.0,
        ),
        Claim(
            "text, width 128: stable rank of W_Q, gamma .8 / fixed std",
            lambda found: stable_rank(found, "rate_128", W_Q) / stable_rank(found, "fixed_128", W_Q),
            below=1.0,
        ),
    ],
    figures=[
        Figure(
            "composing",
            "Composite task, one line for each seed.",
            composing,
            (4.2, 3.2),
            ("controlled", "uncontrolled"),
        ),
        Figure(
            "scaling", "Validation loss against size, with fitted lines, and the rank of W_Q.", scaling, needs=TEXT_RUNS
        ),
    ],
    tables=[
        Table(
            "Lines ln loss = a + slope ln size, over widths and seeds: as found, without a threshold",
            ["start", "points", "slope", "standard error"],
            fits,
            needs=TEXT_RUNS,
        ),
        Table(
            "Language models at the last checkpoint",
            ["start", "width", "seed", "validation loss", "stable rank W_Q", "stable rank E"],
            rows,
            needs=TEXT_RUNS,
        ),
    ],
    shown="""
The composite task compares complexity control with none at one size. On text the same number of updates is given to
all sizes and starts; whether the slopes of their lines differ, the standard errors in the table say.
""",
)
