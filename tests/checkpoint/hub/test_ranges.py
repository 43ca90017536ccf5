"""What is asked of the servers: how many requests, which bytes, over how many connections."""

from __future__ import annotations

import json
import threading

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ckpt_tools.checkpoint import open_checkpoint, open_trajectory
from ckpt_tools.checkpoint.remote import pieces
from ckpt_tools.checkpoint.remote.pieces import GAP, JOINED, PIECE, Pieces, join
from ckpt_tools.errors import SourceError

from .conftest import Blob

RNG = np.random.default_rng(0)


def matrix(rows: int, columns: int = 512) -> np.ndarray:
    return RNG.standard_normal((rows, columns)).astype(np.float32)


def ranges(seen):
    """Return the (first, last) byte of each request."""
    return [tuple(map(int, s.range.removeprefix("bytes=").split("-"))) for s in seen]


def offsets(data: bytes) -> dict[str, tuple[int, int]]:
    """Return where each tensor of a safetensors file lies in the file."""
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    return {n: tuple(8 + length + at for at in e["data_offsets"]) for n, e in header.items() if n != "__metadata__"}


@pytest.fixture
def model(hub, packed):
    """Tensors of 128 KiB named a to h in one file; returns them and where they lie."""
    tensors = {name: matrix(64) for name in "abcdefgh"}
    data = packed(tensors)
    hub.commit("org/name", {"model.safetensors": data}, branch="main")
    return tensors, offsets(data)


def test_only_the_header_and_the_tensors_asked_for_travel(hub, model):
    tensors, places = model
    with open_checkpoint("hf://org/name") as checkpoint:
        assert ranges(hub.asked("cdn/")) == [(0, 2**16 - 1)]
        assert checkpoint.bytes_read == 0 and checkpoint.bytes_transferred == 2**16
        assert np.array_equal(checkpoint.read("d"), tensors["d"])
        assert ranges(hub.asked("cdn/"))[1:] == [(places["d"][0], places["d"][1] - 1)]
        assert checkpoint.bytes_read == tensors["d"].nbytes
        assert checkpoint.bytes_transferred == 2**16 + tensors["d"].nbytes
        assert np.array_equal(checkpoint.read("e", slice(3, 5)), tensors["e"][3:5])
        start = places["e"][0] + 3 * 2048
        assert ranges(hub.asked("cdn/"))[2:] == [(start, start + 2 * 2048 - 1)]


def test_the_address_of_the_content_is_asked_for_once(hub, model):
    with open_checkpoint("hf://org/name") as checkpoint:
        for name in "ceg":
            checkpoint.read(name)
    assert len(hub.asked("hub/org/name/resolve")) == 1 and len(hub.asked("cdn/")) == 4


def test_neighbours_that_were_announced_travel_together(hub, model):
    tensors, places = model
    with open_checkpoint("hf://org/name") as checkpoint:
        checkpoint.expect(["e", "d", "f", "h"])
        for name in "dhef":
            assert np.array_equal(checkpoint.read(name), tensors[name])
        expected = [(places["d"][0], places["f"][1] - 1), (places["h"][0], places["h"][1] - 1)]
        assert sorted(ranges(hub.asked("cdn/"))[1:]) == expected
        assert checkpoint.bytes_read == 4 * 2**17


def test_connections_are_kept(hub, packed):
    for step in range(10):
        hub.commit("org/name", {"model.safetensors": packed({"a": matrix(64) + step})}, branch=f"step{step}")
    trajectory = open_trajectory("hf://org/name@step*")
    for step in trajectory.steps:
        with trajectory.checkpoint(step) as checkpoint:
            checkpoint.read("a")
    assert len(hub.seen) > 40
    for server in ("hub", "cdn"):
        assert len({s.connection for s in hub.asked(f"{server}/")}) <= pieces.CONNECTIONS


def test_later_headers_are_asked_for_at_their_length(hub, packed):
    for step in range(3):
        hub.commit("org/name", {"model.safetensors": packed({"a": matrix(64) + step})}, branch=f"step{step}")
    trajectory = open_trajectory("hf://org/name@step*")
    for step in trajectory.steps:
        trajectory.checkpoint(step)
    assert [last + 1 for _, last in ranges(hub.asked("cdn/"))] == [2**16, 2**14, 2**14]


def test_a_long_header_takes_a_second_request_and_then_one(hub, packed):
    tensors = {f"layer.{i}.{'x' * 100}": np.full(1, i, np.float32) for i in range(1000)}
    for step in range(2):
        hub.commit("org/name", {"model.safetensors": packed({**tensors, "a": matrix(1) + step})}, branch=f"step{step}")
    trajectory = open_trajectory("hf://org/name@step*")
    length = 8 + int.from_bytes(trajectory.checkpoint(0)._sources[0].file.head(8), "little")
    assert length > 2**17
    assert ranges(hub.asked("cdn/")) == [(0, 2**16 - 1), (2**16, length - 1)]
    trajectory.checkpoint(1)
    assert ranges(hub.asked("cdn/"))[2:] == [(0, length - 1)]


def test_a_header_that_claims_too_much_is_not_fetched(hub):
    for length in (2**62, 2**26):
        claim = length.to_bytes(8, "little") + b"{" + b" " * 2**17
        hub.commit("org/name", {"model.safetensors": claim}, branch="main")
        with pytest.raises(SourceError, match="header"):
            open_checkpoint("hf://org/name")
    assert {last for _, last in ranges(hub.asked("cdn/"))} == {2**16 - 1}


def test_an_identical_shard_is_not_asked_for_its_header_again(hub, packed):
    shards = {"model-1-of-2.safetensors": packed({"a": matrix(64)})}
    index = json.dumps({"weight_map": {"a": "model-1-of-2.safetensors", "b": "model-2-of-2.safetensors"}}).encode()
    for step in range(3):
        files = {**shards, "model-2-of-2.safetensors": packed({"b": matrix(64) + step})}
        hub.commit("org/name", {**files, "model.safetensors.index.json": index}, branch=f"step{step}")
    trajectory = open_trajectory("hf://org/name@step*")
    hashes = []
    for step in trajectory.steps:
        with trajectory.checkpoint(step) as checkpoint:
            assert set(checkpoint.tensors) == {"a", "b"}
            hashes.append(checkpoint.metadata["sha256"])
    assert len(hub.asked("cdn/")) == 1 + 3
    assert len({h["model-1-of-2.safetensors"] for h in hashes}) == 1
    assert len(hub.asked("resolve-cache.*index")) == 1  # the same file in git, too


def test_a_gguf_file_is_read_in_ranges(hub, tmp_path):
    import gguf

    writer = gguf.GGUFWriter(tmp_path / "x.gguf", "llama")
    writer.add_token_list([f"token {i}" for i in range(30_000)])  # a header of 540 KB, read in small steps
    tensors = {name: matrix(256) for name in "abcdefgh"}
    for name, values in tensors.items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    hub.commit("org/name", {"x.gguf": Blob((tmp_path / "x.gguf").read_bytes())}, branch="main")
    with open_checkpoint("hf://org/name") as checkpoint:
        assert checkpoint.format.startswith("GGUF")
        opened = len(hub.asked("cdn/"))
        assert np.array_equal(checkpoint.read("c"), tensors["c"])
    assert opened <= 12 and hub.asked("cdn/")[-1].sent == tensors["c"].nbytes


def test_a_large_tensor_comes_over_several_connections_into_its_place(hub, packed):
    large = matrix(5 * 4096, 512)  # 40 MiB
    hub.commit("org/name", {"model.safetensors": packed({"x": large, "y": matrix(1)})}, branch="main")
    with open_checkpoint("hf://org/name") as checkpoint:
        assert np.array_equal(checkpoint.read("x"), large)
    asked = hub.asked("cdn/")[1:]
    assert len(asked) == 5 and len({s.connection for s in asked}) > 1
    assert sum(s.sent for s in asked) == large.nbytes


def test_a_large_half_precision_tensor_is_streamed_ahead(hub, packed):
    large = matrix(24 * 1024, 512).astype(np.float16)  # 24 MiB, decoded in blocks of 2 MiB
    hub.commit("org/name", {"model.safetensors": packed({"x": large, "y": matrix(1)})}, branch="main")
    with open_checkpoint("hf://org/name", hashing=True) as checkpoint:
        assert np.array_equal(checkpoint.read("x"), large.astype(np.float32))
        assert checkpoint.digest("x") == __import__("hashlib").sha256(large.tobytes()).hexdigest()
        rows = [checkpoint.read("x", slice(at, at + 8192)) for at in range(0, 24 * 1024, 8192)]
        assert np.array_equal(np.concatenate(rows), large)
    first = hub.asked("cdn/")[1:4]
    assert [last - begin + 1 for begin, last in ranges(first)] == [PIECE] * 3


def test_a_closed_checkpoint_reads_again(hub, model):
    tensors, _ = model
    checkpoint = open_checkpoint("hf://org/name")
    checkpoint.expect(tensors)
    for _ in range(2):
        assert np.array_equal(checkpoint.read("a"), tensors["a"])
        checkpoint.close()


patient = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
spans = st.lists(st.tuples(st.integers(0, 2**25), st.integers(0, 2**22)), max_size=20)


@patient
@given(spans)
def test_pieces_cover_what_was_announced_and_little_more(wanted):
    found = join(wanted)
    assert found == sorted(found) and all(0 < stop - start <= max(PIECE, JOINED) for start, stop in found)
    covered = 0
    for start, stop in found:
        covered += stop - start
    needed = sum(count for _, count in wanted)
    assert covered <= needed + GAP * len(wanted)
    for offset, count in wanted:
        at = offset
        for start, stop in found:
            if start <= at < stop:
                at = max(at, stop)
        assert at >= offset + count or count == 0


@patient
@given(spans, st.lists(st.tuples(st.integers(0, 2**20), st.integers(0, 2**16)), max_size=8))
def test_whatever_is_announced_reads_are_exact(announced, reads):
    content = np.arange(2**21, dtype=np.uint32).view(np.uint8)
    asked: list[int] = []

    def fetch(offset: int, buffer: memoryview, stop: threading.Event) -> None:
        asked.append(len(buffer))
        buffer[:] = content[offset : offset + len(buffer)].tobytes()

    held = Pieces(fetch)
    held.expect((offset % 2**20, count % 2**19) for offset, count in announced)
    for offset, count in reads:
        buffer = bytearray(count)
        held.read_into(offset, memoryview(buffer))
        assert bytes(buffer) == content[offset : offset + count].tobytes()
