"""The tar archives of torch 0.1, made by hand after what torch reads of them, and torch's own reading as the oracle."""

from __future__ import annotations

import io
import pickle
import struct
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch

from ckpt_tools.checkpoint import open_checkpoint
from ckpt_tools.errors import FormatError

A, B = np.arange(12, dtype="<f4"), np.arange(5, dtype="<i8")


class Ref:
    """Stands for a tensor in the `pickle` member."""

    def __init__(self, key: int) -> None:
        self.key = key


class Pickler(pickle.Pickler):
    def persistent_id(self, thing):
        return str(thing.key) if isinstance(thing, Ref) else None


def storages(count: int = 2, views: object = ((9, 1, 2, 6),)) -> bytes:
    parts = [pickle.dumps(count, 2)]
    for key, kind, array in ((1, torch.FloatStorage, A), (2, torch.LongStorage, B)):
        parts += [pickle.dumps((key, "cpu", kind), 2), struct.pack("<q", array.size), array.tobytes()]
    return b"".join([*parts, pickle.dumps(list(views), 2)])


def tensors(rows: list[tuple[int, int, tuple[int, ...], tuple[int, ...], int]]) -> bytes:
    parts = [pickle.dumps(len(rows), 2)]
    for key, storage, shape, strides, offset in rows:
        numbers = struct.pack(f"<{2 * len(shape) + 1}q", *shape, *strides, offset)
        parts += [pickle.dumps((key, storage, torch.FloatTensor), 2), struct.pack("<ii", len(shape), 0), numbers]
    return b"".join(parts)


ROWS = [(11, 1, (3, 4), (4, 1), 0), (12, 1, (4, 3), (1, 4), 0), (13, 9, (2, 3), (3, 1), 0), (14, 2, (5,), (1,), 0)]


def archive(path: Path, **members: bytes) -> Path:
    made = io.BytesIO()
    Pickler(made, 2).dump({"a": Ref(11), "turned": Ref(12), "view": Ref(13), "ids": Ref(14)})
    members = {"sys_info": pickle.dumps({}), "pickle": made.getvalue(), "tensors": tensors(ROWS)} | members
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def test_as_torch_reads_it(tmp_path):
    path = archive(tmp_path / "model.tar", storages=storages())
    wanted = torch.load(path, weights_only=False)
    with open_checkpoint(path) as checkpoint:
        assert checkpoint.format == "torch 0.1 (tar)"
        assert set(checkpoint.tensors) == set(wanted)
        for name, tensor in wanted.items():
            np.testing.assert_array_equal(checkpoint.read(name), tensor.numpy())
        np.testing.assert_array_equal(checkpoint.read("view"), A[2:8].reshape(2, 3))


BROKEN = {
    "too many storages": ({"storages": storages(count=3)}, "not described by key, place and type"),
    "no number of storages": ({"storages": pickle.dumps("two")}, "without the number of its storages"),
    "a view outside": ({"storages": storages(views=[(9, 1, 10, 6)])}, "a view reaches outside its storage"),
    "a storage cut short": ({"storages": storages()[:-60]}, "malformed pickle|truncated"),
    "a tensor outside": ({"tensors": tensors([(11, 1, (3, 5), (5, 1), 0)])}, "needs 60 bytes; its storage has 48"),
    "an offset outside": ({"tensors": tensors([(11, 1, (3,), (1,), 2**40)])}, "its storage has 0"),
    "a negative stride": ({"tensors": tensors([(11, 1, (3,), (-1,), 4)])}, "no list of sizes"),
    "a tensor of no storage": ({"tensors": tensors([(11, 7, (3,), (1,), 0)])}, "not described by key, storage"),
    "a thousand axes": ({"tensors": tensors([(11, 1, (1,) * 1000, (1,) * 1000, 0)])}, "has 1000 axes"),
    "a reference to nothing": ({"tensors": tensors(ROWS[1:])}, "malformed pickle"),
    "no pickle of torch": ({"pickle": b"hello"}, "malformed pickle"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_archives(tmp_path, case):
    members, message = BROKEN[case]
    path = archive(tmp_path / "x.tar", **{"storages": storages(), **members})
    # Torch's pickler names only what is referred to, so drop the other tensors where one row is given.
    if "tensors" in members and case not in ("a reference to nothing", "a tensor of no storage", "a thousand axes"):
        made = io.BytesIO()
        Pickler(made, 2).dump({"a": Ref(11)})
        path = archive(tmp_path / "x.tar", **{"storages": storages(), **members, "pickle": made.getvalue()})
    with pytest.raises(FormatError, match=message):
        open_checkpoint(path)


def test_a_tar_of_other_files_is_named(tmp_path):
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        tar.addfile(tarfile.TarInfo("model/weights.pth"))
    with pytest.raises(FormatError, match=r"a tar archive of other files \(model/weights.pth\): unpack it"):
        open_checkpoint(tmp_path / "x.tar")


def test_a_size_that_is_none(tmp_path):
    path = archive(tmp_path / "x.tar", storages=storages())
    content = bytearray(path.read_bytes())
    content[124:135] = b"zzzzzzzzzzz"
    path.write_bytes(content)
    with pytest.raises(FormatError, match=r"damaged tar archive: .* is no size"):
        open_checkpoint(path)


def test_the_archives_of_the_reader_zoo(shared_data):
    folder = shared_data / "models" / "reader-zoo" / "reader" / "test_data"
    with open_checkpoint(folder / "tar_2d_tensor.tar") as checkpoint:
        assert checkpoint.read("matrix").ndim == 2
    with open_checkpoint(folder / "tar_multi_dtype.tar") as checkpoint:
        assert {name: info.dtype for name, info in checkpoint.tensors.items()} == {
            "float_tensor": "float32", "double_tensor": "float64", "int_tensor": "int64"
        }  # fmt: skip
        np.testing.assert_allclose(checkpoint.read("double_tensor"), [1.111, 2.222])
        assert checkpoint.read("int_tensor").tolist() == [10, 20, 30, 40]
