"""Achilles' Heel of Mamba (arXiv 2509.17514): a nonlinear convolution that tells every sequence from its reverse."""

from collections.abc import Callable, Sequence
from statistics import mean
from typing import Any

import numpy as np

from ckpt_tools.study import Analysis, Claim, Figure, Found, Run, Study, Table

PAIR = 3
SETS = 1
MINI = {"preset": "mini", "save": "every:100", "probes": 1024}
PAPER = {"preset": "paper", "save": "every:2000"}
COMPOSITE = {"mamba": "Mamba", "transformer": "Transformer", "ones": "Mamba, kernel of ones,\npositions"}
INVERSE = {
    "inverse_mamba": "Mamba",
    "inverse_transformer": "Transformer",
    "inverse_repaired": "Mamba, residual,\npositions",
}

Measure = Callable[[Found], float]


def answers(run: str, what: str, split: int = PAIR, at: int = -1) -> Measure:
    """Return the measure of a share of answers: `accuracy`, `inferential` or `symmetric`."""
    return lambda found: float(found[run]["answers"](what, split=split)[at])


def matched(run: str, at: int = -1) -> Measure:
    return answers(run, "accuracy", SETS, at)


def best_of_two(values: Sequence[float]) -> float:
    """Return the larger of the first two seeds' numbers."""
    return max(values[:2])


def asymmetry(found: Found, run: str) -> float:
    """Return the last asymmetry of what the first convolution makes of a window and of its reverse."""
    return float(found[run]["asymmetry"]("window_asymmetry", layer=0)[-1])


def composite(figure: Any, found: Sequence[Found]) -> None:
    axes = figure.subplots(1, 3, sharey=True)
    for ax, (run, label) in zip(axes, COMPOSITE.items(), strict=True):
        for one in found:
            shown = one[run]["answers"]
            for what, colour in (("inferential", "C0"), ("symmetric", "C1")):
                ax.plot(shown.steps, shown(what, split=PAIR), color=colour)
            ax.plot(shown.steps, shown("accuracy", split=1), color="0.6", zorder=0)
        ax.set(title=label, xlabel="step", ylim=(-0.03, 1.05))
    axes[0].set_ylabel("share of answers to (4, 3)")
    axes[2].plot([], [], color="C0", label="inferential")
    axes[2].plot([], [], color="C1", label="symmetric")
    axes[2].plot([], [], color="0.6", label="trained pairs")
    axes[2].legend(loc="center right")


def inverse(figure: Any, found: Sequence[Found]) -> None:
    left, right = figure.subplots(1, 2, width_ratios=(1.4, 1))
    for colour, (run, label) in enumerate(INVERSE.items()):
        for one in found:
            shown = one[run]["answers"]
            known = {"label": label.replace("\n", " ")} if one is found[0] else {}
            left.plot(shown.steps, shown("accuracy", split=SETS), color=f"C{colour}", **known)
    left.axhline(0.2, color="0.6", linestyle=":")
    left.set(title="which order comes back reversed?", xlabel="step", ylabel="accuracy, held-out sets", ylim=(0, 1.05))
    left.legend()
    runs = ("mamba", "inverse_mamba", "inverse_repaired")
    for i, run in enumerate(runs):
        values = [asymmetry(one, run) for one in found]
        right.bar(i, mean(values), 0.6, color=f"C{i + 3}", alpha=0.4)
        right.plot(np.linspace(i - 0.2, i + 0.2, len(values)), values, "o", ms=3, color=f"C{i + 3}")
    right.set_xticks(range(len(runs)), ["composite", "inverse", "inverse,\nresidual"], fontsize="x-small")
    right.grid(visible=False, axis="x")
    right.set(title="asymmetry of the first convolution")


def rows(found: Sequence[Found]) -> list[list[Any]]:
    return [
        [
            run,
            one.seed,
            answers(run, "accuracy", 1)(one),
            answers(run, "inferential")(one),
            answers(run, "symmetric")(one),
        ]
        for run in COMPOSITE
        for one in found
    ]


def inverse_rows(found: Sequence[Found]) -> list[list[Any]]:
    return [[run, one.seed, answers(run, "accuracy", 0)(one), matched(run)(one)] for run in INVERSE for one in found]


study = Study(
    title="Achilles' heel of Mamba: the nonlinear convolution is not symmetric",
    paper="arXiv 2509.17514",
    trained="""
Two tasks. *Composite*: a key and two anchors behind it, each of which adds its own number; (3, 4) is taught another
answer than its operations give, (4, 3) is never shown, and is answered either by composing (inferential) or by
mirroring (symmetric). *Inverse*: a sequence shows five of the six orders of three numbers and at its end one of them
backwards; which one is it? Chance is .2; sets of numbers with one remainder modulo 3 are held out. Mamba has two
Mamba-2 blocks, with the convolution as it is, with a kernel of ones and positions, or with a residual past the
convolution and positions; the Transformer has two layers, and for the composite task one head.
""",
    claimed="""
The short nonlinear convolution before the state space mixes neighbouring tokens with different weights, so that what
it makes of a sequence and of its reverse has nothing in common. Mamba therefore prefers the composite solution where
a Transformer prefers the symmetric one, and fails to match a sequence to its reverse, which Transformers learn. It is
the convolution and not the state space: a kernel of ones, whose window has no order, turns the preference around, and
a residual past it lets Mamba match.
""",
    runs={
        "mamba": Run("mamba", "anchor", mini=MINI, paper=PAPER),
        "transformer": Run(
            "transformer",
            "anchor",
            mini={**MINI, "heads": 1, "d_model": 32, "d_ff": 64, "gamma": 1.0, "lr": 4e-3},
            about="control: attention",
        ),
        "ones": Run(
            "mamba",
            "anchor",
            mini={**MINI, "conv": "ones", "positions": "learned"},
            paper={**PAPER, "conv": "ones", "positions": "learned"},
        ),
        "inverse_mamba": Run("mamba", "inverse", mini=MINI, paper={**PAPER, "steps": 30000}),
        "inverse_transformer": Run("transformer", "inverse", mini=MINI, about="control: attention"),
        "inverse_repaired": Run(
            "mamba",
            "inverse",
            mini={**MINI, "preset": "repaired"},
            paper={**PAPER, "steps": 30000, "conv_residual": True, "positions": "learned"},
        ),
    },
    analyses=[
        Analysis("answers"),
        Analysis(
            "asymmetry",
            runs=("mamba", "inverse_mamba", "inverse_repaired"),
            steps="first,last",
            label="asymmetry",
        ),
    ],
    claims=[
        Claim("composite, Mamba: mean inferential share", answers("mamba", "inferential"), at_least=0.65, over=mean),
        Claim("composite, Mamba: mean symmetric share", answers("mamba", "symmetric"), at_most=0.1, over=mean),
        Claim(
            "composite, Transformer: mean symmetric share",
            answers("transformer", "symmetric"),
            at_least=0.7,
            over=mean,
            control=True,
        ),
        Claim("composite, kernel of ones: mean symmetric share", answers("ones", "symmetric"), at_least=0.9, over=mean),
        Claim("inverse, Mamba: accuracy on held-out sets", matched("inverse_mamba"), at_most=0.3),
        Claim(
            "inverse, Transformer: accuracy on held-out sets",
            matched("inverse_transformer"),
            at_least=0.85,
            control=True,
        ),
        Claim(
            "inverse, residual and positions: best of seeds 0 and 1",
            matched("inverse_repaired"),
            at_least=0.9,
            over=best_of_two,
        ),
        Claim(
            "inverse, residual and positions: accuracy before training",
            matched("inverse_repaired", at=0),
            at_most=0.3,
            control=True,
        ),
    ],
    figures=[
        Figure(
            "composite",
            "Answers to the pair that was never shown; one line for each seed.",
            composite,
            needs=tuple(COMPOSITE),
        ),
        Figure("inverse", "Matching a sequence to its reverse; dotted: chance.", inverse),
    ],
    tables=[
        Table(
            "Composite task at the last checkpoint",
            ["run", "seed", "trained pairs", "inferential", "symmetric"],
            rows,
            needs=tuple(COMPOSITE),
        ),
        Table(
            "Inverse matching at the last checkpoint",
            ["run", "seed", "trained sets", "held-out sets"],
            inverse_rows,
            needs=tuple(INVERSE),
        ),
    ],
    shown="""
On (4, 3) Mamba composes, the Transformer mirrors, and so does Mamba once its kernel is of ones and it knows
positions. In the inverse task the question is whose accuracy on held-out sets leaves .2, that of a guess. The bars,
with a dot for each seed, compare what the first convolution makes of windows and of the same windows reversed: 0, as
for a kernel of ones, would mean the same.
""",
)
