"""A plugin that runs the model: is its certainty earned? (Guo et al., ICML 2017)

Of every prediction the most probable token is taken. Accuracy is how often it is right, confidence how probable the
model held it; over bins of equal width of confidence, the expected calibration error is sum_b share_b |acc_b - conf_b|.
"""

from ckpt_tools import Analyzer, Out, hookimpl, option, to_numpy


class Calibration(Analyzer):
    """Accuracy, confidence, entropy and expected calibration error of a model's predictions."""

    name = "calibration"
    needs = "forward"
    outputs = {
        "accuracy": Out(long_name="share of predictions that are right"),
        "confidence": Out(long_name="mean probability of the most probable token"),
        "entropy": Out(unit="nat", long_name="mean entropy of the predictions"),
        "calibration_error": Out(long_name="expected calibration error"),
        "bin_share": Out(("bin",), long_name="share of predictions by confidence"),
        "bin_accuracy": Out(("bin",), long_name="accuracy by confidence, NaN where there is no prediction"),
    }
    bins: int = option(10, help="Bins of confidence between 0 and 1.", min=1)

    def analyze(self, view):
        import torch  # here, so that listing plugins stays quick

        batch = view.batch()
        logits, targets = predictions(view.model().forward(batch).logits, batch)
        p = logits.double().softmax(-1)
        confidence, token = p.max(-1)
        right = (token == targets).double()
        place = (confidence.nan_to_num() * self.bins).long().clamp(max=self.bins - 1)
        count, sure, hits = (p.new_zeros(self.bins).index_add(0, place, x) for x in (right * 0 + 1, confidence, right))
        found = {
            "accuracy": right.mean(),
            "confidence": confidence.mean(),
            "entropy": torch.special.entr(p).sum(-1).mean(),
            "calibration_error": (hits - sure).abs().sum() / len(right),
            "bin_share": count / len(right),
            "bin_accuracy": hits / count,
        }
        centres = [(i + 0.5) / self.bins for i in range(self.bins)]
        return {"bin": centres, **{name: to_numpy(value) for name, value in found.items()}}


def predictions(logits, batch):
    """Return logits `[n, v]` and the right tokens `[n]` of all positions that are scored."""
    targets = batch.get("targets")
    if targets is None:  # a language model: each position predicts the next token
        logits, targets = logits[:, :-1], batch["tokens"][:, 1:]
    if targets.is_floating_point():  # distributions: the most probable token is the right one
        targets = targets.argmax(-1)
    if targets.dim() == 1:  # about the last position
        logits, targets = logits[:, -1:], targets[:, None]
    scored = targets >= 0
    return logits[scored], targets[scored]


@hookimpl
def ckpt_analyzers():
    return [Calibration]
