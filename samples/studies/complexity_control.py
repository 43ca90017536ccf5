"""Complexity control facilitates compositional generalization (arXiv 2501.08537), on the task of arXiv 2605.04396."""

from collections.abc import Callable, Collection, Sequence
from statistics import mean
from typing import Any

import numpy as np

from ckpt_tools.study import Analysis, Claim, Figure, Found, Run, Study, Table

TRAINED, OOD = 0, 1
MINI = {"preset": "mini", "save": "every:500"}
CHANCE = 1 / 16
LAST = 3
GAMMAS, DECAYS = (0.4, 0.5, 0.65, 0.8), (0.0, 0.1, 0.33)
COMPARED = {(0.5, 0.33): "decayed", (0.5, 0.0): "undecayed"}
MAP = {
    COMPARED.get((gamma, decay), f"gamma_{100 * gamma:.0f}_decay_{100 * decay:.0f}"): (gamma, decay)
    for gamma in GAMMAS
    for decay in DECAYS
}

Measure = Callable[[Found], float]


def accuracy(run: str, split: int = OOD) -> Measure:
    """Return the measure of an accuracy: the median of the last checkpoints, since a constant rate has spikes."""
    return lambda found: float(np.median(found[run]["answers"]("accuracy", split=split)[-LAST:]))


def untrained(found: Found) -> float:
    return float(found["decayed"]["answers"]("accuracy", split=OOD)[0])


def value_rank(found: Found, run: str, at: int = -1) -> float:
    """Return the participation ratio of W_V, the mean over layers."""
    rank = found[run]["rank"]
    names = [name for name in rank.labels["matrix"] if name.endswith(".attn.v")]
    return float(np.mean([rank("participation_ratio", matrix=name)[at] for name in names]))


def norm(found: Found, run: str) -> float:
    """Return the Frobenius norm of all matrices but embeddings."""
    rank = found[run]["rank"]
    names = [name for name in rank.labels["matrix"] if not name.startswith("embed")]
    return float(np.sqrt(sum(rank("frobenius_norm", matrix=name)[-1] ** 2 for name in names)))


def points(found: Sequence[Found], runs: Collection[str] = tuple(MAP)) -> np.ndarray:
    """Return complexity and accuracy out of distribution of these runs and seeds, [run x seed, 2]."""
    return np.array([[value_rank(one, run), accuracy(run)(one)] for run in runs for one in found])


def rank_correlation(x: np.ndarray, y: np.ndarray) -> float:
    """Return Spearman's rank correlation, ties sharing their mean rank; NaN where either is constant."""

    def ranks(values: np.ndarray) -> np.ndarray:
        _, place, count = np.unique(values, return_inverse=True, return_counts=True)
        return (np.cumsum(count) - (count - 1) / 2)[place]

    if np.ptp(x) == 0 or np.ptp(y) == 0:
        return float("nan")
    return float(np.corrcoef(ranks(x), ranks(y))[0, 1])


def courses(figure: Any, found: Sequence[Found]) -> None:
    left, right = figure.subplots(1, 2)
    for colour, (run, label) in enumerate({"decayed": "weight decay .33", "undecayed": "none"}.items()):
        for one in found:
            shown, rank = one[run]["answers"], one[run]["rank"]
            known = {"label": label} if one is found[0] else {}
            left.plot(shown.steps, shown("accuracy", split=OOD), color=f"C{colour}", **known)
            left.plot(shown.steps, shown("accuracy", split=TRAINED), color=f"C{colour}", linestyle=":", lw=1)
            ranks = [value_rank(one, run, at) for at in range(len(rank.steps))]
            right.plot(rank.steps, ranks, color=f"C{colour}")
    left.axhline(CHANCE, color="0.6", lw=0.8)
    left.set(title="pairs never shown (dotted: shown)", xlabel="step", ylabel="accuracy", ylim=(-0.03, 1.05))
    right.set(title="participation ratio of W_V", xlabel="step", ylim=(0, None))
    left.legend()


def phases(figure: Any, found: Sequence[Found]) -> None:
    left, right = figure.subplots(1, 2, width_ratios=(1, 1.3))
    grid = np.reshape([mean(accuracy(run)(one) for one in found) for run in MAP], (len(GAMMAS), len(DECAYS)))
    left.imshow(grid, vmin=0, vmax=1, origin="lower", aspect="auto")
    for i, row in enumerate(grid):
        for j, value in enumerate(row):
            left.text(j, i, f"{value:.2f}", ha="center", va="center", color="white" if value < 0.6 else "black")
    left.set_xticks(range(len(DECAYS)), DECAYS)
    left.set_yticks(range(len(GAMMAS)), GAMMAS)
    left.grid(visible=False)
    left.set(xlabel="weight decay", ylabel="gamma", title="accuracy, pairs never shown")
    for run, (gamma, decay) in MAP.items():
        xy = points(found, [run])
        marker, colour = "os^v"[GAMMAS.index(gamma)], f"C{DECAYS.index(decay)}"
        right.plot(xy[:, 0], xy[:, 1], marker, ms=4, color=colour)
    for i, gamma in enumerate(GAMMAS):
        right.plot([], [], "os^v"[i], ms=4, color="0.5", label=f"gamma {gamma}")
    for i, decay in enumerate(DECAYS):
        right.plot([], [], "o", ms=4, color=f"C{i}", label=f"decay {decay}")
    right.set(xlabel="participation ratio of W_V", title="complexity and generalization")
    right.legend(fontsize="x-small")


def rows(found: Sequence[Found]) -> list[list[Any]]:
    return [
        [*MAP[run], one.seed, accuracy(run, TRAINED)(one), accuracy(run)(one), value_rank(one, run), norm(one, run)]
        for run in MAP
        for one in found
    ]


def correlations(found: Sequence[Found]) -> list[list[Any]]:
    groups = {"all runs": points(found)} | {f"seed {one.seed}": points([one]) for one in found}
    for what, values in (("gamma", GAMMAS), ("decay", DECAYS)):
        for value in values:
            alike = [run for run, of_run in MAP.items() if of_run[what == "decay"] == value]
            groups[f"{what} {value}"] = points(found, alike)
    return [[name, len(xy), rank_correlation(xy[:, 0], xy[:, 1])] for name, xy in groups.items()]


study = Study(
    title="Complexity control: decay and initialization make Transformers compose",
    paper="arXiv 2501.08537",
    trained="""
8 anchors are random permutations of 16 keys; a sequence is a key and two anchors, its answer what the second makes of
what the first makes of the key. 45 of the 64 ordered pairs are trained, with every key; the other 19 are the test out
of distribution, where chance is 1/16. Two layers of width 64, no decay on embeddings, std of weights .8 d_in^-gamma.
The comparison is gamma .5 with and without weight decay; the map is of four gammas and three decays.
""",
    claimed="""
Weight decay and small initialization control the complexity of the solution. Both kinds of models fit what they are
shown; those of low complexity compose the permutations on pairs they never saw, those of high complexity memorize
pairs. Complexity shows in the ranks of the weights, and goes with accuracy out of distribution over the whole map.
""",
    runs={
        name: Run(
            "transformer",
            "permutation",
            {**MINI, "gamma": gamma, "weight_decay": decay},
            about={"decayed": "compared", "undecayed": "compared, control"}.get(name, "map of gamma and decay"),
        )
        for name, (gamma, decay) in MAP.items()
    },
    analyses=[Analysis("answers"), Analysis("rank")],
    claims=[
        Claim(
            "decay .33 less none: mean gap of out-of-distribution accuracy",
            lambda found: accuracy("decayed")(found) - accuracy("undecayed")(found),
            at_least=0.35,
            over=mean,
        ),
        Claim("decay .33: accuracy on trained pairs", accuracy("decayed", TRAINED), at_least=0.99),
        Claim("no decay: accuracy on trained pairs", accuracy("undecayed", TRAINED), at_least=0.99),
        Claim(
            "participation ratio of W_V, decay .33 / none",
            lambda found: value_rank(found, "decayed") / value_rank(found, "undecayed"),
            at_most=0.65,
        ),
        Claim(
            "decay .33: out-of-distribution accuracy before training, mean",
            untrained,
            at_most=0.15,
            over=mean,
            control=True,
        ),
    ],
    figures=[
        Figure("courses", "With and without decay, one line for each seed.", courses, needs=("decayed", "undecayed")),
        Figure("map", "Twelve settings: mean accuracy over seeds, and accuracy against complexity.", phases),
    ],
    tables=[
        Table(
            "The map at the last checkpoint",
            ["gamma", "decay", "seed", "trained", "out of distribution", "participation W_V", "norm"],
            rows,
        ),
        Table(
            "Rank correlation of complexity and accuracy out of distribution",
            ["over", "runs", "Spearman"],
            correlations,
        ),
    ],
    shown="""
Trained pairs are learned with and without decay within 1000 steps. On the others the decayed model goes on improving
for thousands of steps while the rank of W_V falls to half; without decay accuracy stays near .25 and the rank falls
little. The map has four initializations, from large to small, and a decay between. Over it the rank correlation says
whether low complexity goes with composing: a negative one says that it does. It is also given along each line of the
map, as decay and initialization need not act alike.
""",
)
