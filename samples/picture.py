"""Draw README's picture: loss and effective ranks along the demo's Markov run, from its results file.

python samples/picture.py demo/markov.h5 docs/images/markov.png
"""

import sys

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from ckpt_tools import open_results

COLOURS = {"embed": "#0072B2", "unembed": "#56B4E9", "layers.0.attn.q": "#D55E00", "layers.0.attn.k": "#E69F00"}


def main(source: str, target: str) -> None:
    results = open_results(source)
    trajectory, rank = results["trajectory"], results["rank"]["effective_rank"]
    figure, (above, below) = plt.subplots(
        2, 1, figsize=(7.2, 4.6), sharex=True, height_ratios=[1, 2], layout="constrained"
    )
    above.plot(trajectory["step"], trajectory["loss"], color="black")
    above.set_ylabel("loss (nats)")
    for matrix, colour in COLOURS.items():
        below.plot(rank["step"], rank.sel(matrix=matrix), color=colour, label=matrix)
    below.set(xscale="symlog", yscale="log", xlabel="step (gradient descent)", ylabel="effective rank", xlim=(0, None))
    below.set_yticks([1, 2, 4, 8, 16, 32], labels=["1", "2", "4", "8", "16", "32"])
    below.minorticks_off()
    for axes in (above, below):
        axes.spines[["top", "right"]].set_visible(False)
    below.legend(frameon=False, ncols=2)
    figure.savefig(target, dpi=120)


if __name__ == "__main__":
    main(*sys.argv[1:])
