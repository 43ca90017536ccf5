"""Reasoning bias of small initialization (arXiv 2502.04375): sums are learned before random labels."""

from collections.abc import Mapping, Sequence
from statistics import mean
from typing import Any, ClassVar

import numpy as np

from ckpt_tools import Analyzer, Out, View, hookimpl
from ckpt_tools.study import Analysis, Claim, Figure, Found, Run, Study, Table

MEMORY, REASONING, HELD_OUT = range(3)
ANCHORS = 10
MINI = {"preset": "mini", "save": "every:30", "probes": 3000}
LABELS = {"small": "gamma .8", "large": "gamma .3"}


class Anchors(Analyzer):
    """Mean cosine between the embeddings of anchors of one kind, for the tokens of task `memory_reasoning`."""

    name = "anchors"
    outputs: ClassVar[Mapping[str, Out]] = {
        "memory_cos": Out((), "1", "Mean cosine between memory anchors"),
        "reasoning_cos": Out((), "1", "Mean cosine between reasoning anchors"),
        "cosines": Out(("anchor", "other"), "1", "Cosine of each pair of anchors"),
    }

    def analyze(self, view: View) -> Mapping[str, Any]:
        """Return the cosines of anchors 1 to 20."""
        rows = view.matrices()["embed"][1 : 2 * ANCHORS + 1].astype(np.float64)
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        cosines = rows @ rows.T
        kinds = {"memory_cos": cosines[:ANCHORS, :ANCHORS], "reasoning_cos": cosines[ANCHORS:, ANCHORS:]}
        labels = list(range(1, 2 * ANCHORS + 1))
        means = {name: (block.sum() - ANCHORS) / (ANCHORS * (ANCHORS - 1)) for name, block in kinds.items()}
        return {"anchor": labels, "other": labels, "cosines": cosines, **means}


def bias(found: Found, run: str) -> np.ndarray:
    """Return Delta L = (L_memory - L_reasoning) / L_reasoning of every checkpoint."""
    loss = found[run]["answers"]
    memory, reasoning = loss("loss", split=MEMORY), loss("loss", split=REASONING)
    return np.asarray((memory - reasoning) / reasoning)


def held_out(found: Found, run: str) -> float:
    return float(found[run]["answers"]("accuracy", split=HELD_OUT)[-1])


def cosine(found: Found, run: str, kind: str) -> float:
    return float(found[run]["anchors"](f"{kind}_cos")[-1])


def gap(found: Found, run: str) -> float:
    return cosine(found, run, "memory") - cosine(found, run, "reasoning")


def courses(figure: Any, found: Sequence[Found]) -> None:
    axes = figure.subplots(1, 3)
    for column, run in enumerate(LABELS):
        for one in found:
            answers = one[run]["answers"]
            for split, colour, label in ((MEMORY, "C1", "random labels"), (REASONING, "C0", "sums")):
                known = {"label": label} if one is found[0] else {}
                axes[column].plot(answers.steps, answers("loss", split=split), color=colour, **known)
            axes[2].plot(answers.steps, bias(one, run), color=f"C{2 + column}")
        axes[column].set(title=LABELS[run], xlabel="step", ylabel="loss (nat)", ylim=(0, 7))
        axes[2].plot([], [], color=f"C{2 + column}", label=LABELS[run])
    axes[0].legend()
    axes[2].set(title="bias towards sums", xlabel="step", ylabel="Delta L")
    axes[2].legend()


def maps(figure: Any, found: Sequence[Found]) -> None:
    axes = figure.subplots(1, 2)
    for ax, run in zip(axes, LABELS, strict=True):
        image = ax.imshow(
            found[0][run]["anchors"]("cosines")[-1], vmin=-1, vmax=1, cmap="RdBu_r", extent=(1, 21, 21, 1)
        )
        ax.axhline(11, color="0.3", lw=0.8)
        ax.axvline(11, color="0.3", lw=0.8)
        ax.set_xticks([1.5, 10.5, 11.5, 20.5], [1, 10, 11, 20])
        ax.set_yticks([1.5, 10.5, 11.5, 20.5], [1, 10, 11, 20])
        ax.set(title=LABELS[run], xlabel="anchor", ylabel="anchor")
        ax.grid(visible=False)
    figure.colorbar(image, ax=axes, label="cosine")


def rows(found: Sequence[Found]) -> list[list[Any]]:
    return [
        [LABELS[run], one.seed, float(bias(one, run)[-1]), held_out(one, run)]
        + [cosine(one, run, kind) for kind in ("memory", "reasoning")]
        for run in LABELS
        for one in found
    ]


study = Study(
    title="Reasoning bias of small initialization",
    paper="arXiv 2502.04375",
    trained="""
Triples (z, a, b) of a key and two anchors. Anchors 1 to 10 are for memory: the answer is a label drawn at random for
the key and the pair. Anchors 11 to 20 are for reasoning: the answer is z + a + b. The pair (11, 13) is trained in
neither order. The model is tanh(sum of embeddings W1) W2, width 200, started from N(0, d_in^(-2 gamma)), the same
data and number of updates for both rates.
""",
    claimed="""
From a small initialization the model learns the sums long before the labels: Delta L, the gap of the two losses
relative to that of reasoning, is larger. The reason shows in the embedding. What a memory anchor is followed by is
the same for all of them, anything, so that their embeddings grow along one direction; reasoning anchors shift the
distribution of answers each by its own value, and come apart. A model in which anchors have values also answers a
pair it never saw.
""",
    runs={
        "small": Run("emb_mlp", "memory_reasoning", {**MINI, "gamma": 0.8}, about="small initialization"),
        "large": Run("emb_mlp", "memory_reasoning", {**MINI, "gamma": 0.3}, about="control: large initialization"),
    },
    analyses=[Analysis("answers"), Analysis("anchors"), Analysis("condensation", matrices=("embed",), steps="last")],
    claims=[
        Claim("gamma .8: cosine among memory anchors", lambda f: cosine(f, "small", "memory"), at_least=0.85),
        Claim("gamma .8: that cosine less the one among reasoning anchors", lambda f: gap(f, "small"), at_least=0.25),
        Claim("Delta L, gamma .8 / gamma .3", lambda f: bias(f, "small")[-1] / bias(f, "large")[-1], at_least=1.4),
        Claim(
            "held-out accuracy, gamma .8 - gamma .3",
            lambda f: held_out(f, "small") - held_out(f, "large"),
            at_least=0.3,
        ),
        Claim(
            "gamma .3: cosine among memory anchors", lambda f: cosine(f, "large", "memory"), below=0.85, control=True
        ),
        Claim(
            "gamma .8: mean Delta L before training",
            lambda f: abs(bias(f, "small")[0]),
            below=0.05,
            over=mean,
            control=True,
        ),
    ],
    figures=[
        Figure("courses", "Losses of the two kinds of triples, and Delta L; one line for each seed.", courses),
        Figure(
            "anchors", "Cosines between the embeddings of anchors at the last checkpoint, seed 0.", maps, (7.2, 3.4)
        ),
    ],
    tables=[
        Table(
            "At the last checkpoint",
            ["run", "seed", "Delta L", "held-out accuracy", "cosine, memory", "cosine, reasoning"],
            rows,
        )
    ],
    shown="""
Both models lower the loss of sums first, but the one from the large initialization goes on to learn the labels by
heart at nearly the same pace, while the one from the small initialization leaves them at the entropy of a guess, ln
100 = 4.6, as long as there are sums to learn. In the map of cosines its memory anchors are one block; its reasoning
anchors are graded by value.
""",
)


@hookimpl
def ckpt_analyzers() -> list[type[Analyzer]]:
    return [Anchors]
