"""PyTorch's tensors, parameters and containers inside a pickle, as data.

A tensor is pickled as a call of `torch._utils._rebuild_tensor_v2(storage, offset, size, stride, ...)`, its storage as a
persistent id; only strided tensors are read. Whatever else a checkpoint may hold beside tensors (a path, an
`argparse.Namespace`, a whole module) becomes plain data or an inert `Instance`.
"""

from __future__ import annotations

from typing import Any

from .dtypes import ITEMSIZE
from .inert import Blob, Builder, Global, Instance
from .leaves import Leaf, Storage, StoredTensor, Unreadable
from .numpytypes import NUMPY_BUILDERS, NumpyArray

_STORAGES = {
    "Double": "float64", "Float": "float32", "Half": "float16", "BFloat16": "bfloat16", "Long": "int64",
    "Int": "int32", "Short": "int16", "Char": "int8", "Byte": "uint8", "Bool": "bool", "ComplexDouble": "complex128",
    "ComplexFloat": "complex64", "QInt8": "qint8", "QUInt8": "quint8", "QInt32": "qint32", "QUInt4x2": "quint4x2",
    "QUInt2x4": "quint2x4", "Untyped": "", "Typed": "",
}  # fmt: skip
_QUANTISED = {"qint8": 1, "quint8": 1, "qint32": 4, "quint4x2": 1, "quint2x4": 1}
_ALIASES = {
    "float": "float32", "double": "float64", "half": "float16", "long": "int64", "int": "int32", "short": "int16",
    "cfloat": "complex64", "cdouble": "complex128",
}  # fmt: skip


def storage_dtype(kind: Any) -> str | None:
    """Return the element type of a storage class (`torch.FloatStorage`), "" for untyped, None for no such class."""
    if isinstance(kind, Global) and kind.name.endswith("Storage") and kind.module.startswith("torch"):
        return _STORAGES.get(kind.name.removesuffix("Storage"))
    return None


def itemsize(dtype: str) -> int:
    """Return the bytes of an element; 1 for an untyped storage, whose size is counted in bytes."""
    return ITEMSIZE.get(dtype) or _QUANTISED.get(dtype, 1)


def tensor_dtype(name: Any) -> str:
    """Return the name of a dtype that the pickle refers to as `torch.float32`."""
    text = name.name if isinstance(name, Global) else "unknown"
    return _ALIASES.get(text, text)


def _tensor(name: str, args: tuple[Any, ...]) -> Any:
    match args:
        case (Storage() as storage, first, tuple() as shape, tuple() as strides, *rest):
            dtype = tensor_dtype(rest[2]) if name.endswith("_v3") and len(rest) > 2 else storage.dtype
            if not dtype:
                return Unreadable("a view of bytes without a dtype")
            return StoredTensor(dtype, shape, strides, first, itemsize(dtype), storage)
        case (Leaf() as unread, *_):
            return unread
    raise ValueError("a tensor is malformed")


def _first_leaf(name: str, args: tuple[Any, ...]) -> Any:
    """A parameter, or a tensor that was moved: the tensor it is made of."""
    if args and isinstance(args[0], Leaf):
        return args[0]
    return Unreadable("a parameter without a tensor")


def _from_type(name: str, args: tuple[Any, ...]) -> Any:
    """A tensor of a subclass: `(rebuild, class, arguments, state)`."""
    match args:
        case (Global() as rebuild, kind, tuple() as inner, *_):
            build = TORCH_BUILDERS.get(str(rebuild))
            made = build(str(rebuild), inner) if build in _PLAIN else None
            return made if isinstance(made, Leaf) else Unreadable(f"a tensor of class {str(kind)[:80]}")
    raise ValueError("a tensor of a subclass is malformed")


def _refused(reason: str) -> Builder:
    return lambda name, args: Unreadable(reason)


def _dict(name: str, args: tuple[Any, ...]) -> Any:
    if args and isinstance(args[0], dict):
        return dict(args[0])
    pairs = args[0] if args and isinstance(args[0], list) else []
    if not all(isinstance(pair, (tuple, list)) and len(pair) == 2 and _is_name(pair[0]) for pair in pairs):
        raise ValueError("an ordered dict is malformed")
    return dict(pairs)


def _is_name(key: Any) -> bool:
    return isinstance(key, (str, bytes)) or (type(key) is int and abs(key) < 2**62)


def _list(name: str, args: tuple[Any, ...]) -> Any:
    return list(args[0]) if args and isinstance(args[0], (list, tuple)) else []


def _size(name: str, args: tuple[Any, ...]) -> Any:
    return tuple(args[0]) if args and isinstance(args[0], (list, tuple)) else ()


def _encode(name: str, args: tuple[Any, ...]) -> Any:
    """`_codecs.encode`: how protocol 2 writes a byte string."""
    if args and isinstance(args[0], str) and args[1:] in ((), ("latin1",), ("latin-1",)):
        return args[0].encode("latin-1")
    if len(args) == 2 and isinstance(args[0], str) and args[1] in ("utf-8", "utf8", "ascii"):
        return args[0].encode()
    raise ValueError("a byte string is encoded in an unusual way")


def _bytearray(name: str, args: tuple[Any, ...]) -> Any:
    return args[0] if len(args) == 1 and isinstance(args[0], (bytes, Blob)) else _encode(name, args) if args else b""


def _path(name: str, args: tuple[Any, ...]) -> Any:
    return "/".join(part for part in args if isinstance(part, str)).replace("//", "/")


def _text(name: str, args: tuple[Any, ...]) -> Any:
    return str(args[0]) if args and isinstance(args[0], (str, int)) else name


def _plain_object(name: str, args: tuple[Any, ...]) -> Any:
    return Instance(name, args)


def _reconstructor(name: str, args: tuple[Any, ...]) -> Any:
    """`copyreg._reconstructor(class, base, state)`: protocols 0 and 1 make every object so."""
    return Instance(str(args[0]) if args and isinstance(args[0], Global) else name, ())


def _persistent_object(name: str, args: tuple[Any, ...]) -> Any:
    """StyleGAN's `persistence`: a class with its source, and the state of the module."""
    facts = args[0] if args and isinstance(args[0], dict) else {}
    return Instance(f"{name}:{str(facts.get('class_name'))[:80]}", (), facts.get("state"))


def _constant(name: str, args: tuple[Any, ...]) -> Any:
    return args[0] if args and type(args[0]) in (int, float, str, bool) else None


_PLAIN: tuple[Builder, ...] = (_tensor, _first_leaf)
_UTILS = "torch._utils._rebuild"
TORCH_BUILDERS: dict[str, Builder] = {
    **NUMPY_BUILDERS,
    f"{_UTILS}_tensor": _tensor,
    f"{_UTILS}_tensor_v2": _tensor,
    f"{_UTILS}_tensor_v3": _tensor,
    f"{_UTILS}_parameter": _first_leaf,
    f"{_UTILS}_parameter_with_state": _first_leaf,
    f"{_UTILS}_device_tensor_from_cpu_tensor": _first_leaf,
    f"{_UTILS}_device_tensor_from_numpy": _first_leaf,
    f"{_UTILS}_xla_tensor": _first_leaf,
    f"{_UTILS}_sparse_tensor": _refused("a sparse tensor: its indices are not checked, save it dense"),
    f"{_UTILS}_sparse_csr_tensor": _refused("a sparse tensor: its indices are not checked, save it dense"),
    f"{_UTILS}_nested_tensor": _refused("a nested tensor: it has no shape"),
    f"{_UTILS}_qtensor": _refused("quantised integers (torch qint): call .dequantize() before saving"),
    f"{_UTILS}_meta_tensor_no_storage": _refused("a tensor on the meta device: it was saved without its numbers"),
    f"{_UTILS}_wrapper_subclass": _refused("a wrapper around other tensors (such as a DTensor): save the full tensor"),
    "torch._tensor._rebuild_from_type_v2": _from_type,
    "torch._tensor._rebuild_from_type": _from_type,
    "torch.nn.parameter.Parameter": _first_leaf,
    "torch.Size": _size,
    "torch.device": _text,
    "torch.serialization._get_layout": _text,
    "collections.OrderedDict": _dict,
    "collections.defaultdict": _dict,
    "collections.Counter": _dict,
    "collections.deque": _list,
    "builtins.dict": _dict,
    "builtins.list": _list,
    "builtins.set": _list,
    "builtins.frozenset": _list,
    "builtins.tuple": _size,
    "builtins.bytearray": _bytearray,
    "builtins.bytes": _bytearray,
    "builtins.int": _constant,
    "builtins.float": _constant,
    "builtins.str": _constant,
    "builtins.bool": _constant,
    "_codecs.encode": _encode,
    "copyreg._reconstructor": _reconstructor,
    "pathlib.PosixPath": _path,
    "pathlib.WindowsPath": _path,
    "pathlib.PurePosixPath": _path,
    "pathlib._local.PosixPath": _path,
    "torch_utils.persistence._reconstruct_persistent_obj": _persistent_object,
    "argparse.Namespace": _plain_object,
    "types.SimpleNamespace": _plain_object,
}
__all__ = ["TORCH_BUILDERS", "NumpyArray", "itemsize", "storage_dtype", "tensor_dtype"]
