"""Focus and dilution (arXiv 2605.01199): embeddings condense, attention focuses, then lets go, then a new cycle."""

import numpy as np

from ckpt_tools import Analyzer, Out, hookimpl, to_numpy
from ckpt_tools.study import Analysis, Claim, Figure, Run, Study, Table, first

PI = (0.75, 0.19, 0.05, 0.01)
QUERY, KEY = "layers.0.attn.q", "layers.0.attn.k"
TEXT = {
    "layers": 1,
    "heads": 1,
    "d_model": 32,
    "d_ff": 0,
    "scaled": False,
    "use_v": False,
    "use_o": False,
    "residual": False,
    "norm": "none",
    "positions": "none",
    "std": 1e-4,
    "optimizer": "sgd",
    "lr": 2.0,
    "lr_schedule": "constant",
    "warmup": 0,
    "weight_decay": 0.0,
    "clip": 0.0,
    "batch": 32,
    "length": 32,
    "steps": 1000,
    "save": "every:20",
}
TEXTS = ("stories", "wiki")
BLUE, RED, GREEN, PINK = "#0072B2", "#D55E00", "#009E73", "#CC79A7"


class Frequency(Analyzer):
    """How the top left-singular vector of the embedding, one number per token, lies to the tokens' frequencies."""

    name = "frequency"
    needs = "forward"
    outputs = {
        "cos": Out((), "1", "|cos| between u1 of the embedding and the frequencies of tokens"),
        "entropy": Out((), "nat", "Entropy of the frequencies"),
    }

    def analyze(self, view):
        batch, embed = view.batch(), view.matrices()["embed"]
        if "key_log_weight" in batch:
            share = to_numpy(batch["key_log_weight"].double().exp())
        else:
            share = np.bincount(to_numpy(batch["tokens"].flatten()), minlength=len(embed)).astype(float)
        share = share / share.sum()
        top = np.linalg.svd(embed, full_matrices=False)[0][:, 0]
        entropy = -(share[share > 0] * np.log(share[share > 0])).sum()
        return {"cos": abs(top @ share) / np.linalg.norm(share), "entropy": entropy}


@hookimpl
def ckpt_analyzers():
    return [Frequency]


def rank(found, run, matrix):
    return found[run]["rank"]("effective_rank", matrix=matrix)


def mass(found, run, query):
    """Attention of a query token on token 0."""
    return found[run]["attention"]("mass", layer=0, head=0, query_token=query, key_token=0)


def spread(found, run):
    """Entropy of token 1's attention over that of the frequencies."""
    entropy = found[run]["attention"]("query_entropy", layer=0, head=0, query_token=1)
    return entropy / found[run]["frequency"]("entropy")


def condensed(found, run="chain"):
    """Checkpoint at which the loss has come within a tenth of the way from ln 4 down to the entropy of pi."""
    entropy = found[run]["frequency"]("entropy")[0]
    return first(found[run]["trajectory"]("loss") <= entropy + 0.1 * (np.log(4) - entropy))


def focused(found):
    """Checkpoint behind it at which token 1 attends most to token 0, before its attention falls below pi_0 - 0.03."""
    begin, values = condensed(found), mass(found, "chain", 1)
    if begin is None:
        return None
    end = first(values <= PI[0] - 0.03, after=begin)
    return begin + int(values[begin:end].argmax())


def second(found):
    """Checkpoint behind the focus at which the embedding has a second direction: effective rank above 1.8."""
    begin = focused(found)
    return None if begin is None else first(rank(found, "chain", "embed") > 1.8, after=begin)


def diluted(found):
    """Checkpoint between focus and second direction at which token 1's attention has the largest entropy."""
    begin, end = focused(found), second(found)
    return None if begin is None else begin + int(spread(found, "chain")[begin:end].argmax())


def at(stage, curve):
    """Claim function: a curve of the results at the checkpoint of a stage."""

    def measure(found):
        place = stage(found)
        return None if place is None else curve(found)[place]

    return measure


def moved(run, matrix):
    return lambda found: abs(found[run]["drift"]("norm_change", matrix=matrix))


def both(*curves):
    """Return the larger of several curves, for claims about W_Q and W_K or W0 and W1 at once."""
    return lambda found: np.maximum.reduce([curve(found) for curve in curves])


def ranks(*matrices):
    return both(*(lambda found, m=m: rank(found, "chain", m) for m in matrices))


def kept(found):
    values = rank(found, "chain", QUERY)
    return values / values[0]


def new_direction(found):
    """Largest effective rank of the embedding behind the focus."""
    begin = focused(found)
    return None if begin is None else rank(found, "chain", "embed")[begin:].max()


def drop(found):
    """Loss where the second direction is there less the loss at the dilution."""
    before, after, loss = diluted(found), second(found), found["chain"]["trajectory"]("loss")
    return None if before is None or after is None else loss[after] - loss[before]


def control_rank(found):
    begin = condensed(found, "control")
    return None if begin is None else rank(found, "control", "embed")[begin:].max()


def adam_moved(found):
    begin = condensed(found, "adam")
    return None if begin is None else found["adam"]["drift"]("distance", matrix=QUERY)[begin]


def draw_stages(figure, found):
    """The first seed: what grows, what it attends to, and where the stages are."""
    one = found[0]
    steps = one["chain"]["rank"].steps
    top, middle, bottom = figure.subplots(3, 1, sharex=True, height_ratios=[1, 2, 2])
    top.plot(steps, one["chain"]["trajectory"]("loss"), color="black")
    top.set(ylabel="loss (nats)", xscale="log", xlim=(steps[1], steps[-1]))
    shown = {"W0": ("embed", BLUE), "W1": ("unembed", GREEN), "W_Q": (QUERY, RED), "W_K": (KEY, PINK)}
    for label, (matrix, colour) in shown.items():
        middle.plot(steps, rank(one, "chain", matrix), color=colour, label=label)
    middle.set(ylabel="effective rank", yscale="log")
    for query, colour in enumerate((BLUE, RED, GREEN, PINK)):
        bottom.plot(steps, mass(one, "chain", query), color=colour, label=f"of token {query}")
    bottom.axhline(PI[0], color="black", lw=0.8, ls=":")
    bottom.set(ylabel="attention on token 0", xlabel="step", ylim=(0, 1.02))
    for stage, name in ((condensed, "I"), (focused, "II"), (diluted, "III"), (second, "IV")):
        if (place := stage(one)) is not None:
            for axes in (top, middle, bottom):
                axes.axvline(steps[place], color="grey", lw=0.8)
            side = {"III": "right", "IV": "left"}.get(name, "center")
            top.text(steps[place], top.get_ylim()[1], name, ha=side, va="bottom")
    for axes in (middle, bottom):
        axes.legend(loc="center left")


def draw_texts(figure, found):
    grid = figure.subplots(3, 2, sharex=True)
    for column, (run, title) in zip(grid.T, (("stories", "TinyStories"), ("wiki", "WikiText-2")), strict=True):
        for one, colour in zip(found, (BLUE, RED, GREEN) * len(found), strict=False):
            steps = one[run]["rank"].steps
            column[0].plot(steps, rank(one, run, "embed"), color=colour, label=f"seed {one.seed}")
            column[1].plot(steps, one[run]["frequency"]("cos"), color=colour)
            column[2].plot(steps, frequent(one, run), color=colour)
        column[0].set(title=title, yscale="log", ylabel="effective rank of W0")
        column[1].set(ylabel="|cos| to frequencies", ylim=(0, 1.02))
        column[2].set(ylabel="attention on the\nmost frequent token", xlabel="step")
    grid[0, 0].legend()


def frequent(found, run):
    """Mean attention on the most frequent token, over its value at the first checkpoint."""
    values = found[run]["attention"]("token_mass", layer=0, head=0)[:, 0]
    return values / values[0]


def text_rows(found):
    for one in found:
        for run in TEXTS:
            if run in one:
                yield [one.seed, run, *text_row(one, run)]


def text_row(one, run):
    """Where W0 has become of rank one, and how attention on the most frequent token rises, falls, rises, falls."""
    steps, values, attention = one[run]["rank"].steps, rank(one, run, "embed"), frequent(one, run)
    low = first(values < 1.1)
    cos, growth = one[run]["frequency"]("cos")[low], one[run]["drift"]("norm_change", matrix=QUERY)[low]
    trough = int(attention.argmin())
    peaks = int(attention[: trough + 1].argmax()), trough + int(attention[trough:].argmax())
    end = peaks[1] + int(attention[peaks[1] :].argmin())
    course = [f"{attention[at]:.2f} ({steps[at]})" for at in (peaks[0], trough, peaks[1], end)]
    return [int(steps[low]), float(cos), float(1 + growth), *course, float(values[trough]), float(values[end])]


TEXT_COLUMNS = [
    "seed",
    "text",
    "W0 of rank 1 at step",
    "its cos to frequencies",
    "norm of W_Q over its first",
    "attention: first peak (at step)",
    "lowest",
    "second peak",
    "lowest after it",
    "rank of W0 at the first low",
    "and at the second",
]

study = Study(
    title="Focus and dilution",
    paper="arXiv 2605.01199, *Focus and Dilution: the multi-stage learning process of attention*",
    trained="""
One attention layer, softmax(X W0 W_Q W_K^T W0^T X^T) X W0 W1, without values, residual or norm, learns the next token
of the chain P = I/2 + 1 pi^T/2 with pi = (0.75, 0.19, 0.05, 0.01), from weights of standard deviation 0.0001 by plain
gradient descent, in the limit of long sequences, where every token attends to all four with their frequencies as
prior. Negative controls: pi = (0.7, 0.1, 0.1, 0.1), where no rare token is rarer than another, and Adam in place of
gradient descent, from weights of 0.001: from 0.0001 its epsilon of 1e-8 holds W_Q still.

Given `--data tinystories=FILE` and `--data wikitext=FILE`, the same layer, causal, also learns their characters, by
SGD on 32 rows of 32. Those runs have no thresholds: the table says what was found.
""",
    claimed="""
I: embedding W0 and projection W1 condense to rank one, along pi, while W_Q and W_K stand still. II: W_Q and W_K grow,
of rank one, and attention focuses on the frequent token. III: embeddings redistribute mass, and the focus dilutes.
IV: the asymmetry among rare tokens opens a new direction in the embedding, and the next cycle begins. The average
over queries hides the first dilution, so attention is that of single tokens.
""",
    runs={
        "chain": Run("transformer", "markov", {"pi": PI, "save": "every:20"}, mini={"preset": "mini"}),
        "control": Run("transformer", "markov", {"save": "every:20"}, mini={"preset": "control"}),
        "adam": Run(
            "transformer",
            "markov",
            {"pi": PI, "save": "every:1"},
            mini={"std": 1e-3, "optimizer": "adamw", "lr": 1e-3, "steps": 400},
        ),
        "stories": Run("transformer", "text", TEXT, data="tinystories", about="characters of TinyStories"),
        "wiki": Run("transformer", "text", TEXT, data="wikitext", about="characters of WikiText-2"),
    },
    analyses=[
        Analysis("rank", {"products": False}),
        Analysis("drift", {"turning": False}, runs=("chain", "adam", "stories", "wiki")),
        Analysis("frequency"),
        Analysis("attention", runs=("chain",)),
        Analysis("attention", {"vocabulary": 0, "top": 4}, runs=("stories", "wiki")),
    ],
    claims=[
        Claim("I: effective rank of W0 and W1, the larger", at(condensed, ranks("embed", "unembed")), below=1.1),
        Claim(
            "I: |cos| of W0's top direction to pi", at(condensed, lambda f: f["chain"]["frequency"]("cos")), above=0.99
        ),
        Claim(
            "I: change of |W_Q| and |W_K| since the start, the larger",
            at(condensed, both(moved("chain", QUERY), moved("chain", KEY))),
            at_most=0.02,
        ),
        Claim("I: effective rank of W_Q over its first", at(condensed, kept), above=0.9),
        Claim(
            "II: attention of token 1 on token 0, less pi_0",
            at(focused, lambda f: mass(f, "chain", 1) - PI[0]),
            at_least=0.015,
        ),
        Claim("II: entropy of token 1's attention over H(pi)", at(focused, lambda f: spread(f, "chain")), at_most=0.96),
        Claim("II: attention of token 0 on itself", at(focused, lambda f: mass(f, "chain", 0)), above=0.85),
        Claim("II: effective rank of W_Q and W_K, the larger", at(focused, ranks(QUERY, KEY)), below=1.5),
        Claim("II: effective rank of W0", at(focused, ranks("embed")), below=1.1),
        Claim(
            "III: attention of token 1 on token 0, less pi_0",
            at(diluted, lambda f: mass(f, "chain", 1) - PI[0]),
            at_most=-0.03,
        ),
        Claim(
            "III: entropy of token 1's attention over H(pi)", at(diluted, lambda f: spread(f, "chain")), at_least=1.08
        ),
        Claim("IV: effective rank of W0, largest behind II", new_direction, above=1.8),
        Claim("IV: loss, there, less the loss at III", drop, below=0.0),
        Claim("equally rare tokens: largest effective rank of W0 behind I", control_rank, below=1.1, control=True),
        Claim("Adam: relative distance of W_Q from its start at I", adam_moved, above=1.0, control=True),
    ],
    figures=[
        Figure("stages", "The first seed; I to IV mark the checkpoints of the claims.", draw_stages, size=(7.2, 6.4)),
        Figure("texts", "Characters of real text.", draw_texts, size=(7.2, 5.6), needs=TEXTS),
    ],
    tables=[Table("Real text", TEXT_COLUMNS, text_rows, needs=TEXTS)],
    shown="""
Within 150 steps both embeddings are one direction, pi, and the loss rests at the entropy of pi while W_Q and W_K have
not moved: stage I. Then W_Q and W_K collapse to rank one, and all tokens attend more to token 0: stage II. For tokens
1 to 3 this turns: their attention falls far below pi_0 while token 0 comes to attend to itself alone: stage III. The
embedding stays of rank one throughout, until token 3 and token 2 part: its effective rank goes to 2, and the loss
falls to a next plateau: stage IV.

Where texts were given: within 80 steps the embedding condenses to rank one along the frequencies of characters (|cos|
0.99) while the norm of W_Q has grown by 6 to 28 %. On TinyStories the average attention on the most frequent
character, the space, then rises by an eighth, falls to less than half of its first value, and in a second, larger
cycle, with two directions in the embedding, rises to nearly twice and falls again. On WikiText-2 there is no first
rise above the noise of SGD: attention falls to 0.4 of its value, rises to about twice, and falls.
""",
)
