"""Which of the things in a file are the weights."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ckpt_tools.checkpoint import open_checkpoint
from ckpt_tools.checkpoint.facts import config_of, facts_of
from ckpt_tools.checkpoint.leaves import Unreadable
from ckpt_tools.checkpoint.nesting import choose, loop_reason
from ckpt_tools.checkpoint.views import unwrapped
from ckpt_tools.errors import FormatError, SourceError

T = Unreadable("a stand-in for a tensor")
NET = {"fc.weight": T, "fc.bias": T}
OPTIMIZER = {"state": {0: {"exp_avg": T}}, "param_groups": [{"lr": 0.1}]}
PARAMS = {"dense": {"kernel": T, "bias": T}}

# what was saved, the names that come out, the names left out
CASES = {
    "a state dict": (NET, NET, []),
    "under model": ({"model": NET, "optimizer": OPTIMIZER, "epoch": 3}, NET, ["optimizer"]),
    "the best name wins": ({"model": NET, "model_state_dict": {"a": T}}, ["a"], ["model"]),
    "twice": ({"state_dict": {"model": NET}}, NET, []),
    "three times": ({"checkpoint": {"state_dict": {"module": NET}}, "epoch": 1}, NET, []),
    "an odd key": ({"my_net": NET}, NET, []),
    "an odd key beside facts": ({"brain": PARAMS, "version": 2}, ["dense.kernel", "dense.bias"], []),
    "a lone layer keeps its name": (PARAMS, ["dense.kernel", "dense.bias"], []),
    "two odd keys": ({"netG": NET, "netD": {"a": T}, "optG": OPTIMIZER}, ["netG.fc.weight", "netG.fc.bias", "netD.a"],
                     ["optG"]),
    "a siamese pair is not torn": ({"encoder": {"w": T}, "decoder": {"w": T}}, ["encoder.w", "decoder.w"], []),
    "an empty sibling": ({"model": NET, "ema": {}, "optimizer": None}, NET, []),
    "averages beside": ({"state_dict": NET, "state_dict_ema": NET}, NET, ["state_dict_ema"]),
    "averages alone": ({"ema": NET, "step": 4}, NET, []),
    "averages between": ({"state_dict": {**NET, "model_ema.fc.weight": T}}, NET, ["model_ema.fc.weight"]),
    "a flax train state": ({"step": 1, "params": PARAMS, "opt_state": {"0": {"mu": PARAMS}}, "batch_stats": PARAMS},
                           ["dense.kernel", "dense.bias"], ["opt_state", "batch_stats"]),
    "flax variables": ({"params": {"model": PARAMS, "head": {"kernel": T}}},
                       ["model.dense.kernel", "model.dense.bias", "head.kernel"], []),
    "numbers beside the weights": ({"model": NET, "best_val_loss": T, "rng_state": T}, NET,
                                   ["best_val_loss", "rng_state"]),
    "gradients": ({"model": NET, "grads": NET}, NET, ["grads"]),
    "gradients between": ({**NET, "fc.weight.grad": T}, NET, ["fc.weight.grad"]),
    "a list of tensors": ([T, T], ["0", "1"], []),
    "one tensor": (T, ["tensor"], []),
    "an optimizer's name inside": ({"optimizer.state.0.exp_avg": T, "model.fc.weight": T}, ["model.fc.weight"],
                                   ["optimizer.state.0.exp_avg"]),
    "a layer called opt": ({"opt.weight": T, "rng.weight": T}, ["opt.weight", "rng.weight"], []),
    "a tensor called buffer": ({"buffer": T}, ["buffer"], []),
    "Lightning": ({"state_dict": {"model.fc.weight": T}, "optimizer_states": [OPTIMIZER], "callbacks": {"x": T},
                   "loops": {}, "hyper_parameters": {}}, ["model.fc.weight"], ["optimizer_states", "callbacks"]),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_what_is_chosen(case):
    tree, names, left_out = CASES[case]
    chosen = choose(tree, "x.pt")
    assert list(chosen.leaves) == list(names)
    assert [skip.name for skip in chosen.skipped] == left_out
    assert all(skip.reason for skip in chosen.skipped)


def test_a_part_is_opened_by_name():
    tree = {"model": NET, "ema_model": {"a": T}, "discriminator": {"b": T}}
    assert list(choose(tree, "x", "ema").leaves) == list(choose(tree, "x", "ema_model").leaves) == ["a"]
    assert list(choose(tree, "x", "discriminator").leaves) == ["b"]
    assert [skip.name for skip in choose(tree, "x", "discriminator").skipped] == ["model", "ema_model"]
    with pytest.raises(SourceError, match=r"x has no part 'discriminatr'. Did you mean 'discriminator'"):
        choose(tree, "x", "discriminatr")


def test_a_part_may_be_a_prefix_of_names():
    tree = {"state_dict": {**NET, "model_ema.fc.weight": T}, "epoch": 1}
    assert list(choose(tree, "x", "ema").leaves) == ["fc.weight"]
    assert list(choose(tree, "x", "fc").leaves) == ["weight", "bias"]
    with pytest.raises(SourceError, match="no part 'teacher'"):
        choose(tree, "x", "teacher")


def test_the_parts_of_a_file(tmp_path):
    state = {"w": torch.ones(2, 2)}
    torch.save({"model": state, "ema": {"w": torch.zeros(2, 2)}, "epoch": 5}, tmp_path / "x.pt")
    with open_checkpoint(tmp_path / "x.pt") as main, open_checkpoint(tmp_path / "x.pt", part="ema") as ema:
        assert main.read("w").sum() == 4 and ema.read("w").sum() == 0
        assert [s.reason for s in main.skipped] == ["averaged weights; part 'ema' opens it"]
        assert (main.metadata["part"], ema.metadata["part"]) == ("model", "ema")
    with pytest.raises(SourceError, match=r"no part 'emma'. Did you mean 'ema'"):
        open_checkpoint(tmp_path / "x.pt", part="emma")


def test_a_format_without_parts_says_so(tmp_path, save):
    with pytest.raises(SourceError, match="a safetensors file has one set of weights, so no part 'ema'"):
        open_checkpoint(save(tmp_path / "x", {"a": np.ones(2)}), part="ema")


@pytest.mark.parametrize(
    ("key", "reason"),
    [
        ("optimizer", "optimizer state"), ("optimizer_states", "optimizer state"), ("optim", "optimizer state"),
        ("opt_state", "optimizer state"), ("g_optimizer", "optimizer state"), ("optimizerD", "optimizer state"),
        ("lr_schedulers", "state of the learning-rate schedule"), ("rng_state", "state of random number generators"),
        ("random_states", "state of random number generators"), ("grads", "gradients"), ("amp", "state of the loss"),
        ("training_args", "settings"), ("hyper_parameters", "settings"), ("callbacks", "state of the loop"),
        ("model", ""), ("option_head", ""), ("optical_flow", ""), ("generator", ""), ("adoption", ""), ("ring", ""),
    ],
)  # fmt: skip
def test_what_belongs_to_the_loop(key, reason):
    assert loop_reason(key).startswith(reason) and bool(loop_reason(key)) == bool(reason)


@pytest.mark.parametrize(
    ("names", "bare"),
    [
        (["module.a.w", "module.b"], ["a.w", "b"]),
        (["_orig_mod.a", "_orig_mod.b"], ["a", "b"]),
        (["module._orig_mod.a"], ["a"]),
        (["_orig_mod.module.a"], ["a"]),
        (["module.module.a"], ["a"]),
        (["layers.0._orig_mod.w", "head"], ["layers.0.w", "head"]),
        (["_fsdp_wrapped_module.layers.0._checkpoint_wrapped_module.w"], ["layers.0.w"]),
    ],
)
def test_wrappers_are_taken_off(names, bare):
    assert unwrapped(names) == dict(zip(bare, names, strict=True))


@pytest.mark.parametrize(
    "names",
    [
        ["a", "b"],
        ["module.a", "head"],
        ["my_orig_mod.a"],
        ["model.a", "model.b"],
        ["_orig_mod.a", "a"],
        ["module.", "x"],
        [],
    ],
)
def test_names_stay_where_nothing_wraps_them(names):
    assert unwrapped(names) == {}


def test_unwrapped_names_in_a_file_and_in_shards(tmp_path, save, sharded):
    for path in (
        save(tmp_path / "one", {"_orig_mod.a": np.ones(3), "_orig_mod.b": np.zeros(2)}),
        sharded(tmp_path / "two", {"s1": {"_orig_mod.a": np.ones(3)}, "s2": {"_orig_mod.b": np.zeros(2)}}),
    ):
        with open_checkpoint(path, hashing=True) as checkpoint:
            assert set(checkpoint.tensors) == {"a", "b"} and checkpoint.tensors["a"].name == "a"
            assert checkpoint.read("a").sum() == 3 and checkpoint.bytes_read == 24
            out = np.empty(2)
            checkpoint.read_into("b", out)
            assert out.sum() == 0 and len(checkpoint.digest("a")) == 64


def test_ties_survive_the_unwrapping(tmp_path):
    weight = torch.ones(3, 2)
    torch.save({"model": {"module.e": weight, "module.h": weight, "module.x": torch.ones(2)}}, tmp_path / "x")
    with open_checkpoint(tmp_path / "x") as checkpoint:
        assert checkpoint.aliases == {"h": "e"} and checkpoint.read("h").shape == (3, 2)


def test_the_step_inside_and_the_one_in_the_name(tmp_path):
    value = {"model": {"w": torch.ones(2)}, "epoch": 9, "global_step": 1970, "loss": 0.5, "note": "x"}
    torch.save(value, tmp_path / "checkpoint_epoch_10.pt")
    with open_checkpoint(tmp_path / "checkpoint_epoch_10.pt") as checkpoint:
        assert checkpoint.step == 10
        assert checkpoint.metadata["step"] == 1970 and checkpoint.metadata["epoch"] == 9
        assert checkpoint.notes == ["taken as step 10, but the file says global_step 1970, epoch 9"]
    for name, step in (("best.pt", 1970), ("step_1970.pt", 1970), ("epoch=9.ckpt", 9), ("checkpoint_epoch_9.pt", 9)):
        torch.save(value, tmp_path / name)
        with open_checkpoint(tmp_path / name) as checkpoint:
            assert (checkpoint.step, checkpoint.notes) == (step, [])


@pytest.mark.parametrize("counter", [torch.tensor(5), torch.tensor([5]), torch.tensor(5.0), np.array(5), np.int32(5)])
def test_a_counter_may_be_a_tensor(tmp_path, counter):
    torch.save({"model": {"w": torch.ones(2)}, "iteration": counter}, tmp_path / "x")
    with open_checkpoint(tmp_path / "x") as checkpoint:
        assert (checkpoint.step, checkpoint.metadata["step_key"]) == (5, "iteration")


def test_epochs_are_not_compared_with_steps(tmp_path, save):
    torch.save({"model": {"w": torch.ones(2)}, "epoch": 3}, tmp_path / "checkpoint-500.pt")
    torch.save({"model": {"w": torch.ones(2)}, "step": 3, "epoch": 500}, tmp_path / "step_500.pt")
    save(tmp_path / "step-500", {"w": np.ones(2)}, {"step": "499"})
    save(tmp_path / "last", {"w": np.ones(2)}, {"step": "499"})
    notes = {}
    for name in ("checkpoint-500.pt", "step_500.pt", "step-500", "last"):
        with open_checkpoint(tmp_path / name) as checkpoint:
            notes[name] = checkpoint.step, checkpoint.notes
    assert notes == {
        "checkpoint-500.pt": (500, []),
        "step_500.pt": (500, ["taken as step 500, but the file says step 3, epoch 500"]),
        "step-500": (500, ["taken as step 500, but the file says step 499"]),
        "last": (499, []),
    }


def test_a_matrix_called_score_is_no_figure(tmp_path):
    torch.save({"score": torch.ones(2, 3), "body": {"w": torch.ones(2)}, "loss": torch.ones(1)}, tmp_path / "x")
    with open_checkpoint(tmp_path / "x") as checkpoint:
        assert set(checkpoint.tensors) == {"score", "body.w"}


def test_facts_are_small_and_plain():
    facts = facts_of(
        [{"iter_num": 7, "x" * 300: 1, "long": "y" * 5_000, "inf": float("inf"), "big": 2**70, "ok": True}]
    )
    assert facts == {"iter_num": 7, "ok": True, "step": 7, "step_key": "iter_num"}
    assert facts_of([{"step": -1}, {"step": "5"}]) == {"step": -1}


def test_a_configuration_is_plain_data():
    loop: dict = {}
    loop["self"] = loop
    levels = [{"config": {"n": 1, "t": T, "nested": {"a": [1, {"b": None}], "only_tensors": {"x": T}}, 3: "c"}}]
    assert config_of(levels) == {"n": 1, "nested": {"a": [1, {"b": None}]}, "3": "c"}
    assert config_of([{"config": 5, "model_args": {"d": 2}}]) == {"d": 2}
    assert config_of([{"x": 1}]) == {}
    deep = config_of([{"config": loop}])
    assert len(str(deep)) < 1_000


def test_names_and_depth_are_bounded():
    deep = T
    for _ in range(40):
        deep = {"x": deep}
    assert choose(deep, "f").leaves == {}
    with pytest.raises(FormatError, match="more than 1,000 characters"):
        choose({"a": {"b" * 600: {"c" * 600: T}}, "d": T}, "f")


def test_shared_containers_are_counted_not_unfolded():
    """Thirty dicts of two references each stand for a thousand million tensors."""
    node: dict = {"a": T}
    for _ in range(30):
        node = {"l": node, "r": node}
    with pytest.raises(FormatError, match="more than"):
        choose(node, "f")


def test_a_container_in_itself_is_entered_once():
    node: dict = {"w": T, "inner": {"v": T}}
    node["inner"]["back"] = node
    assert list(choose(node, "f").leaves) == ["w", "inner.v"]
