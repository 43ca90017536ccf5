"""Reasoning bias of next-token prediction (arXiv 2502.02007): loss on all tokens against loss on the answer alone."""

from collections.abc import Callable, Sequence
from typing import Any

from ckpt_tools.study import Analysis, Claim, Figure, Found, Run, Study, Table

KEYS, PAIR = 1, 3
MINI = {"preset": "mini", "gamma": 0.5, "samples": 20000, "steps": 2000, "save": "every:200", "probes": 1024}
LABELS = {"next": "all tokens", "critical": "the answer alone"}
SIGMA = 0.04

Measure = Callable[[Found], float]


def answers(run: str, what: str, split: int = PAIR, at: int = -1) -> Measure:
    """Return the measure of a share of answers: `accuracy`, `inferential` or `symmetric`."""
    return lambda found: float(found[run]["answers"](what, split=split)[at])


def embedding_rank(found: Found, run: str) -> float:
    return float(found[run]["rank"]("stable_rank", matrix="embed")[-1])


def rise(found: Found, run: str, scaling: str) -> float:
    """Return how much noise of size `SIGMA` in the weights raises the loss of answers."""
    return float(found[run]["flatness"]("loss_increase", scaling=scaling, sigma=SIGMA)[-1])


def ratio(found: Found) -> float | None:
    """Return symmetric(next) / symmetric(critical); None where the latter is 0."""
    below = answers("critical", "symmetric")(found)
    return answers("next", "symmetric")(found) / below if below else None


def lower_ranks(values: Sequence[float]) -> float:
    """Return for how many seeds the rank ratio is below 1."""
    return float(sum(value < 1 for value in values))


def courses(figure: Any, found: Sequence[Found]) -> None:
    axes = figure.subplots(1, 3)
    for column, (run, label) in enumerate(LABELS.items()):
        for one in found:
            shown, rank = one[run]["answers"], one[run]["rank"]
            for what, colour in (("inferential", "C0"), ("symmetric", "C1")):
                known = {"label": what} if one is found[0] else {}
                axes[column].plot(shown.steps, shown(what, split=PAIR), color=colour, **known)
            axes[column].plot(shown.steps, shown("accuracy", split=KEYS), color="0.6", zorder=0)
            axes[2].plot(rank.steps, rank("stable_rank", matrix="embed"), color=f"C{2 + column}")
        axes[2].plot([], [], color=f"C{2 + column}", label=label)
        axes[column].set(title=f"loss on {label}", xlabel="step", ylim=(-0.03, 1.05))
    axes[0].plot([], [], color="0.6", label="trained pairs")
    axes[0].set_ylabel("share of answers to (4, 3)")
    axes[0].legend(loc="center right")
    axes[2].set(title="stable rank of the embedding", xlabel="step", ylim=(0, None))
    axes[2].legend()


def robustness(figure: Any, found: Sequence[Found]) -> None:
    axes = figure.subplots(1, 2)
    for ax, scaling in zip(axes, ("absolute", "tensor"), strict=True):
        for column, (run, label) in enumerate(LABELS.items()):
            for one in found:
                flat = one[run]["flatness"]
                known = {"label": label} if one is found[0] else {}
                sizes = flat.labels["sigma"]
                ax.plot(sizes, flat("loss_increase", scaling=scaling)[-1], "o-", ms=3, color=f"C{2 + column}", **known)
        ax.set(title=f"noise, {scaling}", xlabel="sigma", ylabel="rise of the answers' loss (nat)")
    axes[0].legend()


def rows(found: Sequence[Found]) -> list[list[Any]]:
    return [
        [
            LABELS[run],
            one.seed,
            *(answers(run, "accuracy", split)(one) for split in (0, KEYS)),
            *(answers(run, what)(one) for what in ("inferential", "symmetric")),
            embedding_rank(one, run),
            *(rise(one, run, scaling) for scaling in ("absolute", "tensor")),
        ]
        for run in LABELS
        for one in found
    ]


study = Study(
    title="Reasoning bias of next-token prediction",
    paper="arXiv 2502.02007",
    trained="""
The composite task (a key, two anchors behind it; (3, 4) taught another answer than its operations give, (4, 3) never
shown) with 20,000 fixed sequences, gamma .5, two layers. Critical-token training counts the answer alone; next-token
training counts it as half of the loss, and as the other half the mean loss of all tokens before, which are random
items and cannot be learned. Everything else is alike, the data and their order included.
""",
    claimed="""
The loss on tokens that have nothing to do with the answer acts as noise in the gradient, which regularizes: models
trained on all tokens reason where those trained on the answer alone memorize, lie in flatter minima and stand more
noise in their weights. In the paper: GPT-2 (125M) on PrOntoQA, CLUTRR and RuleTaker.
""",
    runs={
        "next": Run("transformer", "anchor", {**MINI, "score": "all"}, about="loss on all tokens"),
        "critical": Run("transformer", "anchor", {**MINI, "score": "answers"}, about="control: loss on the answer"),
    },
    analyses=[
        Analysis("answers"),
        Analysis("rank", matrices=("embed",)),
        Analysis(
            "flatness", {"sigma": (0.01, 0.02, SIGMA), "draws": 8, "k": 1, "probes": 2}, steps="last", label="flatness"
        ),
    ],
    claims=[
        Claim("symmetric share on (4, 3), next-token / critical-token", ratio, at_most=0.4),
        Claim(
            "stable rank of the embedding, next-token / critical-token: seeds with less than 1",
            lambda found: embedding_rank(found, "next") / embedding_rank(found, "critical"),
            at_least=2.0,
            over=lower_ranks,
        ),
        Claim(
            "next-token: accuracy on trained pairs before training",
            answers("next", "accuracy", KEYS, at=0),
            at_most=0.05,
            control=True,
        ),
    ],
    figures=[
        Figure("courses", "Answers to the pair that was never shown, and the rank of the embedding.", courses),
        Figure("robustness", "Noise in the weights of the last checkpoint: no threshold, as found.", robustness),
    ],
    tables=[
        Table(
            f"At the last checkpoint; noise of size {SIGMA} raises the loss of answers by the last two columns",
            ["loss on", "seed", "trained", "keys", "inferential", "symmetric", "stable rank E", "absolute", "relative"],
            rows,
        )
    ],
    shown="""
What is checked is what showed in a prototype at this size: fewer mirrored answers and a lower rank of the embedding.
Better reasoning and flatter minima, the headline, did not show there, so that the curves, the noise and the table are
given as measured, without a threshold.
""",
)
