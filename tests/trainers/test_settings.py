"""One flat namespace of settings for model, task and loop."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from ckpt_tools.errors import OptionError
from ckpt_tools.family import Family
from ckpt_tools.options import option
from ckpt_tools.registry import load_registry
from ckpt_trainers.gpt import GPT
from ckpt_trainers.settings import Loop, declared, plan, settings
from ckpt_trainers.tasks import TASKS, Task, task_class
from ckpt_trainers.tasks.markov import Markov
from ckpt_trainers.training import freeze
from ckpt_trainers.transformer import Transformer

FAMILIES = [f for f in load_registry().families().values() if hasattr(f, "init")]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("task", TASKS)
def test_no_name_has_two_owners(family: type[Family], task: str) -> None:
    kind = task_class(task)
    found = declared(family, kind)
    assert len(found) == len(family.Config.declared) + len(kind.declared) + len(Loop.declared)
    assert list(settings(family, task)) == list(found)


@pytest.mark.parametrize("task", TASKS)
def test_defaults_of_a_task_are_settings(task: str) -> None:
    kind = task_class(task)
    assert kind.name == task
    unknown = set(kind().defaults()) - {n for f in FAMILIES for n in declared(f, kind)}
    assert not unknown


class Clash(Task):
    name = "clash"
    d_model: int = option(1, help="A width of its own.")


class LoopClash(Task):
    name = "loop_clash"
    lr: float = option(1.0, help="A rate of its own.")


@pytest.mark.parametrize(
    ("task", "message"),
    [
        (Clash, "Setting 'd_model' is declared by family transformer and by task clash. Rename one of them."),
        (LoopClash, "Setting 'lr' is declared by task loop_clash and by the loop. Rename one of them."),
    ],
)
def test_clashes_name_both_owners(task: type[Task], message: str) -> None:
    with pytest.raises(OptionError) as caught:
        declared(Transformer, task)
    assert str(caught.value) == message


def test_defaults_of_markov_are_the_papers_miniature() -> None:
    chosen = plan(Transformer, "markov", {}).flat()
    expected = {"d_model": 32, "std": 1e-4, "lam": 0.5, "optimizer": "gd", "lr": 0.2, "dtype": "float64", "steps": 8000}
    assert {name: chosen[name] for name in expected} == expected
    assert (chosen["layers"], chosen["heads"], chosen["d_ff"], chosen["norm"]) == (1, 1, 0, "none")
    assert not any(chosen[name] for name in ("use_v", "use_o", "residual", "scaled", "causal", "bias", "tied"))
    assert (chosen["vocabulary"], chosen["context"]) == (4, 4)
    shown = settings(Transformer, "markov")
    assert {name: shown[name].default for name in expected} == expected


def test_text_and_typed_values_mean_the_same() -> None:
    text = {
        "d_model": "16",
        "lam": "0.2",
        "pi": "0.5,0.5",
        "lr": "1",
        "optimizer": "adamw",
        "use_v": "yes",
        "std": "none",
    }
    typed = {"d_model": 16, "lam": 0.2, "pi": [0.5, 0.5], "lr": 1, "optimizer": "adamw", "use_v": True, "std": None}
    chosen = plan(Transformer, "markov", text).flat()
    assert chosen == plan(Transformer, "markov", typed).flat()
    assert (chosen["vocabulary"], chosen["std"], chosen["use_v"]) == (2, None, True)


def test_defaults_follow_the_task_settings() -> None:
    chosen = plan(Transformer, "markov", {"form": "sampled", "length": "9"}).flat()
    assert (chosen["lr"], chosen["std"], chosen["steps"], chosen["context"]) == (0.5, 1e-3, 1500, 9)


class Narrow(Family):
    """A family without most of the settings that tasks have defaults for."""

    name = "narrow"
    Config: ClassVar[Any] = type("Config", (Transformer.Config.__base__,), {})


def test_defaults_for_absent_settings_are_left_out() -> None:
    chosen = plan(Narrow, "markov", {})
    assert chosen.config.as_dict() == {}
    assert chosen.loop.as_dict()["lr"] == 0.2
    with pytest.raises(OptionError, match="Training narrow on markov has no setting 'd_model'"):
        plan(Narrow, "markov", {"d_model": 3})


FITTING = [(f, t) for f in FAMILIES for t in TASKS if f.reads == task_class(t).gives]  # type: ignore[attr-defined]


@pytest.mark.parametrize(("family", "task"), FITTING)
def test_every_family_takes_the_defaults_of_a_task_it_can_read(family: Any, task: str, tmp_path: Path) -> None:
    (tmp_path / "text").write_text("some words\n" * 300)
    chosen = plan(family, task, {"data": str(tmp_path / "text")} if task == "text" else {})
    module = family.build(chosen.config.as_dict())
    freeze(family, module, chosen.loop.freeze)
    assert any(p.requires_grad for p in module.parameters())


def test_defaults_that_a_family_cannot_take_are_left_out() -> None:
    assert plan(GPT, "markov", {"form": "sampled"}).flat()["d_ff"] is settings(GPT, "markov")["d_ff"].default is None
    assert plan(Transformer, "markov", {}).flat()["d_ff"] == settings(Transformer, "markov")["d_ff"].default == 0
    with pytest.raises(OptionError, match=r"Option 'd_ff' of gpt must be .* Got 0 instead"):
        plan(GPT, "markov", {"d_ff": 0})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"lamb": 1}, "Training transformer on markov has no setting 'lamb'. Did you mean 'lam'?"),
        ({"dmodel": 1}, "Did you mean 'd_model'?"),
        ({"lr": "fast"}, "Option 'lr' of training must be float in [0.0, inf). Got 'fast' instead."),
        ({"lam": 2}, "Option 'lam' of markov must be float in [0.0, 1.0]. Got 2.0 instead."),
        ({"heads": 0}, "Option 'heads' of transformer must be int in [1, inf). Got 0 instead."),
        (
            {"no_decay": "embeddings,embed"},
            "Option 'no_decay' of training must be one of embeddings, vectors. Got ('embeddings', 'embed') instead.",
        ),
        ({"lr_schedule": "cosine"}, "must be one of constant, warmup-cosine. Got 'cosine' instead."),
        ({"save": "evry:3"}, "Did you mean 'every'?"),
        ({"batch": 4}, "Optimizer gd uses all examples"),
        ({"vocabulary": 3}, "Task markov needs vocabulary of at least 4. Got 3 instead."),
        ({"form": "sampled", "context": 3}, "Task markov needs context of at least 32. Got 3 instead."),
    ],
)
def test_bad_settings(values: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError) as caught:
        plan(Transformer, "markov", values)
    assert message in str(caught.value)


def test_constant_rate_follows_warmup() -> None:
    constant = Loop(lr=0.4, warmup=4, lr_first=0.5, steps=10)
    np.testing.assert_allclose([constant.rate(k) for k in range(10)], [0.25, 0.3, 0.35, *[0.4] * 7], rtol=1e-15)
    assert Loop(lr=0.4).rate(0) == Loop(lr=0.4).rate(999) == 0.4


def test_cosine_rate() -> None:
    cosine = Loop(lr=2.0, lr_schedule="warmup-cosine", warmup=3, lr_last=0.1, steps=11)
    rates = [cosine.rate(k) for k in range(12)]
    np.testing.assert_allclose(rates[:4], [2 / 3, 4 / 3, 2, 2], rtol=1e-15)
    assert rates[7] == pytest.approx(2 * (0.1 + 0.9 / 2)), "half way down at half time"
    assert rates[11] == cosine.rate(99) == pytest.approx(0.2)
    assert sorted(rates[3:], reverse=True) == rates[3:]


def test_rate_after_nothing_but_warmup() -> None:
    cosine = Loop(lr=1.0, lr_schedule="warmup-cosine", warmup=5, steps=5)
    assert [cosine.rate(k) for k in range(6)] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1, 1])


def test_unknown_task() -> None:
    with pytest.raises(OptionError, match=r"No task is named 'markv'\. Did you mean 'markov'"):
        Transformer.settings("markv")
    with pytest.raises(OptionError, match=r"--task is missing\. Known: .*markov"):
        Transformer.settings("")


def test_task_without_examples_says_so() -> None:
    with pytest.raises(NotImplementedError, match="task 'clash' draws nothing"):
        Clash().draw(3, None)  # type: ignore[arg-type]
    assert isinstance(Markov(), Task)
