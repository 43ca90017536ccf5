"""Copies from digests alone, on tables written by hand."""

from __future__ import annotations

import hashlib

from hypothesis import given
from hypothesis import strategies as st

from ckpt_tools.verify import Copies, Unit

FILES = {"a": "one", "b": "one", "c": "two", "d": "two"}
UNITS = {name: Unit(file) for name, file in FILES.items()}


def table(*rows: str) -> list[dict[str, str]]:
    """One letter per unit a, b, c, d and checkpoint: `table("xyzw", "xy12")`."""
    return [dict(zip(FILES, row, strict=True)) for row in rows]


def findings(*rows, steps=None, units=UNITS, **how):
    return Copies(steps or [10 * i for i in range(len(rows))], table(*rows), units, **how).findings()


def told(*rows, **how):
    return [(f.kind, f.severity, f.steps, f.tensors) for f in findings(*rows, **how)]


def test_all_different_is_no_finding():
    assert told("abcd", "efgh", "ijkl") == []


def test_whole_checkpoints():
    assert told("abcd", "efgh", "abcd") == [("identical", "warning", (0, 20), ())]
    assert told("abcd", "abcd", "efgh") == [("identical", "warning", (0, 10), ())]
    assert told("abcd", "abcd", "abcd") == [("identical", "warning", (0, 10, 20), ())]


def test_updates_that_change_nothing_are_notes():
    assert told("abcd", "abcd", "efgh", steps=[0, 1, 2]) == [("identical", "note", (0, 1), ())]
    assert told("abcd", "abcd", "abcd", "efgh", steps=[0, 4, 8, 9])[0][:2] == ("identical", "note")
    assert told("efgh", "abcd", "abcd", steps=[0, 4, 6])[0][:2] == ("identical", "note")
    assert told("efgh", "abcd", "abcd", steps=[0, 4, 8])[0][:2] == ("identical", "warning")
    assert told("abcd", "efgh", "abcd", steps=[0, 1, 2])[0][:2] == ("identical", "warning")
    assert told("abcd", "abcd", "efgh", steps=[0, 1, 2], step_unit="epoch")[0][:2] == ("identical", "warning")


def test_the_copy_is_told_from_the_original():
    [finding] = findings("abcd", "efgh", "abcd", astray=lambda step: step == 20)
    assert "step 20 is out of place" in finding.message
    [finding] = findings("abcd", "efgh", "abxy", astray=lambda step: step == 20)
    assert "step 20 is out of place as a whole" in finding.message


def test_a_file_and_a_tensor_of_another_step():
    assert told("abcd", "efgh", "abkl") == [("foreign_shard", "warning", (0, 20), ("a", "b"))]
    assert told("abcd", "efgh", "ajkl") == [("foreign_tensor", "warning", (0, 20), ("a",))]
    assert told("abcd", "efgh", "ijkl", "abop", "abst") == [("foreign_shard", "warning", (0, 30), ("a", "b"))]
    one_file = {name: Unit("only") for name in FILES}
    assert told("abcd", "efgh", "abkl", units=one_file) == [("foreign_tensor", "warning", (0, 20), ("a", "b"))]


def test_frozen_stretches_are_no_copies():
    assert told("abcd", "abgh", "abkl", "mnop") == []
    assert told("abcd", "efgh", "efkl", "efop") == []
    assert told("aacd", "aagh", "aakl", "aaop") == []


def test_one_stretch_of_two_among_many_changes():
    rows = ("abcd", "efgh", "efkl", "mnop", "qrst", "uvwx")
    assert told(*rows) == [("foreign_shard", "warning", (10, 20), ("a", "b"))]
    single = ("abcd", "efgh", "ejkl", "mnop", "qrst", "uvwx")
    assert told(*single) == [("unchanged", "note", (10, 20), ("a",))]


def test_small_units_blanks_and_broken_checkpoints_do_not_tell():
    small = {**UNITS, "a": Unit("one", telling=False)}
    assert told("abcd", "efgh", "ajkl", units=small) == []
    assert told("abcd", "efgh", "ajkl", blank=lambda unit, digest: digest == "a") == []
    assert told("abcd", "efgh", "abcd", broken=frozenset({0, 2}))[0][0] != "identical"


def test_tensors_that_are_not_everywhere():
    copies = Copies([0, 10, 20], [{"a": "x"}, {"a": "y", "b": "z"}, {"a": "x", "b": "w"}], UNITS)
    assert [(f.kind, f.steps) for f in copies.findings()] == [("foreign_tensor", (0, 20))]
    assert Copies([0, 1], [{}, {}], {}).findings() == []


@given(st.lists(st.integers(0, 10**6), min_size=2, max_size=12, unique=True), st.data())
def test_a_planted_copy_is_found_wherever_it_is(steps, data):
    steps = sorted(steps)
    digests = [
        {name: hashlib.sha256(f"{name}{step}".encode()).hexdigest() for name in FILES} for step in steps
    ]  # fmt: skip
    assert Copies(steps, digests, UNITS).findings() == []
    a, b = sorted(data.draw(st.lists(st.integers(0, len(steps) - 1), min_size=2, max_size=2, unique=True)))
    digests[b] = digests[a]
    [finding] = Copies(steps, digests, UNITS).findings()
    assert (finding.kind, finding.steps) == ("identical", (steps[a], steps[b]))


def test_nothing_to_compare():
    assert Copies([], [], {}).findings() == [] and Copies([5], [{"a": "x"}], UNITS).findings() == []
