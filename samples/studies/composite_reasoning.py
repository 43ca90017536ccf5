"""Initialization decides whether Transformers fit composite functions by reasoning or memorizing (arXiv 2405.05409)."""

from collections.abc import Callable, Mapping, Sequence
from statistics import mean
from typing import Any, ClassVar

import numpy as np

from ckpt_tools import Analyzer, Out, View, hookimpl, to_numpy
from ckpt_tools.study import Analysis, Claim, Figure, Found, Run, Study, Table

KEYS, HELD_OUT = 1, 3
MINI = {"preset": "mini", "save": "every:100", "probes": 1024}
PAPER = {"preset": "paper", "save": "every:4400"}
LABELS = {"small": "gamma .65", "large": "gamma .40"}
LINE = {"larger": 0.3, "large": 0.4, "small": 0.65, "smaller": 0.8}
W_Q = "layers.0.attn.q"
CUTS = (("key to anchors", "anchors", "key"), ("anchors to last", "last", "anchors"), ("key to last", "last", "key"))

Measure = Callable[[Found], float]


class Grouping(Analyzer):
    """Do examples with the same target look alike where the answer is read off, whatever led there?

    Cosines of the residual stream's last position between examples of ordinary pairs with held-out keys.
    """

    name = "grouping"
    needs = "forward"
    outputs: ClassVar[Mapping[str, Out]] = {
        "same": Out(
            ("layer",), "1", "Mean cosine between examples of the same target, before each layer and after all"
        ),
        "different": Out(("layer",), "1", "Mean cosine between examples of different targets"),
    }

    def analyze(self, view: View) -> Mapping[str, Any]:
        """Return the cosines; the batch is the probe batch of task `anchor`."""
        batch = view.batch()
        rows = batch["split"] == KEYS
        targets = to_numpy(batch["targets"][rows])
        hidden = view.model().forward(batch, record=True).hidden
        states = [to_numpy(h[rows, -1].double()) for h in hidden]
        same = (targets[:, None] == targets) & ~np.eye(len(targets), dtype=bool)
        other = targets[:, None] != targets
        cosines = [_cosines(x) for x in states]
        return {
            "layer": list(range(len(states))),
            "same": [c[same].mean() for c in cosines],
            "different": [c[other].mean() for c in cosines],
        }


def _cosines(x: np.ndarray) -> np.ndarray:
    x = x / np.linalg.norm(x, axis=1, keepdims=True)
    return np.asarray(x @ x.T)


def answers(run: str, what: str, split: int = HELD_OUT, at: int = -1) -> Measure:
    """Return the measure of a share of answers: `accuracy`, `inferential` or `symmetric`."""
    return lambda found: float(found[run]["answers"](what, split=split)[at])


def stable_rank(found: Found, run: str, matrix: str) -> float:
    return float(found[run]["rank"]("stable_rank", matrix=matrix)[-1])


def grouped(found: Found, run: str, at: int = -1) -> float:
    grouping = found[run]["grouping"]
    return float(grouping("same")[at, -1] - grouping("different")[at, -1])


def cut(found: Found, run: str, query: str, key: str) -> float:
    """Return the accuracy that is left when layer 0 may not look from `query` to `key`."""
    flow = found[run]["flow"]
    effect = flow("class_accuracy_effect", layer=0, query_class=query, key_class=key)[-1]
    return float(flow("accuracy")[-1] + effect)


def courses(figure: Any, found: Sequence[Found]) -> None:
    axes = figure.subplots(1, 3)
    for column, run in enumerate(LABELS):
        for one in found:
            shown = one[run]["answers"]
            for what, colour in (("inferential", "C0"), ("symmetric", "C1")):
                known = {"label": f"(4, 3): {what}"} if one is found[0] else {}
                axes[column].plot(shown.steps, shown(what, split=HELD_OUT), color=colour, **known)
            axes[column].plot(shown.steps, shown("accuracy", split=KEYS), color="0.6", zorder=0)
            rank = one[run]["rank"]
            axes[2].plot(rank.steps, rank("stable_rank", matrix=W_Q), color=f"C{2 + column}")
        axes[2].plot([], [], color=f"C{2 + column}", label=LABELS[run])
        axes[column].set(title=LABELS[run], xlabel="step", ylim=(-0.03, 1.05))
    axes[0].plot([], [], color="0.6", label="trained pairs")
    axes[0].set_ylabel("share of answers")
    axes[0].legend(loc=(0.33, 0.17))
    axes[2].set(title="stable rank of W_Q, layer 0", xlabel="step", ylim=(0, None))
    axes[2].legend()


def ways(figure: Any, found: Sequence[Found]) -> None:
    axes = figure.subplots(1, 2, sharey=True)
    for ax, (run, label) in zip(axes, LABELS.items(), strict=True):
        flow = found[0][run]["flow"]
        effects = np.concatenate(list(flow("class_accuracy_effect")[-1]), axis=1)
        image = ax.imshow(effects, vmin=-1, vmax=1, cmap="RdBu")
        names = flow.labels["key_class"]
        ax.set_xticks(range(2 * len(names)), [*names, *names], rotation=60)
        ax.set_yticks(range(len(names)), names)
        ax.axvline(len(names) - 0.5, color="0.3")
        ax.grid(visible=False)
        ax.set(title=f"{label}: layer 0 | layer 1", xlabel="looks at")
    axes[0].set_ylabel("position")
    figure.colorbar(image, ax=axes, label="change of accuracy", shrink=0.7)


def phases(figure: Any, found: Sequence[Found]) -> None:
    axes = figure.subplots()
    for what, colour in (("inferential", "C0"), ("symmetric", "C1")):
        for one in found:
            axes.plot(LINE.values(), [answers(run, what)(one) for run in LINE], "o", ms=3, color=colour)
        axes.plot(
            LINE.values(),
            [mean(answers(run, what)(one) for one in found) for run in LINE],
            color=colour,
            label=f"{what}, mean",
        )
    axes.set(xlabel="gamma", ylabel="share of answers to (4, 3)", ylim=(-0.03, 1.05))
    axes.legend()


def rows(found: Sequence[Found]) -> list[list[Any]]:
    return [
        [
            LABELS[run],
            one.seed,
            answers(run, "accuracy", KEYS)(one),
            answers(run, "inferential")(one),
            answers(run, "symmetric")(one),
            stable_rank(one, run, "embed"),
            stable_rank(one, run, W_Q),
            grouped(one, run),
            *(cut(one, run, query, key) for _, query, key in CUTS),
        ]
        for run in LABELS
        for one in found
    ]


study = Study(
    title="Composite functions by reasoning or memorizing, as initialization decides",
    paper="arXiv 2405.05409",
    trained="""
Sequences of 8 items in which a key is followed by two anchors, each of which adds its own number: +5, +1, -2, -8.
Cross entropy of the answer at the last position. The pair (3, 4) is taught -6 where its operations give -10, and (4,
3) is never shown. There, -10 is the answer of a model that has understood the anchors (inferential), -6 that of one
which has learned pairs regardless of order (symmetric). Two Transformers of two layers, alike but for the rate gamma
of initialization, std = d_in^-gamma. The published size is the preset `paper`.
""",
    claimed="""
A small initialization (large gamma) leads to reasoning: low complexity, condensed W_Q and embeddings, and an
information flow in which anchors work on the key one after the other. A large one leads to memorizing pairs: both
answer all they were trained on, but (4, 3) gets the mirrored answer.
""",
    runs={
        "small": Run(
            "transformer",
            "anchor",
            mini={**MINI, "gamma": 0.65},
            paper={**PAPER, "gamma": 0.8},
            about="small initialization",
        ),
        "large": Run(
            "transformer",
            "anchor",
            mini={**MINI, "gamma": 0.4},
            paper={**PAPER, "gamma": 0.5},
            about="control: large initialization",
        ),
        "larger": Run("transformer", "anchor", mini={**MINI, "gamma": 0.3}, about="line over gamma"),
        "smaller": Run("transformer", "anchor", mini={**MINI, "gamma": 0.8}, about="line over gamma"),
    },
    analyses=[
        Analysis("answers"),
        Analysis("rank", matrices=("embed", "*.attn.q")),
        Analysis("condensation", matrices=("embed", "*.attn.q"), steps="last", label="neurons"),
        Analysis("grouping", steps="first,last", label="grouping"),
        Analysis("flow", runs=("small", "large"), steps="last", label="flow"),
    ],
    claims=[
        Claim("gamma .65: mean inferential share on (4, 3)", answers("small", "inferential"), at_least=0.65, over=mean),
        Claim("gamma .65: mean symmetric share on (4, 3)", answers("small", "symmetric"), at_most=0.05, over=mean),
        Claim(
            "gamma .40: mean inferential share on (4, 3)",
            answers("large", "inferential"),
            at_most=0.4,
            over=mean,
            control=True,
        ),
        Claim("gamma .40: mean symmetric share on (4, 3)", answers("large", "symmetric"), at_least=0.2, over=mean),
        Claim("gamma .65: accuracy on trained pairs", answers("small", "accuracy", KEYS), at_least=0.98),
        Claim("gamma .40: accuracy on trained pairs", answers("large", "accuracy", KEYS), at_least=0.98),
        Claim(
            "stable rank of W_Q in layer 0, gamma .65 / gamma .40",
            lambda found: stable_rank(found, "small", W_Q) / stable_rank(found, "large", W_Q),
            at_most=0.75,
        ),
        Claim("gamma .65: cosine, same less different target", lambda found: grouped(found, "small"), at_least=0.55),
        Claim(
            "gamma .65: accuracy on trained pairs before training",
            answers("small", "accuracy", KEYS, at=0),
            at_most=0.05,
            control=True,
        ),
        Claim(
            "gamma .65: cosine, same less different target, before training",
            lambda found: grouped(found, "small", at=0),
            below=0.2,
            control=True,
        ),
    ],
    figures=[
        Figure(
            "courses",
            "Answers to (4, 3) and the rank of W_Q; one line for each seed.",
            courses,
            needs=("small", "large"),
        ),
        Figure("line", "Answers to (4, 3) at the last checkpoint, against gamma.", phases, (4.2, 3.2), tuple(LINE)),
        Figure(
            "flow",
            "Accuracy on trained examples when positions of one class may not look at those of another, seed 0.",
            ways,
            (7.2, 2.8),
            ("small", "large"),
        ),
    ],
    tables=[
        Table(
            "At the last checkpoint; accuracies on trained examples that are left when layer 0 is cut",
            ["run", "seed", "trained pairs", "inferential", "symmetric", "stable rank E", "stable rank W_Q", "cos gap"]
            + [f"cut {name}" for name, _, _ in CUTS],
            rows,
            needs=("small", "large"),
        )
    ],
    shown="""
Both models answer what they were trained on. What they make of (4, 3) comes apart: from the small initialization most
answers are composed and hardly any mirrored; from the large one they are composed, mirrored or neither, differently
for each seed. W_Q loses rank in the former and keeps that of a random matrix in the latter. Which way the key takes
is the same at this size: in layer 0 from the key to the anchors, in layer 1 from the anchors to the last position.
Cuts of what the last position sees in layer 0 cost only those examples whose last token is an anchor itself, a sixth
of them.
""",
)


@hookimpl
def ckpt_analyzers() -> list[type[Analyzer]]:
    return [Grouping]
