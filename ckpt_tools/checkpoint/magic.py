"""What a file is by its first bytes, in words for an error message."""

from __future__ import annotations

from ..errors import FormatError

HEAD = 16 * 2**10
"""Bytes of a file that are looked at: most safetensors headers of small models fit in."""


class UnknownFormat(FormatError):
    """A file is of no format that is read here."""


_LFS = b"version https://git-lfs.github.com/spec/"
_TAR_AT = 257

_PREFIXES: tuple[tuple[bytes, str], ...] = (
    (b"PK\x03\x04", "a zip archive (torch.save since PyTorch 1.6, npz, TorchScript, .keras)"),
    (b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.", "a legacy torch.save pickle (before PyTorch 1.6)"),
    (b"GGUF", "a GGUF file"),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file (Keras weights, netCDF)"),
    (b"\x93NUMPY", "a single NumPy array (.npy)"),
    (b"/annex/objects/", "a git-annex pointer, not the file itself: run `git annex get`"),
    (b"\x1f\x8b", "gzip-compressed: decompress it first"),
    (b"\x28\xb5\x2f\xfd", "zstd-compressed: decompress it first"),
    (b"BZh", "bzip2-compressed: decompress it first"),
    (b"\xfd7zXZ\x00", "xz-compressed: decompress it first"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive: unpack it first"),
    (b"\x7fELF", "an executable"),
)


def describe(head: bytes) -> str:
    """Return what a file that begins with `head` is, as the end of the sentence "it is ..."."""
    if not head:
        return "empty (0 bytes): the download or the save was cut short"
    if head.startswith(_LFS):
        return _lfs(head)
    for prefix, words in _PREFIXES:
        if head.startswith(prefix):
            return words
    if head[0] == 0x80 and head[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        return "a Python pickle"
    if head[_TAR_AT : _TAR_AT + 5] == b"ustar" or head.startswith(b"sys_info\0"):
        return "a tar archive (torch 0.1 or a bundle of files)"
    return _text(head) or f"of no known format (first bytes {head[:8].hex(' ')})"


def _lfs(head: bytes) -> str:
    fields = dict(line.split(b" ", 1) for line in head.splitlines() if b" " in line)
    size = fields.get(b"size", b"")
    stands = f" that stands for a file of {int(size):,} bytes" if size.isdigit() and len(size) < 20 else ""
    return f"a git-LFS pointer{stands}, not the file itself: run `git lfs pull`"


def _text(head: bytes) -> str:
    start = head.lstrip()[:64].lower()
    if start.startswith((b"<!doctype html", b"<html")):
        return "an HTML page, probably an error or log-in page saved in its place"
    if start.startswith(b"<?xml"):
        return "an XML document"
    text = head[:512].decode("utf-8", "ignore")
    printable = len(text.encode()) > len(head[:512]) - 4 and all(c.isprintable() or c in "\t\r\n" for c in text)
    if start.startswith((b"{", b"[")) and printable:
        return "JSON text"
    return f"text that begins with {text[:24]!r}" if printable else ""
