"""Condensation at initial training (arXiv 2105.11686): neurons of a small-weight network gather on a line or two."""

import numpy as np

from ckpt_tools import Analyzer, Out, hookimpl
from ckpt_tools.study import Analysis, Claim, Figure, Run, Study, Table

LAYER = {"matrix": "layers.0.linear", "side": "input"}
SETTINGS = {
    "function": "waves",
    "hidden": (50,),
    "bias": True,
    "optimizer": "adamw",
    "lr": 1e-3,
    "squares": "mean",
    "steps": 100,
    "save": "every:1",
}
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7")


class Neurons(Analyzer):
    """The neurons of the first layer themselves: input weights and bias, for heat maps."""

    name = "neurons"
    outputs = {"vector": Out(("neuron", "part"), "1", "Input weights and bias")}

    def analyze(self, view):
        name = view.matrix_names()[0]
        return {"vector": np.column_stack([view.matrices()[name], view.bias(name)])}


@hookimpl
def ckpt_analyzers():
    return [Neurons]


def cosine(run, step):
    return lambda found: found[run]["condensation"]("mean_abs_cos", **LAYER)[step]


def best(found):
    """Epoch from 50 to 100 at which the neurons are most parallel."""
    return 50 + int(found["small"]["condensation"]("mean_abs_cos", **LAYER)[50:].argmax())


def lines(found):
    return float(found["small"]["condensation"]("clusters", **LAYER)[best(found)])


def course_rows(found):
    for one in found:
        values = one["small"]["condensation"]("mean_abs_cos", **LAYER)
        yield [one.seed, *(float(values[epoch]) for epoch in (0, 25, 50, 75, 100)), best(one)]


def draw_course(figure, found):
    left, right = figure.subplots(1, 2)
    for one, colour in zip(found, COLOURS * len(found), strict=False):
        for run, style in (("small", "-"), ("large", ":")):
            measures = one[run]["condensation"]
            label = f"seed {one.seed}{', control' if run == 'large' else ''}"
            left.plot(measures.steps, measures("mean_abs_cos", **LAYER), style, color=colour, label=label)
            right.plot(measures.steps, measures("clusters", **LAYER), style, color=colour)
    left.set(xlabel="epoch", ylabel="mean |cos| of neurons", ylim=(0, 1.02))
    right.set(xlabel="epoch", ylabel="number of directions", yscale="log")
    left.legend()


def draw_heat(figure, found):
    """Cosines between neurons of the first seed, in the order of the cosine matrix's top eigenvector."""
    shown = (("small", 0), ("small", 50), ("large", 50))
    titles = ("before training", "after 50 epochs", "control, after 50 epochs")
    grid = figure.subplots(1, 3)
    for axes, (run, step), title in zip(grid, shown, titles, strict=True):
        image = axes.imshow(cosines(found[0], run, step), vmin=-1, vmax=1, cmap="PuOr", interpolation="nearest")
        axes.set(title=title, xticks=[], yticks=[])
        axes.grid(False)
    figure.colorbar(image, ax=grid, label="cosine", shrink=0.8)


def cosines(found, run, step):
    measures = found[run]["neurons"]
    vectors = measures("vector")[measures.steps.tolist().index(step)]
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    order = found[run]["condensation"]("order", **LAYER)[step]
    unit = unit[order[order >= 0]]
    return unit @ unit.T


study = Study(
    title="Condensation at initial training",
    paper="arXiv 2105.11686, *Towards understanding the condensation of neural networks at initial training*",
    trained="""
A network 5-50-1 with tanh and biases learns the sum of 3.5 sin(5 x_k + 1) at 80 points of [-4, 2]^5, by Adam on all
points at once for 100 epochs, from weights of standard deviation 0.005. This is the published setting, so both
presets are the same. Negative control: weights of standard deviation 0.3.
""",
    claimed="""
Small weights make the neurons of the hidden layer gather on very few directions long before the loss is learned; with
tanh, whose multiplicity at 0 is 1, on at most 2. Neurons of larger weights keep their directions. A neuron is the
vector of its input weights and its bias; Gaussian vectors of 6 numbers start at a mean |cos| of 0.34. Directions that
differ by their sign alone are counted as one.
""",
    runs={
        "small": Run("mlp", "regression", SETTINGS, mini={"std": 0.005}, paper={"std": 0.005}),
        "large": Run("mlp", "regression", SETTINGS, mini={"std": 0.3}, paper={"std": 0.3}, about="control"),
    },
    analyses=[Analysis("condensation", {"order_max": 50}), Analysis("neurons", steps="at:0,50", label="neurons")],
    claims=[
        Claim("mean |cos| of neurons before training", cosine("small", 0), below=0.4),
        Claim(
            "largest mean |cos| of neurons between epochs 50 and 100",
            lambda found: cosine("small", best(found))(found),
            at_least=0.985,
        ),
        Claim("directions at that epoch", lines, at_most=2),
        Claim("mean |cos| from large weights after 100 epochs", cosine("large", -1), below=0.4, control=True),
    ],
    figures=[
        Figure("course", "Mean |cos| and number of directions; dotted: control.", draw_course),
        Figure("heat", "Cosines between the 50 neurons of the first seed.", draw_heat, size=(8.4, 3.0)),
    ],
    tables=[
        Table(
            "Course of mean |cos|", ["seed", *(f"epoch {k}" for k in (0, 25, 50, 75, 100)), "largest at"], course_rows
        )
    ],
    shown="""
Within 50 epochs the neurons turn to one common line; the heat map has two blocks, the two signs of one direction.
They may leave it again before epoch 100, where the loss begins to fall: the table says how far. In the control
nothing of the kind happens in the same time.
""",
)
