"""A study of a second: does the loss of a small chain fall, and does it stay when nothing is learned?"""

from statistics import mean

from ckpt_tools import Analyzer, Out, hookimpl
from ckpt_tools.study import Analysis, Claim, Figure, Run, Study, Table, first


class Largest(Analyzer):
    """Largest entry of every matrix."""

    name = "largest"
    outputs = {"largest": Out(("matrix",), "1", "Largest absolute entry")}

    def analyze(self, view):
        return {"matrix": view.matrix_names(), "largest": [abs(m).max() for m in view.matrices().values()]}


@hookimpl
def ckpt_analyzers():
    return [Largest]


def fall(found):
    loss = found["learns"]["trajectory"]("loss")
    return loss[0] - loss[-1]


def growth(found):
    largest = found["learns"]["largest"]("largest", matrix="embed")
    return largest[-1] / largest[0]


def never(found):
    at = first(found["learns"]["largest"]("largest", matrix="embed") > 1e9)
    return None if at is None else float(at)


def draw(figure, found):
    axes = figure.subplots()
    for one in found:
        axes.plot(one["learns"]["trajectory"].steps, one["learns"]["trajectory"]("loss"), label=f"seed {one.seed}")


study = Study(
    title="A chain in a second",
    paper="none",
    trained="One attention layer on a Markov chain.",
    claimed="Training lowers the loss.",
    runs={
        "learns": Run("transformer", "markov", {"std": 0.1, "save": "every:10"}, mini={"steps": 20}),
        "still": Run("transformer", "markov", {"std": 0.1, "lr": 0.0, "save": "every:10"}, mini={"steps": 20}),
        "text": Run("gpt", "text", {"steps": 2}, data="book"),
    },
    analyses=[
        Analysis("largest"),
        Analysis("rank", runs=("learns",), steps="first", label="start"),
        Analysis("stages", {"run": "{run}"}, runs=("learns",)),
    ],
    claims=[
        Claim("the loss falls", fall, above=0.0),
        Claim("the embedding grows tenfold", growth, at_least=10.0),
        Claim("mean fall", fall, at_least=0.001, over=mean),
        Claim("never seen", never, above=0.0),
        Claim("rank at the start", lambda f: f["learns"]["start"]("effective_rank", matrix="embed")[0], above=1.0),
        Claim("the text is learned", lambda f: f["text"]["trajectory"]("loss")[-1], below=1.0),
        Claim(
            "without a learning rate the loss stays",
            lambda f: abs(f["still"]["trajectory"]("loss")[-1] - f["still"]["trajectory"]("loss")[0]),
            at_most=0.0,
            control=True,
        ),
    ],
    figures=[Figure("loss", "The loss falls.", draw, needs=("learns",))],
    tables=[Table("Falls", ["seed", "fall"], lambda found: [(f.seed, fall(f)) for f in found], needs=("learns",))],
    shown="The loss falls.",
)
