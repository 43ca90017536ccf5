"""Archives and pickles that attack whoever opens them. Each must end in one clear error, early, and run nothing."""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
import tarfile
import time
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from ckpt_tools.checkpoint import open_checkpoint
from ckpt_tools.errors import CkptError, FormatError

MEMORY = 32 * 2**20


class Payload:
    """Runs a command in whoever unpickles it naively."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self):
        return os.system, (f"touch {self.canary}",)


class StatePayload:
    """Hides the command in the state of an object that looks harmless."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self):
        return dict, (), {"hook": Payload(self.canary)}


def refuse(path: Path, message: str, **how) -> None:
    """Opening must raise a FormatError that names the file, in little memory and time."""
    begun = time.process_time()
    tracemalloc.start()
    try:
        with pytest.raises(CkptError, match=message) as caught:
            open_checkpoint(path, **how)
        assert tracemalloc.get_traced_memory()[1] < MEMORY
    finally:
        tracemalloc.stop()
    assert time.process_time() - begun < 10
    assert str(path if path.is_file() else path.name) in str(caught.value) and len(str(caught.value)) < 700 + len(
        str(path)
    )


def zipped(path: Path, data: bytes, records: dict[str, bytes] | None = None, method: int = zipfile.ZIP_STORED) -> Path:
    """A torch archive with the given pickle and storages."""
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr("x/data.pkl", data)
        for name, content in (records or {"x/data/0": b"\0" * 16}).items():
            archive.writestr(name, content)
    return path


def tensor(
    size: tuple = (4,), stride: tuple = (1,), first: int = 0, count: int = 4, key: str = "0", kind: str = "Float"
) -> bytes:
    """The pickle of `{"w": tensor}` with whatever numbers one likes."""

    def put(value: object) -> bytes:
        return pickle.dumps(value, 2)[2:-1]

    identity = b"(" + put("storage") + f"ctorch\n{kind}Storage\n".encode() + put(key) + put("cpu") + put(count) + b"tQ"
    call = b"ctorch._utils\n_rebuild_tensor_v2\n(" + identity + put(first) + put(size) + put(stride) + b"\x89}tR"
    return b"\x80\x02}" + put("w") + call + b"s."


@pytest.mark.parametrize("kind", ["zip", "legacy", "pickle", "module", "tar", "baselines", "module in zip"])
def test_nothing_is_run(tmp_path, kind):
    canary, path = tmp_path / "canary", tmp_path / "x.pt"
    value = {"model": {"w": torch.ones(2)}, "extra": Payload(canary), "state": StatePayload(canary)}
    if kind in ("zip", "legacy"):
        torch.save(value, path, _use_new_zipfile_serialization=kind == "zip")
    elif kind == "pickle":
        path.write_bytes(pickle.dumps({"model": {"w": np.ones(2)}, "extra": Payload(canary)}))
    elif kind == "module":
        # The persistent id of legacy files has a class and its source code.
        content = (
            b"(" + pickle.dumps("module", 2)[2:-1] + b"cos\nsystem\nNNtQ(" + pickle.dumps(str(canary), 2)[2:-1] + b"tR."
        )
        torch.save({"model": {"w": torch.ones(2)}}, path, _use_new_zipfile_serialization=False)
        whole = path.read_bytes()
        at = whole.index(b"\x80\x02}q\x00X\x05\x00\x00\x00model")
        path.write_bytes(whole[:at] + b"\x80\x02" + content + whole[at:])
    elif kind == "tar":
        with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
            for name in ("pickle", "storages"):
                content = pickle.dumps(Payload(canary), 2)
                info = tarfile.TarInfo(name)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    elif kind == "baselines":
        made = io.BytesIO()
        torch.save(value, made)
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("data", pickle.dumps(Payload(canary)))
            archive.writestr("policy.pth", made.getvalue())
    else:
        zipped(
            path,
            b"("
            + pickle.dumps("module", 2)[2:-1]
            + b"cos\nsystem\nNNtQ("
            + pickle.dumps(str(canary), 2)[2:-1]
            + b"tR.",
        )
    try:
        with open_checkpoint(path) as checkpoint:
            assert checkpoint.read("w").sum() == 2
            assert any("system" in skip.name for skip in checkpoint.skipped)
    except FormatError:
        assert kind in ("tar", "module", "module in zip")
    assert not canary.exists()


CLAIMS = {
    "more elements than the record": (dict(count=5), "storage '0' claims 20 bytes, its record has 16"),
    "2^61 elements": (dict(count=2**61), "claims 9,223,372,036,854,775,808 bytes"),
    "a negative number of elements": (dict(count=-1), "claims -4 bytes"),
    "wider elements than the record": (dict(kind="Double", count=4), "claims 32 bytes"),
    "a view beyond the storage": (dict(size=(5,)), "tensor 'w' needs 20 bytes; its storage has 16"),
    "strides beyond the storage": (dict(size=(2, 2), stride=(3, 1)), "needs 20 bytes; its storage has 16"),
    "a stride of 2^59": (dict(size=(2,), stride=(2**59,)), "its storage has 16"),
    "a stride of 2^63": (dict(size=(2,), stride=(2**63,)), "no list of sizes"),
    "an offset beyond the storage": (dict(first=1), "needs 16 bytes; its storage has 12"),
    "an offset of 2^62": (dict(first=2**62), "begins at element"),
    "a negative offset": (dict(first=-1), "begins at element -1"),
    "a negative size": (dict(size=(-4,)), "no list of sizes"),
    "a negative stride": (dict(stride=(-1,), first=3), "no list of sizes"),
    "a size that wraps": (dict(size=(2**32, 2**32), stride=(0, 0)), "too large for an array"),
    "a size of text": (dict(size=("4",)), "no list of sizes"),
    "a size of True": (dict(size=(True,)), "no list of sizes"),
    "an offset of text": (dict(first="0"), "begins at element '0'"),
    "fewer strides than sizes": (dict(size=(2, 2)), "no list of sizes"),
    "100 dimensions": (dict(size=(1,) * 100, stride=(1,) * 100), "arrays have at most 64"),
    "a record that is not there": (dict(key="1"), "has no record 'x/data/1', which a tensor needs"),
    "a record elsewhere": (dict(key="../../../etc/passwd"), "has no record 'x/data/../../../etc/passwd'"),
    "4 TiB of one number": (dict(size=(2**20, 2**20), stride=(0, 0)), "are 16 stored ones repeated"),
    "an unknown storage": (dict(kind="Evil"), "a storage is not described"),
}


@pytest.mark.parametrize("case", CLAIMS)
def test_claims_are_checked_against_the_record(tmp_path, case):
    claim, message = CLAIMS[case]
    refuse(zipped(tmp_path / "x.pt", tensor(**claim)), message)


def test_the_untouched_pickle_is_fine(tmp_path):
    with open_checkpoint(zipped(tmp_path / "x.pt", tensor())) as checkpoint:
        assert checkpoint.read("w").tolist() == [0.0] * 4


def call(name: str, *args: object) -> bytes:
    module, _, function = name.rpartition(".")
    return f"c{module}\n{function}\n".encode() + pickle.dumps(args, 2)[2:-1] + b"R"


MALFORMED = {
    "a tensor of texts": (call("torch._utils._rebuild_tensor_v2", "a", 0, (1,), (1,)), "a tensor is malformed"),
    "a tensor of nothing": (call("torch._utils._rebuild_tensor_v2"), "a tensor is malformed"),
    "a parameter of nothing": (call("torch._utils._rebuild_parameter"), "a parameter without a tensor"),
    "a subclass of nothing": (call("torch._tensor._rebuild_from_type_v2", 1), "a tensor of a subclass is malformed"),
    "a dict of single things": (call("collections.OrderedDict", [("a",)]), "an ordered dict is malformed"),
    "a dict of lists": (call("collections.OrderedDict", [([], 1)]), "an ordered dict is malformed"),
    "bytes in an odd code": (call("_codecs.encode", "a", "rot13"), "a byte string is encoded in an unusual way"),
    "a numpy array from a text": (call("numpy.core.numeric._frombuffer", "x"), "the buffer of a numpy array"),
    "a numpy scalar of nothing": (call("numpy.core.multiarray.scalar"), "a numpy scalar that is malformed"),
    "a state that is none": (call("numpy.core.multiarray._reconstruct") + b"K\x01b", "the state of a numpy array"),
    "a dtype's state": (call("numpy.dtype", "f4") + b"K\x01b", "the state of a numpy dtype"),
    "a storage of odd numbers": (b"(X\x07\0\0\0storageK\x01K\x02tQ", "a storage is not described"),
    "an object with keywords": (b"cx\ny\n)}\x92", "holds no tensors of a model"),
    "a jax array of nothing": (call("jax._src.array._reconstruct_array", 1), "a jax array is malformed"),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_malformed_calls(tmp_path, case):
    value, message = MALFORMED[case]
    refuse(zipped(tmp_path / "x.pt", b"\x80\x02}X\x01\0\0\0w" + value + b"s."), message)


def test_compressed_records_are_refused(tmp_path):
    refuse(
        zipped(tmp_path / "x.pt", tensor(), method=zipfile.ZIP_DEFLATED), "record 'x/data.pkl' is deflated; only stored"
    )


def test_a_zip_bomb_is_not_inflated(tmp_path):
    """Half a megabyte that torch.load turns into half a gigabyte."""
    with zipfile.ZipFile(tmp_path / "x.pt", "w") as archive:
        archive.writestr("x/data.pkl", tensor(count=2**27, size=(2**27,)))
        info = zipfile.ZipInfo("x/data/0")
        info.compress_type = zipfile.ZIP_DEFLATED
        with archive.open(info, "w") as record:
            for _ in range(512):
                record.write(b"\0" * 2**20)
    assert (tmp_path / "x.pt").stat().st_size < 2**20
    refuse(tmp_path / "x.pt", "record 'x/data/0' is deflated; only stored records are read")


def test_a_pickle_of_a_gigabyte_is_not_read(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.pt", "w") as archive, archive.open("x/data.pkl", "w") as record:
        record.write(b"X" + struct.pack("<I", 2**30))
        for _ in range(80):
            record.write(b"a" * 2**20)
    refuse(tmp_path / "x.pt", "truncated or damaged|too large to be a list of tensors")


def test_laughs_by_the_thousand_million(tmp_path):
    node: object = {"w": 1}
    for _ in range(60):
        node = [node, node]
    torch.save({"model": {"w": torch.ones(2)}, "config": {"deep": node}, "laughs": node}, tmp_path / "x.pt")
    with open_checkpoint(tmp_path / "x.pt") as checkpoint:
        assert checkpoint.read("w").sum() == 2 and len(json.dumps(checkpoint.config)) < 10**6
    tree: object = {"w": torch.ones(2)}
    for _ in range(25):
        tree = {"a": tree, "b": tree}
    torch.save(tree, tmp_path / "y.pt")
    with pytest.raises(FormatError, match=r"hold more than|more than 200,000 tensors"):
        open_checkpoint(tmp_path / "y.pt")


def directory_edit(edit: Callable[[bytearray, int, int], None]) -> Callable[[Path], None]:
    """An edit of a good archive: gets its bytes, where the directory begins, and where the end record does."""

    def apply(path: Path) -> None:
        content = bytearray(zipped(path, tensor()).read_bytes())
        edit(content, content.index(b"PK\x01\x02"), content.rindex(b"PK\x05\x06"))
        path.write_bytes(content)

    return apply


def put(at: str, offset: int, code: str, value: int) -> Callable[[Path], None]:
    def edit(content: bytearray, directory: int, end: int) -> None:
        struct.pack_into(code, content, (directory if at == "entry" else end) + offset, value)

    return directory_edit(edit)


def rename_second(content: bytearray, directory: int, end: int) -> None:
    second = content.index(b"PK\x01\x02", directory + 4)
    size = struct.unpack_from("<H", content, directory + 28)[0]
    content[second + 28 : second + 30] = struct.pack("<H", size)
    content[second + 46 : second + 54] = b"x/data.p"
    content[second + 54 : second + 54] = b"kl"
    struct.pack_into("<I", content, end + 2 + 12, struct.unpack_from("<I", content, end + 2 + 12)[0] + 2)


def swap_local_name(content: bytearray, directory: int, end: int) -> None:
    struct.pack_into("<H", content, 26, 3)


ARCHIVES = {
    "directory beyond the file": (put("end", 16, "<I", 2**31), "truncated or damaged"),
    "directory of 4 GiB": (put("end", 12, "<I", 2**32 - 2), "claims 2 records, 4,294,967,294 bytes"),
    "65,000 records": (put("end", 10, "<H", 65_000), "its directory breaks off"),
    "a directory elsewhere": (put("end", 16, "<I", 0), "its directory breaks off"),
    "a record beyond the file": (put("entry", 42, "<I", 2**31), "truncated or damaged"),
    "a record of 2 GiB": (put("entry", 20, "<Q", 2**31 << 32 | 2**31), "truncated or damaged"),
    "a record of two sizes": (put("entry", 24, "<I", 5), "is stored; only stored records"),
    "a record on top of another": (put("entry", 42, "<I", 8), "is not where it should be"),
    "encrypted": (put("entry", 8, "<H", 1), "is encrypted; only stored"),
    "an unknown method": (put("entry", 10, "<H", 77), "is compressed; only stored"),
    "a name twice": (directory_edit(rename_second), "twice|breaks off"),
    "another name in front of the record": (directory_edit(swap_local_name), "is not where it should be"),
}


@pytest.mark.parametrize("case", ARCHIVES)
def test_damaged_archives(tmp_path, case):
    spoil, message = ARCHIVES[case]
    spoil(tmp_path / "x.pt")
    refuse(tmp_path / "x.pt", message)


def test_a_directory_of_64_bits_that_lies(tmp_path):
    content = zipped(tmp_path / "x.pt", tensor()).read_bytes()
    end = content.rindex(b"PK\x05\x06")
    for count, size, offset, message in (
        (2**62, 100, 0, "claims 4,611,686,018,427,387,904 records"), (2, 2**40, 0, "claims 2 records"),
        (2, 100, 2**63, "truncated"),
    ):  # fmt: skip
        wide = b"PK\x06\x06" + struct.pack("<QHHIIQQQQ", 44, 45, 45, 0, 0, count, count, size, offset)
        locator = b"PK\x06\x07" + struct.pack("<IQI", 0, end, 1)
        (tmp_path / "y.pt").write_bytes(content[:end] + wide + locator + content[end:])
        refuse(tmp_path / "y.pt", message)
    (tmp_path / "z.pt").write_bytes(content[:end] + b"PK\x06\x07" + struct.pack("<IQI", 0, 5, 1) + content[end:])
    refuse(tmp_path / "z.pt", "its 64-bit end is not where it should be")


def test_an_index_of_bin_shards_stays_in_its_folder(tmp_path):
    torch.save({"w": torch.ones(2)}, tmp_path / "secret.bin")
    folder = tmp_path / "model"
    folder.mkdir()
    for shard in ("../secret.bin", "/etc/hostname", "a\\b", "C:x", "..", "a\0b"):
        (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": {"w": shard}}))
        refuse(folder, "a shard must be the plain name of a file beside it")
    os.symlink(tmp_path / "secret.bin", folder / "linked.bin")
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": {"w": "linked.bin"}}))
    refuse(folder, "a link that leaves its folder")


def test_shards_of_bin_files(tmp_path):
    torch.save({"a": torch.ones(2), "b": torch.ones(3)}, tmp_path / "pytorch_model-00001-of-00002.bin")
    torch.save({"c": torch.zeros(4)}, tmp_path / "pytorch_model-00002-of-00002.bin")
    names = {"a": 1, "b": 1, "c": 2}
    index = {"weight_map": {name: f"pytorch_model-0000{n}-of-00002.bin" for name, n in names.items()}}
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    with open_checkpoint(tmp_path) as checkpoint:
        assert checkpoint.format == "sharded torch" and set(checkpoint.tensors) == set(names)
        assert checkpoint.read("c").tolist() == [0.0] * 4
    (tmp_path / "pytorch_model-00002-of-00002.bin").unlink()
    refuse(tmp_path, "1 of 2 shards missing")


def test_a_legacy_file_that_lies(tmp_path):
    torch.save({"w": torch.arange(4.0)}, tmp_path / "x.pt", _use_new_zipfile_serialization=False)
    whole = (tmp_path / "x.pt").read_bytes()
    at = len(whole) - 24  # the number of elements, then four of them
    for count in (5, 2**61, -1):
        (tmp_path / "y.pt").write_bytes(whole[:at] + struct.pack("<q", count) + whole[at + 8 :])
        refuse(tmp_path / "y.pt", f"has {count:,} elements, the tensors say 4")
    for end in range(20, len(whole), 7):
        (tmp_path / "y.pt").write_bytes(whole[:end])
        refuse(tmp_path / "y.pt", "truncated|malformed|missing")


@pytest.mark.parametrize(
    ("view", "message"),
    [
        (("v", 1, 3), ""),
        (("v", 2, 3), "outside its storage"),
        (("v", -1, 2), "malformed"),
        (("v", 0, 2**62), "malformed"),
    ],
)
def test_views_of_legacy_storages(tmp_path, view, message):
    """Before 0.4, storages that were parts of others said which part."""
    put = [pickle.dumps(value, 2) for value in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})]
    whole = tensor(size=(view[2],) if not message else (1,)).replace(b"tQ", pickle.dumps(view, 2)[2:-1] + b"tQ")
    tail = pickle.dumps(["0"], 2) + struct.pack("<q", 4) + np.arange(4, dtype="<f4").tobytes()
    (tmp_path / "x.pt").write_bytes(b"".join([*put, whole, tail]))
    if message:
        refuse(tmp_path / "x.pt", message)
        return
    with open_checkpoint(tmp_path / "x.pt") as checkpoint:
        assert checkpoint.read("w").tolist() == [1.0, 2.0, 3.0]


def test_a_name_is_only_a_name(tmp_path):
    name = "../../etc/passwd\n\x1b[31m"
    torch.save({name: torch.ones(2)}, tmp_path / "x.pt")
    with open_checkpoint(tmp_path / "x.pt") as checkpoint:
        assert checkpoint.read(name).sum() == 2
    torch.save({"a\ud800": torch.ones(2), "b" * 2_000: torch.ones(1)}, tmp_path / "y.pt")
    with pytest.raises(FormatError, match="more than 1,000 characters"):
        open_checkpoint(tmp_path / "y.pt")
    torch.save({"a\ud800": torch.ones(2)}, tmp_path / "y.pt")
    with open_checkpoint(tmp_path / "y.pt") as checkpoint:
        assert "".join(checkpoint.tensors).encode()
