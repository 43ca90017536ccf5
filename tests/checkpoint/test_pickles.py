"""The interpreter of pickles against Python's own, and the programs it must not carry out."""

from __future__ import annotations

import collections
import math
import os
import pickle
import struct
import time
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ckpt_tools.checkpoint import pickles
from ckpt_tools.checkpoint.inert import Blob, Global, Instance
from ckpt_tools.checkpoint.localfile import LocalFile
from ckpt_tools.checkpoint.pickles import unpickle
from ckpt_tools.checkpoint.region import Region
from ckpt_tools.checkpoint.torchtypes import TORCH_BUILDERS
from ckpt_tools.errors import FormatError


@pytest.fixture
def read(tmp_path):
    """`read(bytes)`: the value of the pickle."""

    def load(data: bytes, **how):
        (tmp_path / "x.pkl").write_bytes(data)
        return unpickle(Region.whole(LocalFile(tmp_path / "x.pkl")), builders=TORCH_BUILDERS, **how)

    return load


numbers = st.one_of(st.none(), st.booleans(), st.integers(-(2**62), 2**62), st.floats(allow_nan=False), st.text())
short = st.binary(max_size=255)
trees = st.recursive(
    numbers | short,
    lambda inner: (
        st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(st.text() | st.integers(-(2**63), 2**63 - 1), inner)
    ),
    max_leaves=30,
)


@settings(max_examples=150, deadline=None)
@given(tree=trees, protocol=st.integers(0, 5))
def test_plain_data_comes_out_as_python_reads_it(tmp_path_factory, tree, protocol):
    path = tmp_path_factory.getbasetemp() / "tree.pkl"
    path.write_bytes(pickle.dumps(tree, protocol))
    assert unpickle(Region.whole(LocalFile(path)), builders=TORCH_BUILDERS).value == tree


@pytest.mark.parametrize("protocol", range(6))
def test_every_kind_of_number(read, protocol):
    values = [0, 255, 256, 65_535, 65_536, -1, 2**31, -(2**31), 2**62, 10**30, -(10**30), 1.5, -0.0, math.inf, True]
    assert read(pickle.dumps(values, protocol)).value == values
    assert math.isnan(read(pickle.dumps(math.nan, protocol)).value)


@pytest.mark.parametrize("protocol", range(6))
def test_common_containers_become_plain(read, protocol):
    ordered = collections.OrderedDict([("b", 1), ("a", 2)])
    found = read(pickle.dumps([ordered, collections.defaultdict(list, {"x": [1]}), {3, 4}, Path("a/b")], protocol))
    assert list(found.value[0].items()) == [("b", 1), ("a", 2)]
    assert found.value[1:] == [{"x": [1]}, [3, 4], "a/b"]
    assert not found.unknown


def test_text_of_python_2_is_text_or_bytes(read):
    assert read(b"S'caf\\xe9\\n'\n.").value == b"caf\xe9\n"
    assert read(b"U\x03abc.").value == "abc"
    assert read(b"T\x03\0\0\0abc.").value == "abc"
    assert read(b"Vna\\u00efve\n.").value == "naïve"


def test_objects_of_unknown_classes_are_kept_and_named(read):
    class_and_state = b"\x80\x02cmodels.net\nNet\n)\x81}X\x01\x00\x00\x00wK\x05sb."
    found = read(class_and_state)
    assert (found.value.kind, found.value.fields) == ("models.net.Net", {"w": 5})
    assert found.unknown == {"models.net.Net"}


def test_a_shared_object_stays_one_and_a_cycle_is_no_trap(read):
    loop: list = [[1]]
    loop.append(loop[0])
    loop.append(loop)
    value = read(pickle.dumps(loop)).value
    assert value[0] is value[1] and value[2] is value


def test_long_byte_strings_stay_in_the_file(read, tmp_path):
    data = os.urandom(100_000)
    for made in (data, bytearray(data)):
        found = read(pickle.dumps({"a": made, "b": 1}, 5)).value
        blob = found["a"]
        assert isinstance(blob, Blob) and found["b"] == 1
        assert (tmp_path / "x.pkl").read_bytes()[blob.offset : blob.offset + blob.size] == data


class Payload:
    """What an attacker writes."""

    def __init__(self, function, *args):
        self.made = function, args

    def __reduce__(self):
        return self.made


@pytest.mark.parametrize("protocol", range(6))
def test_a_payload_is_data(read, tmp_path, protocol):
    canary = tmp_path / "canary"
    for function in (os.system, os.unlink, eval, exec, getattr, __import__, open):
        found = read(pickle.dumps(Payload(function, f"touch {canary}"), protocol)).value
        assert isinstance(found, Instance) and found.args == (f"touch {canary}",)
    assert not canary.exists()


def test_state_never_reaches_what_it_is_meant_for(read):
    before = TORCH_BUILDERS["collections.OrderedDict"].__defaults__
    # BUILD with a slot state sets attributes of whatever is on the stack in Python's own unpickler.
    assert read(b"ccollections\nOrderedDict\nN}X\x0c\x00\x00\x00__defaults__)s\x86b.").value == Global(
        "collections", "OrderedDict"
    )
    assert TORCH_BUILDERS["collections.OrderedDict"].__defaults__ is before


def long_name(count: int) -> bytes:
    return b"X" + struct.pack("<I", count) + b"a" * count


SHARED = b"](" + b"N" * 100_000 + b"eq\x00"  # one list of 100,000
HOSTILE = {
    "memo index of two thousand million": (b"Nr\xff\xff\xff\x7f.", None),
    "byte array of an exabyte": (b"\x80\x05\x96" + struct.pack("<Q", 2**60) + b".", "truncated"),
    "bytes of an exabyte": (b"\x80\x04\x8e" + struct.pack("<Q", 2**60) + b".", "truncated"),
    "text of four gigabytes": (b"X\xff\xff\xff\xffabc.", "truncated"),
    "number of two gigabytes": (b"\x8b\xff\xff\xff\x7f.", "truncated"),
    "number of a million digits": (b"I" + b"9" * 1_000_000 + b"\n.", "malformed"),
    "a line without an end": (b"c" + b"a" * 1_000_000, "malformed"),
    "marks without values": (b"(" * 100_000 + b".", "malformed"),
    "an empty stack": (b".", "malformed"),
    "a memo that is not there": (b"h\x05.", "malformed"),
    "an unknown instruction": (b"\xff.", "there is no instruction 0xff"),
    "a protocol to come": (b"\x80\x06N.", "newer than 5"),
    "a call of a number": (b"K\x01)R.", "no name"),
    "append to a number": (b"K\x01K\x02a.", "no list"),
    "item of a number": (b"K\x01K\x02K\x03s.", "no dict"),
    "odd number of items": (b"}(K\x01u.", "no dict"),
    "a key of 65 bits": (b"}\x8a\x09" + b"\xff" * 8 + b"\x00Ns.", "more than 64 bits"),
    "a key that is a list": (b"}]Ns.", "neither a text nor a number"),
    "a key of a hundred numbers": (b"}(" + b"K\x01" * 100 + b"tNs.", "tuple of something else"),
    "a key of long texts": (b"}" + long_name(1_000) + b"\x85Ns.", "tuple of something else"),
    "a name that is a number": (b"K\x01K\x02\x93.", "no text"),
    "persistent id": (b"K\x01Q.", "refers to something outside"),
    "extension code": (b"\x82\x01.", "there is no instruction"),
    "buffer outside": (b"\x97.", "there is no instruction"),
    "not UTF-8 in a name": (b"c\xff\n\xff\n.", "malformed"),
    "one list copied for ever": (
        SHARED + b"0" + b"cbuiltins\nlist\nq\x01" + b"h\x01h\x00\x85R0" * 100_000 + b".", "repeats itself too often"
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_programs_end_quickly_in_little_memory(read, case):
    data, message = HOSTILE[case]
    tracemalloc.start()
    begun = time.process_time()
    try:
        if message is None:
            assert read(data).value is None
        else:
            with pytest.raises(FormatError, match=message):
                read(data)
        assert tracemalloc.get_traced_memory()[1] < 200 * 2**20
    finally:
        tracemalloc.stop()
    assert time.process_time() - begun < 30


def test_instructions_are_counted(read, monkeypatch):
    monkeypatch.setattr(pickles, "MAX_INSTRUCTIONS", 1_000)
    assert len(read(b"(" + b"]" * 990 + b"l.").value) == 990
    with pytest.raises(FormatError, match="more than 1,000 instructions"):
        read(b"(" + b"]" * 1_000 + b"l.")


def test_keys_cannot_be_made_to_collide(read):
    """Tuples of -1 and -2 hash alike; a dict of them would take hours."""
    keys = b"".join(
        b"(" + b"".join(struct.pack("<bi", ord("J"), -1 - (i >> bit & 1)) for bit in range(12)) + b"tN"
        for i in range(4096)
    )
    begun = time.process_time()
    assert len(read(b"}(" + keys + b"u.").value) == 4096
    assert time.process_time() - begun < 5


def test_a_pickle_of_more_than_its_limit_is_not_read(read, tmp_path):
    with (tmp_path / "big.pkl").open("wb") as file:
        file.write(b"X" + struct.pack("<I", 2**31))
        file.truncate(2**32)
    with pytest.raises(FormatError, match="too large to be a list of tensors"):
        unpickle(Region.whole(LocalFile(tmp_path / "big.pkl")), builders={})


@settings(max_examples=500, deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_give_a_value_or_a_format_error(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "any.pkl"
    path.write_bytes(data)
    try:
        unpickle(Region.whole(LocalFile(path)), builders=TORCH_BUILDERS)
    except FormatError as error:
        assert str(path) in str(error)
