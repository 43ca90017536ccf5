"""Plugins: found, checked, refused with reasons; one broken plugin breaks nothing else."""

from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from ckpt_tools import Analyzer, CkptError, Out
from ckpt_tools.errors import PluginError
from ckpt_tools.registry import Plugin, Registry, load_registry

GPT2 = ("ln_1", "attn.c_attn", "attn.c_proj", "ln_2", "mlp.c_fc", "mlp.c_proj")

GOOD = '''
from ckpt_tools import Analyzer, Out, hookimpl

class {cls}(Analyzer):
    """Counts matrices."""
    name = "{name}"
    outputs = {{"count": Out(unit="1", dtype="i8")}}

    def analyze(self, view):
        return {{"count": len(view.matrices())}}

@hookimpl
def ckpt_analyzers():
    return [{cls}]
'''


def write(folder: Path, file: str, text: str) -> Path:
    path = folder / file
    path.write_text(text)
    return path


def test_builtins_come_through_entry_points() -> None:
    registry = load_registry()
    assert registry.analyzer("rank").name == "rank"
    assert {"llama", "gpt2", "transformer"} <= set(registry.families())
    assert registry.provider(registry.analyzer("rank")).origin.startswith("ckpt-tools ")


def test_a_single_file_is_a_plugin(tmp_path: Path) -> None:
    registry = load_registry([write(tmp_path, "count.py", GOOD.format(cls="Count", name="count"))])
    assert registry.analyzer("count")().as_dict() == {}


def test_unknown_names_get_the_nearest() -> None:
    with pytest.raises(PluginError, match=r"No analyzer is named 'rnak'\. Did you mean 'rank'\?"):
        load_registry().analyzer("rnak")


def test_a_broken_entry_point_is_listed_and_only_an_error_when_asked_for() -> None:
    def explode() -> None:
        raise ZeroDivisionError("at import")

    registry = Registry([Plugin("bad", "somewhere 1.0", "1.0", explode), *load_registry().plugins])
    assert registry.analyzer("rank").name == "rank"
    assert "rank" in registry.analyzers()
    assert registry.plugins[0].broken == "ZeroDivisionError: at import"
    with pytest.raises(PluginError, match=r"'bad' \(somewhere 1.0\) is BROKEN: ZeroDivisionError: at import"):
        registry.analyzer("bad")


def test_a_missing_module_is_broken_not_fatal() -> None:
    entry = EntryPoint("gone", "no_such_module_anywhere", "ckpt_tools")
    plugin = Plugin("gone", "x", "", entry.load).ensure()
    assert plugin.broken == "ModuleNotFoundError: No module named 'no_such_module_anywhere'"


def test_misspelled_hooks_and_bad_declarations_name_every_fault(tmp_path: Path) -> None:
    misspelled = GOOD.format(cls="A", name="a").replace("def ckpt_analyzers", "def ckpt_analysers")
    with pytest.raises(CkptError, match=r"ckpt_analysers.*Hooks are ckpt_analyzers, ckpt_families"):
        load_registry([write(tmp_path, "misspelled.py", misspelled)])
    faulty = """
from ckpt_tools import Analyzer, Out, hookimpl

class Bad(Analyzer):
    name = "not a name"
    needs = "wights"
    outputs = {"x": Out(dims=("matrix",), unit=""), "matrix": Out(dims=("matrix",)), "y": 3}
    invariant_to = {"rotations"}

@hookimpl
def ckpt_analyzers():
    return [Bad]
"""
    with pytest.raises(PluginError) as error:
        load_registry([write(tmp_path, "faulty.py", faulty)])
    for part in (
        "'not a name'",
        "'wights'",
        "unit is empty",
        "both output and dimension",
        "'y' is int",
        "'rotations'",
        "analyze(self, view) is not defined",
    ):
        assert part in str(error.value)


def test_name_clashes_name_both_sides(tmp_path: Path) -> None:
    one = write(tmp_path, "one.py", GOOD.format(cls="One", name="same"))
    two = write(tmp_path, "two.py", GOOD.format(cls="Two", name="same"))
    registry = load_registry([one, two])
    with pytest.raises(PluginError) as error:
        registry.analyzers()
    assert str(one) in str(error.value) and str(two) in str(error.value)
    again = tmp_path / "sub"
    again.mkdir()
    with pytest.raises(PluginError, match="Two plugins are named 'one'"):
        load_registry([one, write(again, "one.py", GOOD.format(cls="Three", name="three"))])


def test_a_plugin_that_provides_nothing_is_broken(tmp_path: Path) -> None:
    with pytest.raises(PluginError, match="provides nothing"):
        load_registry([write(tmp_path, "empty.py", "x = 1\n")])
    with pytest.raises(PluginError, match="no such file"):
        load_registry([tmp_path / "absent.py"])


def test_declarations_are_checked_on_the_class() -> None:
    class Fine(Analyzer):
        name = "fine"
        outputs = {"x": Out(unit="1")}

        def analyze(self, view: object) -> dict[str, float]:
            return {"x": 1.0}

    from ckpt_tools.analyzer import declaration_faults

    assert declaration_faults(Fine) == []
    assert declaration_faults(int) == ["<class 'int'> is not a subclass of ckpt_tools.Analyzer"]


def test_recognition_by_model_type_then_by_names() -> None:
    registry = load_registry()
    llama = ["model.layers.0.self_attn.q_proj.weight", "model.layers.0.mlp.gate_proj.weight"]
    for config, names, expected in [
        ({"model_type": "gpt2"}, [], "gpt2"),
        ({}, llama, "llama"),
        ({}, ["wte.weight", "wpe.weight", *(f"h.0.{n}.weight" for n in GPT2), "ln_f.weight"], "gpt2"),
        ({"ckpt_family": "transformer"}, llama, "transformer"),
    ]:
        family = registry.recognise(config, names)
        assert family is not None and family.name == expected
    assert registry.recognise({}, ["something.else"]) is None


def test_the_trainers_are_not_asked_whose_an_unknown_checkpoint_is() -> None:
    registry = load_registry()
    assert registry.recognise({"model_type": "nobody's"}, ["something.else"]) is None
    loaded = {plugin.name for plugin in registry.plugins if plugin.loaded}
    assert "huggingface" in loaded and not loaded & {"transformer", "gpt", "rank"}
    # None of them would have said yes: that is what makes it right.
    ours = [
        family
        for name in ("attn_mlp", "emb_mlp", "gpt", "mamba", "mlp", "transformer")
        for family in next(plugin for plugin in registry.plugins if plugin.name == name).ensure().families
    ]
    assert len(ours) >= 6 and not any(family.model_types or family.table.signature for family in ours)
