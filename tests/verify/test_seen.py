"""Sightings of a whole trajectory, packed: nothing is lost, and the findings are the same."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from ckpt_tools.verify import Copies, Sighting, Unit
from ckpt_tools.verify.seen import Seen
from ckpt_tools.verify.sighting import Held

TENSORS = {name: Held("float32", (8, 8), "one" if name < "c" else "two", True) for name in "abcd"}
DIGEST = st.sampled_from([f"{n:016x}" for n in (0, 1, 2**63, 2**64 - 1)])
ODD = st.sampled_from(["", "no hex of sixteen", "ab"])
SIGHTING = st.builds(
    lambda digests, nonfinite, stored: Sighting(TENSORS, digests, tuple(nonfinite), stored),
    st.dictionaries(st.sampled_from("abcd"), st.one_of(DIGEST, DIGEST, DIGEST, ODD)),
    st.sets(st.sampled_from("abcd"), max_size=1),
    st.none() | st.integers(0, 6),
)


@given(st.lists(st.tuples(st.integers(0, 6), SIGHTING), max_size=12))
def test_what_was_put_last_comes_back(puts: list[tuple[int, Sighting]]) -> None:
    seen, expected = Seen(), dict(puts)
    for step, sighting in puts:
        seen.put(step, sighting)
    assert dict(seen) == expected and list(seen) == sorted(expected)
    assert list(seen.digests()) == [expected[step].digests for step in sorted(expected)]
    assert set(seen.compared()) == {name for sighting in expected.values() for name in sighting.digests}
    assert seen.nonfinite == {step: one.nonfinite for step, one in expected.items() if one.nonfinite}


@given(st.lists(st.dictionaries(st.sampled_from("abcd"), DIGEST), max_size=8))
def test_copies_are_the_same_packed_and_plain(rows: list[dict[str, str]]) -> None:
    seen = Seen()
    for step, digests in enumerate(rows):
        seen.put(step, Sighting(TENSORS, digests))
    units = {name: Unit(held.file) for name, held in TENSORS.items()}
    plain, packed = (Copies(range(len(rows)), one, units) for one in (rows, seen.digests()))
    assert packed.findings() == plain.findings() and packed.identical() == plain.identical()


def test_checkpoints_that_hold_the_same_share_it() -> None:
    seen = Seen()
    for step in range(200):
        tensors = dict(TENSORS) if step < 100 else {**TENSORS, "e": TENSORS["a"]}
        seen.put(step, Sighting(tensors, {"a": f"{step:016x}", "b": "0" * 16}, stored=step))
    assert len({id(sighting.tensors) for sighting in seen.values()}) == 2
    assert seen[7].digests == {"a": f"{7:016x}", "b": "0" * 16} and seen[7].stored == 7 and not seen.stored
