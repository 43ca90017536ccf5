"""Initial condensation in three-layer networks (arXiv 2402.15958): alignment, blow-up in finite time, low-rank bias."""

import numpy as np

from ckpt_tools import Analyzer, Out, hookimpl, singular_values, to_numpy
from ckpt_tools.study import Analysis, Claim, Figure, Run, Study, first

PLATEAU, ESCAPED = 0.999, 0.95  # shares of the first loss
NETS = ("three", "two")
BLUE, RED = "#0072B2", "#D55E00"


class Escape(Analyzer):
    """How the network leaves the origin: along v = z / |z|, z = mean(y x), the loss falls as |z| E, E = a W2 W1 v."""

    name = "escape"
    needs = "forward"
    outputs = {
        "force": Out((), "1", "|z|, the length of mean(y x)"),
        "output": Out((), "1", "E: what the product of all weight matrices makes of v"),
        "alignment": Out((), "1", "Mean |cos| of first-layer neurons to v"),
    }

    def analyze(self, view):
        batch, weights = view.batch(), list(view.matrices().values())
        z = to_numpy((batch["targets"] * batch["inputs"]).mean(0))
        v = z / np.linalg.norm(z)
        moved = v
        for weight in weights:
            moved = weight @ moved
        cosines = weights[0] @ v / np.linalg.norm(weights[0], axis=1)
        return {"force": np.linalg.norm(z), "output": moved.item(), "alignment": abs(cosines).mean()}


class Product(Analyzer):
    """Singular values of the product of all layers, the matrix that a linear network stands for."""

    name = "product"
    outputs = {"value": Out(("index",), "1", "Largest singular values of the product")}

    def analyze(self, view):
        first_layer, *others = view.matrices().values()
        product = first_layer
        for weight in others:
            product = weight @ product
        return {"value": singular_values(product).values[:4]}


@hookimpl
def ckpt_analyzers():
    return [Escape, Product]


def loss(found, run):
    """Loss over its first value."""
    values = found[run]["trajectory"]("loss")
    return values / values[0]


def escape(found, run):
    return first(loss(found, run) <= ESCAPED)


def aligned(run, at):
    def measure(found):
        step = 0 if at == "start" else escape(found, run)
        return None if step is None else found[run]["escape"]("alignment")[step]

    return measure


def window(found, run):
    """Checkpoints of the law: the second half of the plateau, where what grows has outgrown the initial weights."""
    end = first(loss(found, run) <= PLATEAU)
    return None if end is None or end < 6 else slice(end // 2, end)


def line(found, run, curve=lambda output: output ** (-1 / 3)):
    """Return steps, a curve of E, slope and offset of the straight line through it, and R^2; None without a plateau."""
    chosen = window(found, run)
    if chosen is None:
        return None
    measures = found[run]["escape"]
    steps, values = measures.steps[chosen], curve(np.abs(measures("output")[chosen]))
    slope, offset = np.polyfit(steps, values, 1)
    rest = ((values - slope * steps - offset) ** 2).sum()
    return steps, values, slope, 1 - rest / ((values - values.mean()) ** 2).sum()


def slope_error(run):
    """Relative difference between the slope of E^(-1/3) and -lr |z|."""

    def measure(found):
        fitted = line(found, run)
        predicted = -found[run].settings["lr"] * found[run]["escape"]("force")[0]
        return None if fitted is None else abs(fitted[2] / predicted - 1)

    return measure


def r_squared(found):
    fitted = line(found, "three")
    return None if fitted is None else fitted[3]


def straighter(run):
    """R^2 of the line through E^(-1/3) (blow-up) less that of the line through ln E (exponential growth)."""

    def measure(found):
        root, log = line(found, run), line(found, run, np.log)
        return None if root is None else root[3] - log[3]

    return measure


def plateau_share(found):
    """Step at which the plateau ends, over the step of the escape."""
    steps, left = found["three"]["trajectory"].steps, first(loss(found, "three") <= PLATEAU)
    out = escape(found, "three")
    return None if left is None or out is None else steps[left] / steps[out]


def learned(found, run):
    """Singular values of the product over those of the target, [step, 3]."""
    return found[run]["product"]("value")[:, :3] / np.array(found[run].settings["spectrum"])


def early(run, direction):
    """How far the next direction has come when this one has come to 0.9."""

    def measure(found):
        shares = learned(found, run)
        at = first(shares[:, direction] >= 0.9)
        return None if at is None else shares[at, direction + 1]

    return measure


def draw_escape(figure, found):
    left, middle, right = figure.subplots(1, 3)
    for one in found:
        for run, colour in (("three", BLUE), ("two", RED)):
            label = f"{run} layers" if one is found[0] else None
            steps = one[run]["escape"].steps
            left.plot(steps, loss(one, run), color=colour, label=label)
            middle.plot(steps, one[run]["escape"]("alignment"), color=colour, label=label)
        fitted = line(one, "three")
        if fitted is not None:
            steps, root = fitted[:2]
            force = one["three"].settings["lr"] * one["three"]["escape"]("force")[0]
            labels = ("measured", "slope -lr |z|") if one is found[0] else (None, None)
            right.plot(steps, root, color=BLUE, label=labels[0])
            right.plot(steps, root[-1] - force * (steps - steps[-1]), "k--", lw=1, label=labels[1])
    left.set(xlabel="step", ylabel="loss / first loss", ylim=(0, 1.05))
    middle.set(xlabel="step", ylabel="mean |cos| of neurons to v", ylim=(0, 1.02))
    right.set(xlabel="step", ylabel="$E^{-1/3}$, three layers")
    left.legend(loc="center left", bbox_to_anchor=(0.05, 0.4))
    middle.legend()
    right.legend()


def draw_directions(figure, found):
    for axes, run, title in zip(figure.subplots(1, 2), ("deep", "flat"), ("three factors", "one matrix"), strict=True):
        for k, colour in enumerate((BLUE, RED, "#009E73")):
            for one in found:
                label = f"direction {k + 1}" if one is found[0] else None
                axes.plot(one[run]["product"].steps, learned(one, run)[:, k], color=colour, label=label)
        axes.set(xlabel="step", ylabel="singular value / target", title=title, xlim=(0, 300))
        axes.legend()


MATRIX = {"spectrum": (4.0, 2.0, 1.0), "lr": 0.05, "save": "every:10"}

study = Study(
    title="Three-layer networks: initial condensation and escape in finite time",
    paper="arXiv 2402.15958, *On the dynamics of three-layer neural networks: initial condensation*",
    trained="""
A network 5-50-50-1 with tanh learns y = tanh(2 x.w) + sin(2 x_1)/2 at 100 Gaussian points from weights of standard
deviation 0.001, by gradient descent on half the mean square. Negative control: the same with one hidden layer. For
the relation to low-rank bias, a product of three 20 x 20 matrices learns a matrix with singular values 4, 2 and 1;
its control is a single matrix.
""",
    claimed="""
Near the origin the network is linear, and descends -|z| a W2 W1 v with z = mean(y x) and v = z/|z|. All first-layer
neurons turn to v while the loss has hardly moved. With balanced layers E = a W2 W1 v obeys dE/dt = 3 |z| E^(4/3), so
E^(-1/3) falls along a straight line of slope -|z| per unit of time (-lr |z| per step) and E blows up in finite time,
as (t* - t)^-3: a long plateau and a sudden escape. With two layers E grows exponentially, and there is no such law.
The same mechanism makes deep factorizations learn one direction after the other.
""",
    runs={
        "three": Run(
            "mlp",
            "regression",
            {"function": "teacher", "std": 1e-3, "lr": 0.1, "save": "every:10"},
            mini={"hidden": (50, 50), "steps": 3500},
            about="three layers",
        ),
        "two": Run(
            "mlp",
            "regression",
            {"function": "teacher", "std": 1e-3, "lr": 0.1, "save": "every:1"},
            mini={"hidden": (50,), "steps": 400},
            about="control: two layers",
        ),
        "deep": Run(
            "mlp", "matrix", MATRIX, mini={"hidden": (20, 20), "std": 0.03, "steps": 1000}, about="three factors"
        ),
        "flat": Run(
            "mlp", "matrix", MATRIX, mini={"hidden": (), "std": 0.03, "steps": 1000}, about="control: one matrix"
        ),
    },
    analyses=[
        Analysis("escape", runs=NETS),
        Analysis("product", runs=("deep", "flat")),
        Analysis("condensation", runs=NETS),
    ],
    claims=[
        Claim("at 0.95 of the first loss, mean |cos| of first-layer neurons to v", aligned("three", "end"), above=0.95),
        Claim("the same at the start", aligned("three", "start"), below=0.5, control=True),
        Claim("slope of E^(-1/3) differs from -lr |z| by, relatively", slope_error("three"), at_most=0.05),
        Claim("R^2 of the straight line through E^(-1/3)", r_squared, above=0.99),
        Claim("end of the plateau (0.999 of the loss) over step of the escape (0.95)", plateau_share, above=0.8),
        Claim("two layers: slope differs by more than 5 %", slope_error("two"), above=0.05, control=True),
        Claim("R^2 of that line less R^2 of one through ln E", straighter("three"), above=0.0),
        Claim("two layers: the same, as ln E is straighter", straighter("two"), below=0.0, control=True),
        Claim("deep product: second direction when the first is learned", early("deep", 0), at_most=0.1),
        Claim("deep product: third direction when the second is learned", early("deep", 1), at_most=0.1),
        Claim(
            "single matrix: second direction when the first is learned", early("flat", 0), at_least=0.5, control=True
        ),
    ],
    figures=[
        Figure("escape", "Loss, alignment and E^(-1/3); one line for each seed.", draw_escape, size=(9.6, 3.0)),
        Figure("directions", "Singular values of the product, relative to the target's.", draw_directions),
    ],
    shown="""
The three-layer loss stands still for most of the time that it takes to escape, while the neurons turn to v:
condensation comes before learning. E^(-1/3) follows the straight line, with no parameter fitted but its position. The
two-layer network leaves gradually, and its E grows exponentially. The product of three matrices learns its directions
one after the other, the single matrix all at once. Lines are those of all seeds.
""",
)
