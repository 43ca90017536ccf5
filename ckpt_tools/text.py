"""Text to token ids, by whatever vocabulary lies at hand.

Known are `tokenizer.json` of the tokenizers library, GPT-2's pair of vocabulary and merges, llama2.c's vocabulary with
scores (`{"vocab": [...], "scores": [...]}`, token bytes as latin-1), and an alphabet of single characters.

llama2.c encodes by pair merging: begin with one token per character (three added to each byte where there is none),
then join the neighbouring pair whose union has the highest score until no union is a token.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from heapq import heappop, heappush
from pathlib import Path
from typing import Any

from .checkpoint.jsondata import read_object
from .errors import SourceError

Encode = Callable[[str], list[int]]

VOCABULARIES = ("tokenizer.json", "vocab.json")
_FIRST_BYTE = 3
_BOS = 1


def find_encoder(path: Path | None, beside: Iterable[Path], characters: str | None) -> tuple[Encode, str]:
    """Return the function that turns text into ids, and what it is, for messages.

    `path` names a vocabulary; without it the folders `beside` are searched, then `characters` (id = position) serves.
    Raises SourceError when there is none.
    """
    folders = list(dict.fromkeys(beside))
    found = path or next((f / name for f in folders for name in VOCABULARIES if (f / name).is_file()), None)
    if found is not None:
        return load_encoder(found), str(found)
    if characters is not None:
        return by_character(characters), "the run's characters"
    looked = ", ".join(map(str, folders)) or "no folder"
    raise SourceError(
        f"Text needs a vocabulary, and there is no {' or '.join(VOCABULARIES)} in {looked}. "
        "Give --tokenizer FILE, or token ids as .npy or .jsonl."
    )


def load_encoder(path: Path) -> Encode:
    """Return the encoder of a vocabulary file; what it is, its content decides."""
    data = read_object(path)
    if isinstance(data.get("vocab"), list) and isinstance(data.get("scores"), list):
        return _merging(path, data)
    if isinstance(data.get("model"), dict):
        return _tokenizers(path, lambda library: library.Tokenizer.from_file(str(path)))
    if data and all(isinstance(v, int) for v in data.values()):
        merges = path.with_name(path.name.replace("vocab", "merges").removesuffix(".json") + ".txt")
        if not merges.is_file():
            raise SourceError(f"{path} is one half of a GPT-2 vocabulary; the other, {merges.name}, is not beside it.")
        return _tokenizers(path, lambda library: library.ByteLevelBPETokenizer(str(path), str(merges)))
    raise SourceError(
        f"{path} is no vocabulary: expected a tokenizer.json, a GPT-2 vocab.json, or vocab and scores of llama2.c."
    )


def _tokenizers(path: Path, load: Callable[[Any], Any]) -> Encode:
    try:
        import tokenizers
    except ImportError:
        raise SourceError(f"{path} needs the tokenizers library: pip install 'ckpt-tools[hf]'.") from None
    try:
        tokenizer = load(tokenizers)
    except Exception as error:  # the library raises nothing more specific
        raise SourceError(f"{path} is not a vocabulary the tokenizers library reads: {error}.") from None
    return lambda text: list(tokenizer.encode(text).ids)


def by_character(characters: str) -> Encode:
    """Return the encoder of an alphabet: a character's id is its position."""
    ids = {c: i for i, c in enumerate(characters)}

    def encode(text: str) -> list[int]:
        unknown = sorted(set(text) - ids.keys())
        if unknown:
            raise SourceError(f"The text holds {unknown[0]!r}, which is none of the run's {len(ids)} characters.")
        return [ids[c] for c in text]

    return encode


def _merging(path: Path, data: dict[str, Any]) -> Encode:
    vocab, scores = data["vocab"], data["scores"]
    if len(vocab) != len(scores) or not all(isinstance(token, str) for token in vocab):
        raise SourceError(f"{path}: vocab must list texts and scores a number for each of them.")
    pieces = [token.encode("latin-1") for token in vocab]
    ids = {piece: i for i, piece in enumerate(pieces)}

    def encode(text: str) -> list[int]:
        start = [i for c in f" {text}" for i in _begin(c.encode(), ids)] if text else []
        return [_BOS, *_merged(start, pieces, scores, ids)]

    return encode


def _begin(character: bytes, ids: dict[bytes, int]) -> list[int]:
    return [ids[character]] if character in ids else [byte + _FIRST_BYTE for byte in character]


def _merged(tokens: list[int], pieces: list[bytes], scores: list[float], ids: dict[bytes, int]) -> list[int]:
    """Join the best neighbouring pair, the leftmost of equals, until none can be joined."""
    after = [*range(1, len(tokens)), -1]
    before = [*range(-1, len(tokens) - 1)]
    alive: list[int | None] = list(tokens)
    heap: list[tuple[float, int, int, int]] = []

    def offer(left: int) -> None:
        right = after[left] if left >= 0 else -1
        if right >= 0:
            one, two = tokens[left], tokens[right]
            union = ids.get(pieces[one] + pieces[two])
            if union is not None:
                heappush(heap, (-scores[union], left, one, two))

    for left in range(len(tokens)):
        offer(left)
    while heap:
        _, left, one, two = heappop(heap)
        right = after[left]
        # Entries about tokens that have been joined since are stale.
        if right < 0 or alive[left] != one or alive[right] != two:
            continue
        tokens[left] = ids[pieces[one] + pieces[two]]
        alive[left], alive[right] = tokens[left], None
        after[left] = after[right]
        if after[left] >= 0:
            before[after[left]] = left
        offer(before[left])
        offer(left)
    return [token for token in alive if token is not None]
