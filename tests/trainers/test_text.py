"""Text as tokens: alphabets, byte pairs, splits, answers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from ckpt_tools import DataSource, read_run
from ckpt_tools.errors import OptionError
from ckpt_trainers.gpt import GPT
from ckpt_trainers.settings import plan
from ckpt_trainers.tasks.text import Text

LINES = [f"q{i} is {i * 7 % 10}? => {'yes' if i % 3 else 'no'} indeed" for i in range(60)]


def write(folder: Path, text: str = "\n".join(LINES) + "\nénd\n") -> str:
    (folder / "text.txt").write_text(text, encoding="utf-8")
    return str(folder / "text.txt")


def decoded(task: Text, ids: torch.Tensor) -> str:
    assert task.characters is not None
    return "".join(task.characters[i] for i in ids)


def test_characters(tmp_path: Path) -> None:
    task = Text(data=write(tmp_path))
    assert decoded(task, task.ids) == task.text
    assert task.characters == "".join(sorted(set(task.text)))
    assert (task.vocabulary, task.context) == (len(set(task.text)), 64)
    assert task.files() == {}


def test_byte_pairs(tmp_path: Path) -> None:
    pytest.importorskip("tokenizers")
    task, twin = (Text(data=write(tmp_path), tokenizer="bpe", pairs=300, length=8) for _ in range(2))
    assert task.files() == twin.files()
    assert 256 < task.vocabulary <= 300
    assert len(task.ids) < len(task.text)
    assert task._byte_pairs.decode(task.ids.tolist()) == task.text
    vocabulary = json.loads(task.files()["tokenizer.json"])["model"]["vocab"]
    assert len(vocabulary) == task.vocabulary


def test_validation_is_never_drawn(tmp_path: Path) -> None:
    task = Text(data=write(tmp_path), length=10, validation=0.25)
    kept = len(task.text) - round(0.25 * len(task.text))
    drawn = task.draw(3000, torch.Generator().manual_seed(0))
    assert torch.equal(drawn["tokens"][:, 1:], drawn["targets"][:, :-1])
    trained = task.text[:kept]
    for row, after in zip(drawn["tokens"][:50], drawn["targets"][:50], strict=True):
        assert decoded(task, row) + decoded(task, after[-1:]) in trained
    assert int(task.starts.max()) + 10 == kept - 1
    held_out = task.evaluation(torch.Generator())
    for row, after in zip(held_out["tokens"], held_out["targets"], strict=True):
        assert decoded(task, row) + decoded(task, after[-1:]) in task.text[kept:]
    assert torch.equal(task.probe(None, torch.Generator())["tokens"], held_out["tokens"])


@pytest.mark.parametrize("tokenizer", ["char", "bpe"])
def test_only_answers_count(tmp_path: Path, tokenizer: str) -> None:
    if tokenizer == "bpe":
        pytest.importorskip("tokenizers")
    task = Text(data=write(tmp_path), length=12, score="answers", tokenizer=tokenizer, pairs=280)
    marked = "".join(
        task.text[start:end]
        for start, end, inside in zip(
            task._encoded[1].tolist(), [*task._encoded[1].tolist()[1:], len(task.text)], task.answers, strict=True
        )
        if inside
    )
    assert marked == "".join(line.split("=>")[1] for line in LINES)
    drawn = task.draw(500, torch.Generator().manual_seed(0))
    assert drawn["weights"].sum().item() == pytest.approx(1)
    assert (drawn["weights"].sum(1) > 0).all(), "every row holds part of an answer"
    if task.characters is not None:
        for row, after, weight in zip(*(drawn[k][:100] for k in ("tokens", "targets", "weights")), strict=True):
            whole = decoded(task, row[:1]) + decoded(task, after)
            for k, counts in enumerate(weight > 0, start=1):
                if counts:
                    assert any(whole[: k + 1].endswith(part) for part in ("y", " y", "e", "s", "n", "o", " ", "i", "d"))
                    assert whole[k] != "\n"
    assert (task.evaluation(torch.Generator())["weights"].sum(1) > 0).all()


def test_numbers_on_validation(tmp_path: Path) -> None:
    task = Text(data=write(tmp_path), length=12)
    rows = task.evaluation(torch.Generator())
    sure = 50 * torch.nn.functional.one_hot(rows["targets"], task.vocabulary).double()
    assert task.metrics(sure, rows) == pytest.approx({"validation": 0, "accuracy": 1}, abs=1e-12)
    flat = task.metrics(torch.zeros_like(sure), rows)
    assert flat["validation"] == pytest.approx(torch.tensor(float(task.vocabulary)).log().item())


@pytest.mark.parametrize("tokenizer", ["char", "bpe"])
def test_runs_encode_other_text(tmp_path: Path, tokenizer: str) -> None:
    if tokenizer == "bpe":
        pytest.importorskip("tokenizers")
    values = {"data": write(tmp_path), "tokenizer": tokenizer, "pairs": 270, "length": 8, "layers": 1, "d_model": 8}
    GPT.train("text", {**values, "heads": 1, "steps": 1, "batch": 2}, tmp_path / "run")
    config = read_run(tmp_path / "run").config
    (tmp_path / "other.txt").write_text("indeed is no\n" * 4)
    source = DataSource(
        tmp_path / "other.txt", tokens=16, beside=(tmp_path / "run",), characters=config["characters"], sequence=8
    )
    task = plan(GPT, "text", values).task
    assert isinstance(task, Text)
    found = source.batch(config)["tokens"]
    assert found.shape == (2, 8)
    if tokenizer == "char":
        assert decoded(task, found.flatten()) == "indeed is no\nind"
    else:
        assert task._byte_pairs.decode(found.flatten().tolist()) in "indeed is no\n" * 4


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"data": None}, "Give --data FILE"),
        ({"data": "missing.txt"}, "missing.txt cannot be read: No such file"),
        ({"length": 5000}, "a row needs 5001 of each"),
        ({"score": "answers", "marker": "==>"}, "no line holds text behind '==>'"),
        ({"digest": "0" * 64}, "is not the text that this run was begun with"),
    ],
)
def test_bad_texts(tmp_path: Path, values: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        Text(**{"data": write(tmp_path), **values}).draw(2, torch.Generator())


def test_not_a_text(tmp_path: Path) -> None:
    (tmp_path / "binary").write_bytes(b"ab\xff")
    with pytest.raises(OptionError, match=r"no text in UTF-8 \(byte 2\)"):
        plan(GPT, "text", {"data": str(tmp_path / "binary")})


def test_a_changed_text_does_not_continue_a_run(tmp_path: Path) -> None:
    values = {"data": write(tmp_path), "length": 8, "layers": 0, "d_model": 4, "steps": 1, "batch": 2}
    GPT.train("text", values, tmp_path / "run")
    write(tmp_path, "another text\n" * 20)
    with pytest.raises(OptionError, match="its SHA-256 differs"):
        GPT.train("text", {}, tmp_path / "run", resume=True)
