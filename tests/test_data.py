"""Batches from probe files, token ids and text."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from ckpt_tools.data import DataSource, ProbeSource, split_batch
from ckpt_tools.errors import OptionError, SourceError
from ckpt_tools.run import RunWriter
from ckpt_tools.text import by_character, load_encoder

CONFIG = {"vocab_size": 100, "max_position_embeddings": 8}


def npy(folder: Path, ids: object) -> Path:
    path = folder / "ids.npy"
    np.save(path, np.asarray(ids))
    return path


def test_stream_is_cut_to_rows_of_the_context(tmp_path: Path) -> None:
    batch = DataSource(npy(tmp_path, np.arange(50, dtype=np.uint16)), tokens=20).batch(CONFIG)
    assert batch["tokens"].dtype == torch.int64
    assert batch["tokens"].tolist() == [list(range(8)), list(range(8, 16))]


def test_sequence_length_and_token_count_may_be_chosen(tmp_path: Path) -> None:
    path = npy(tmp_path, np.arange(50))
    assert DataSource(path, tokens=50, sequence=10).batch(CONFIG)["tokens"].shape == (5, 10)
    assert DataSource(path, tokens=30).batch({})["tokens"].shape == (1, 30)
    assert DataSource(path).batch({})["tokens"].shape == (1, 50)


def test_targets_are_the_next_tokens_and_rows_still_fill_the_context(tmp_path: Path) -> None:
    batch = DataSource(npy(tmp_path, np.arange(50)), tokens=18, targets=True).batch({"vocabulary": 100, "context": 8})
    assert batch["tokens"].tolist() == [list(range(8)), list(range(9, 17))]
    assert torch.equal(batch["targets"], batch["tokens"] + 1)


def test_two_dimensional_ids_are_rows(tmp_path: Path) -> None:
    path = npy(tmp_path, np.arange(60).reshape(10, 6))
    assert DataSource(path, tokens=15).batch(CONFIG)["tokens"].shape == (3, 6)
    assert DataSource(path, tokens=15, sequence=4).batch(CONFIG)["tokens"].shape == (3, 4)


def test_npy_is_known_by_its_content(tmp_path: Path) -> None:
    path = npy(tmp_path, np.arange(10)).rename(tmp_path / "ids.txt")
    assert DataSource(path).batch({})["tokens"].shape == (1, 10)


def test_jsonl_holds_lists_or_objects_with_tokens(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('[1, 2, 3]\n\n{"tokens": [4, 5, 6]}\n[7, 8, 9]\n')
    assert DataSource(path).batch(CONFIG)["tokens"].tolist() == [[1, 2, 3], [4, 5, 6], [7, 8, 9]]
    assert DataSource(path, tokens=5).batch(CONFIG)["tokens"].tolist() == [[1, 2, 3], [4, 5, 6]]


def test_text_by_the_characters_of_a_run(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_text("abcab")
    assert DataSource(path, characters="cba").batch({})["tokens"].tolist() == [[2, 1, 0, 2, 1]]


def test_text_by_a_tokenizer_beside_the_model(tmp_path: Path) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    model = tokenizers.models.WordLevel({"the": 0, "cat": 1, "?": 2}, unk_token="?")
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    path = tmp_path / "text.txt"
    path.write_text("the cat sat the")
    assert DataSource(path, beside=(tmp_path,)).batch({})["tokens"].tolist() == [[0, 1, 2, 0]]


@pytest.mark.parametrize("text", ["aab aab b", "baab", "", "\u00e9aa", "aaaa", "ab" * 40])
def test_merging_follows_the_scores(tmp_path: Path, text: str) -> None:
    vocab = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256)), " ", "a", "b", "aa", "ab", "aab", " a"]
    scores = [0.0] * 259 + [-9, -8, -7, -2, -1, -3, -4]
    (tmp_path / "v.json").write_text(json.dumps({"vocab": vocab, "scores": scores, "max_token_length": 3}))
    assert load_encoder(tmp_path / "v.json")(text) == merged_by_hand(text, vocab, scores)


def merged_by_hand(text: str, vocab: list[str], scores: list[float]) -> list[int]:
    """Return llama2.c's encoding by its own loop: scan all pairs, join the best, repeat."""
    ids: list[int] = []
    for c in f" {text}" if text else "":
        ids += [vocab.index(c)] if c in vocab else [b + 3 for b in c.encode()]
    while True:
        pairs = [(i, vocab[a] + vocab[b]) for i, (a, b) in enumerate(pairwise(ids))]
        known = [(scores[vocab.index(union)], -i) for i, union in pairs if union in vocab]
        if not known:
            return [1, *ids]
        i = -max(known)[1]
        ids[i : i + 2] = [vocab.index(vocab[ids[i]] + vocab[ids[i + 1]])]


def test_merging_gives_the_ids_of_the_published_sample(shared_data: Path) -> None:
    folder = shared_data / "models" / "stories260k"
    vocab = json.loads((folder / "tok512.json").read_text())["vocab"]
    ids = np.load(folder / "tinystories_sample_tok512.npy").astype(int)
    starts = np.flatnonzero(ids == 1)
    encode = load_encoder(folder / "tok512.json")
    for story in np.split(ids, starts[1:]):
        assert encode(text_of(story[1:].tolist(), vocab).removeprefix(" ")) == story.tolist()


def text_of(ids: list[int], vocab: list[str]) -> str:
    return b"".join(bytes([i - 3]) if 3 <= i < 259 else vocab[i].encode("latin-1") for i in ids).decode()


def test_gpt2_vocabulary_and_merges_encode_alike(shared_data: Path, tmp_path: Path) -> None:
    pytest.importorskip("tokenizers")
    encode = load_encoder(shared_data / "text" / "gpt2_vocab.json")
    assert encode("Hello world") == [15496, 995]


def test_long_text_is_read_as_far_as_needed(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_text("ab" * 5000)
    whole = by_character("ab")("ab" * 32)
    assert DataSource(path, tokens=64, characters="ab").batch({})["tokens"].tolist() == [whole]


@pytest.mark.parametrize(
    ("ids", "options", "message"),
    [
        (np.arange(200), {"tokens": 200, "sequence": 8}, "token id 199 lies outside the model's vocabulary of 100"),
        (np.array([3, -1, 2]), {}, "token id -1"),
        (np.linspace(0, 1, 9), {}, "expected integer token ids"),
        (np.zeros((2, 3, 4), int), {}, r"Got int64 \[2, 3, 4\]"),
        (np.arange(5), {"sequence": 8}, "fewer than the sequence length 8"),
        (np.arange(1), {}, "1 token"),
    ],
)
def test_unfit_ids_are_refused(tmp_path: Path, ids: object, options: dict[str, int], message: str) -> None:
    with pytest.raises(SourceError, match=message):
        DataSource(npy(tmp_path, ids), **options).batch(CONFIG)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("[1, 2]\n[3]", "line 2 has 1 tokens"),
        ("[1, 2]\nnot json", "line 2: expected a list"),
        ("[1.5]", "line 1"),
        ("", "holds no tokens"),
        ("[" * 100_000, "line 1: expected a list"),
    ],
)
def test_unfit_lines_are_refused(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(line)
    with pytest.raises(SourceError, match=message):
        DataSource(path).batch(CONFIG)


def test_text_without_a_vocabulary_is_refused_with_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_text("abc")
    with pytest.raises(SourceError, match="Give --tokenizer FILE"):
        DataSource(path, beside=(tmp_path,)).batch({})
    with pytest.raises(SourceError, match="'c', which is none of the run's 2 characters"):
        DataSource(path, characters="ab").batch({})
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(SourceError, match="no text in UTF-8"):
        DataSource(path, characters="ab").batch({})


@pytest.mark.parametrize(
    "content", ['{"model": {}}', '{"a": "b"}', "{}", '{"vocab": ["a"], "scores": []}', "[1]", '{"a": 1}']
)
def test_file_that_is_no_vocabulary_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "vocab.json"
    path.write_text(content)
    with pytest.raises(SourceError, match=str(path)):
        load_encoder(path)


def test_missing_file_and_silly_count_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="Cannot read"):
        DataSource(tmp_path / "none.npy").batch({})
    with pytest.raises(OptionError, match="at least 2"):
        DataSource(npy(tmp_path, np.arange(5)), tokens=1).batch({})


def test_identity_follows_content_and_options(tmp_path: Path) -> None:
    one = DataSource(npy(tmp_path, np.arange(50)), tokens=20)
    assert one.identity == DataSource(one.path, tokens=20).identity
    assert one.identity != DataSource(one.path, tokens=30).identity
    assert one.identity != DataSource(npy(tmp_path, np.arange(51)), tokens=20).identity


def test_probe_of_a_run(tmp_path: Path) -> None:
    probe = {"tokens": torch.arange(6).reshape(2, 3), "weights": torch.full((2, 3), 1 / 6)}
    for name, batch in (("one", probe), ("two", {"tokens": probe["tokens"] + 1})):
        with RunWriter(tmp_path / name, family="f", family_version=1, config={}, probe=batch):
            pass
    source = ProbeSource(tmp_path / "one")
    found = source.batch({})
    assert found.keys() == probe.keys() and all(torch.equal(found[k], probe[k]) for k in probe)
    assert source.identity == ProbeSource(tmp_path / "one").identity != ProbeSource(tmp_path / "two").identity


def test_run_without_a_probe_says_what_to_do(tmp_path: Path) -> None:
    with RunWriter(tmp_path / "run", family="f", family_version=1, config={}):
        pass
    with pytest.raises(SourceError, match="Give --data FILE"):
        ProbeSource(tmp_path / "run").batch({})


@pytest.mark.parametrize("rows", [0, 1, 2, 3, 5, 9])
@pytest.mark.parametrize("weighted", [True, False])
def test_parts_of_a_batch_make_up_its_loss(rows: int, weighted: bool) -> None:
    g = torch.Generator().manual_seed(0)
    batch = {"tokens": torch.randint(0, 9, (5, 4), generator=g), "key_log_weight": torch.zeros(5)}
    if weighted:
        weights = torch.rand(5, 4, generator=g)
        weights[1] = 0
        batch["weights"] = weights / weights.sum()

    def loss(part: dict[str, torch.Tensor]) -> torch.Tensor:
        value = part["tokens"].double() ** 2
        return (value * part["weights"]).sum() if "weights" in part else value.mean()

    parts = split_batch(batch, rows)
    assert sum(share * loss(part) for share, part in parts) == pytest.approx(float(loss(batch)))
    assert sum(share for share, _ in parts) == pytest.approx(1)
    assert all(len(part["key_log_weight"]) == 5 for _, part in parts)
