"""Multi-stage loss dynamics (arXiv 2410.20119): plateau, descent, second plateau, and how fast amplitudes move."""

import numpy as np

from ckpt_tools.study import Analysis, Claim, Figure, Run, Study, Table, first

LAYER = "layers.0.linear"
SETTINGS = {"function": "sines", "hidden": (100,), "bias": True, "lr": 0.05, "save": "every:20"}
COLOURS = ("#0072B2", "#D55E00", "#009E73")


def loss(found, run):
    return found[run]["trajectory"]("loss")


def loss_speed(found, run):
    """How fast the logarithm of the loss falls between checkpoints, per step."""
    return -np.diff(np.log(loss(found, run))) / np.diff(found[run]["trajectory"].steps)


def amplitude_speed(found, run):
    """Wasserstein-1 distance between the amplitudes of successive checkpoints, per step."""
    return found[run]["drift"]("amplitude_speed", matrix=LAYER)[1:]


def descent(found, run="small"):
    """Indices of the checkpoints between which the `stages` analyzer saw the deepest descent, and where the stage
    before it began; None without a descent."""
    facts, steps = found[run]["stages"].summary, found[run]["stages"].steps.tolist()
    stages = zip(facts["loss_kind"], facts["loss_change"], strict=True)
    falls = [change if kind == "descent" else 0 for kind, change in stages]
    at = int(np.argmin(falls)) if falls and min(falls) < 0 else None
    if at is None:
        return None
    begin = facts["loss_start"][max(at - 1, 0)]
    return steps.index(begin), steps.index(facts["loss_start"][at]), steps.index(facts["loss_stop"][at])


def flat_then_fast(run):
    """Fastest fall of ln loss over its mean speed in the stage before the descent, or in its first interval."""

    def measure(found):
        speed, at = loss_speed(found, run), descent(found, run)
        return None if at is None else speed[at[1] : at[2]].max() / abs(speed[at[0] : max(at[1], at[0] + 1)].mean())

    return measure


def later(found):
    """Index of the checkpoint at six times the end of the descent."""
    steps, at = found["small"]["trajectory"].steps, descent(found)
    return None if at is None else first(steps >= 6 * steps[at[2]])


def movement(found):
    """Speed of amplitudes in the descent over that in the second plateau, up to six times the descent's end."""
    speed, at, end = amplitude_speed(found, "small"), descent(found), later(found)
    return None if at is None or end is None else speed[at[1] : at[2]].mean() / speed[at[2] : end].mean()


def movement_first(found):
    """The same over the first plateau."""
    speed, at = amplitude_speed(found, "small"), descent(found)
    return speed[at[1] : at[2]].mean() / speed[at[0] : at[1]].mean()


def depth(found):
    """Loss at the end of the descent over the first loss."""
    at = descent(found)
    return None if at is None else loss(found, "small")[at[2]] / loss(found, "small")[0]


def stillness(found):
    """Loss at six times the end of the descent over the loss at its end."""
    at, end = descent(found), later(found)
    return None if at is None or end is None else loss(found, "small")[end] / loss(found, "small")[at[2]]


def draw(figure, found):
    above, below = figure.subplots(2, 1, sharex=True)
    for one, colour in zip(found, COLOURS * len(found), strict=False):
        steps = one["small"]["trajectory"].steps
        above.plot(steps, loss(one, "small"), color=colour, label=f"seed {one.seed}")
        below.plot(steps[1:], amplitude_speed(one, "small"), color=colour)
        if at := descent(one):
            above.axvspan(steps[at[1]], steps[at[2]], color=colour, alpha=0.1, lw=0)
            below.axvspan(steps[at[1]], steps[at[2]], color=colour, alpha=0.1, lw=0)
    above.plot(found[0]["large"]["trajectory"].steps, loss(found[0], "large"), "k:", label="control, large weights")
    above.set(ylabel="loss", yscale="log")
    below.set(xlabel="step", ylabel="speed of amplitudes", yscale="log", xscale="log", xlim=(20, None))
    above.legend(loc="lower left")


def stage_rows(found):
    for one in found:
        facts = one["small"]["stages"].summary
        columns = (facts[f"loss_{name}"] for name in ("kind", "start", "stop", "change", "margin"))
        for row in zip(*columns, strict=True):
            yield [one.seed, *row]


study = Study(
    title="Plateau, descent, second plateau: the stages of the loss",
    paper="arXiv 2410.20119, *On multi-stage loss dynamics in neural networks*",
    trained="""
A network 1-100-1 with tanh and biases learns sin x + sin 2x at 60 points of [-pi, pi] from weights of standard
deviation 1/100, by gradient descent on half the mean square, and a checkpoint is kept every 20 steps. The stages are
those that the `stages` analyzer finds in the loss, with all that is faster than the loss's mean speed as moving;
nobody tells it where they are. Within the first 120 steps the network learns the straight line through the data, 7 %
of the loss; "the descent" is the deep one behind the plateau that follows. Negative control: weights of standard
deviation 0.3.
""",
    claimed="""
From small weights the loss first stands still (initial plateau), then falls steeply (initial descent), then stands
still again (second plateau). The amplitudes of the neurons, sqrt(|a| |w|), move in the descent: the Wasserstein-1
distance between their distributions at successive checkpoints is large there and small in the second plateau.
""",
    runs={
        "small": Run("mlp", "regression", {**SETTINGS, "std": 0.01}, mini={"steps": 12000}),
        "large": Run(
            "mlp", "regression", {**SETTINGS, "std": 0.3}, mini={"steps": 4000}, about="control: large weights"
        ),
    },
    analyses=[Analysis("stages", {"run": "{run}", "pace": 1.0}), Analysis("drift", {"turning": False})],
    claims=[
        Claim("fastest fall of ln loss over its speed in the first plateau", flat_then_fast("small"), above=50),
        Claim("speed of amplitudes in the descent over that in the second plateau", movement, above=8),
        Claim("loss at the end t of the descent over the first loss", depth, below=0.15),
        Claim("loss at 6 t over the loss at t", stillness, above=0.4),
        Claim(
            "from large weights: fastest fall over speed at the start", flat_then_fast("large"), below=5, control=True
        ),
    ],
    figures=[Figure("stages", "Loss, and speed of amplitudes; shaded: the descent.", draw, size=(7.2, 4.6))],
    tables=[
        Table("Stages found", ["seed", "stage", "first step", "last step", "change of ln loss", "margin"], stage_rows),
        Table(
            "Amplitudes in the first plateau",
            ["seed", "speed in the descent over that in the first plateau"],
            lambda found: [[one.seed, float(movement_first(one))] for one in found],
        ),
    ],
    shown="""
The loss stands, falls, and stands again, and the amplitudes are fast in the descent only, compared with the plateau
behind it. They do not separate the first plateau as clearly, since amplitudes already grow while the loss stands: the
second table has those numbers.

Where a stage ends is a matter of the critical speed. Between once and twice the mean speed all claims hold; at half
of it the slow end of the descent counts as descent, so that 6 t lies behind the end of the run for seed 2; at three
times, some of what is learned first counts as plateau, and the fastest fall is only 37 to 76 times its speed.
""",
)
