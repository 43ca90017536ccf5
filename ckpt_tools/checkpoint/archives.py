"""Zip archives, told apart by the records in them."""

from __future__ import annotations

from collections.abc import Mapping

from ..errors import SourceError, nearest
from .keras import open_keras_zip
from .localfile import ByteFile
from .magic import UnknownFormat
from .npz import open_npz
from .region import Region
from .source import Skip, TensorSource
from .torchzip import find_data, open_torch_zip
from .ziprecords import Record, is_zip, locate, read_directory

__all__ = ["is_zip", "open_archive"]


def open_archive(file: ByteFile, head: bytes = b"", part: str = "") -> TensorSource:
    """Return the tensors of a zip archive: PyTorch's, TorchScript, npz, Keras or Stable-Baselines3.

    Raises UnknownFormat, naming a few records, for any other.
    """
    region = Region.whole(file)
    records = read_directory(region)
    if find_data(records) is not None:
        return open_torch_zip(region, records, part)
    if "model.weights.h5" in records:
        return open_keras_zip(region, records, part)
    if records and all(name.endswith(".npy") for name in records):
        return open_npz(region, records, part)
    inner = [name for name in records if name.endswith((".pth", ".pt")) and "/" not in name]
    if inner and "data" in records:
        return _open_baselines(region, records, inner, part)
    inside = ", ".join(sorted(records)[:4])
    raise UnknownFormat(f"{file.path} is a zip archive of no known kind ({inside or 'empty'}); unpack it if it is one.")


def _open_baselines(region: Region, records: Mapping[str, Record], inner: list[str], part: str) -> TensorSource:
    """Stable-Baselines3: `policy.pth` beside the optimizers' files, each an archive of its own."""
    stems = {name.rpartition(".")[0]: name for name in inner}
    chosen = part or ("policy" if "policy" in stems else min(stems))
    if chosen not in stems:
        raise SourceError(f"{region.path} has no part {part!r}.{nearest(part, stems)}")
    source = open_torch_zip(locate(region, records[stems[chosen]]))
    source.format = "Stable-Baselines3"
    rest = (Skip(name, _beside(stem)) for stem, name in stems.items() if stem != chosen)
    source.skipped = [*source.skipped, *rest]
    return source


def _beside(stem: str) -> str:
    return "optimizer state, not weights" if "optim" in stem else f"beside the policy; part {stem!r} opens it"
