"""Folders that training frameworks write: recognised by their names, before any of their files is tried by itself."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection

from ..errors import CkptError, FormatError
from .checkpoint import Opened
from .dcp import INDEX, open_dcp
from .deepspeed import is_deepspeed, open_deepspeed
from .jsondata import read_small
from .location import Location
from .shards import check_inside, check_name
from .source import TensorSource

_INNER = re.compile(r"pytorch_model_fsdp(_\d+)?|model_weights|weights|model")
_LATEST, _MAX_LATEST = "latest", 1_000
_ORBAX = {"_METADATA", "_CHECKPOINT_METADATA", "manifest.ocdbt", "commit_success.txt", "ocdbt.process_0"}
_TENSORFLOW = re.compile(r"saved_model\.pb|.*\.data-\d{5}-of-\d{5}")


def open_parallel(
    folder: Location, names: Collection[str], open_source: Callable[[Location], TensorSource], part: str = ""
) -> Opened | None:
    """Return the weights in a folder of torch.distributed.checkpoint or DeepSpeed, None for any other folder.

    Raises FormatError for folders of formats that are known but not read.
    """
    inner = _inside(folder, names)
    if inner is not None:
        folder, names = inner, {path.name for path in inner.iterdir()}
    if INDEX in names:
        source = open_dcp(folder, part)
        return Opened([source], source.format)
    if is_deepspeed(names):
        return open_deepspeed(folder, names, open_source, part)
    if _ORBAX & set(names):
        raise FormatError(
            f"{folder} is an Orbax checkpoint (JAX), which is not read. Restore it with orbax and save its parameters "
            "with flax.serialization.to_bytes or safetensors.flax.save_file."
        )
    if any(_TENSORFLOW.fullmatch(name) for name in names):
        raise FormatError(
            f"{folder} is a TensorFlow checkpoint, which is not read. Load the model in Keras and save it with "
            "save_weights('model.weights.h5')."
        )
    return None


def _inside(folder: Location, names: Collection[str]) -> Location | None:
    """Return the folder within the folder that holds the weights: FSDP's, or what DeepSpeed's `latest` names."""
    found = [n for n in names if _INNER.fullmatch(n) and (folder / n / INDEX).is_file()]
    if len(found) == 1 and INDEX not in names:
        check_inside(folder, found[0])
        return folder / found[0]
    if _LATEST not in names:
        return None
    try:
        name = read_small(folder / _LATEST, _MAX_LATEST).decode().strip()
        check_name(folder / _LATEST, name)
        check_inside(folder, name)
    except (CkptError, UnicodeDecodeError):
        return None
    inner = folder / name
    return inner if inner.is_dir() and is_deepspeed([path.name for path in inner.iterdir()]) else None
