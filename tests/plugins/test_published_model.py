"""A published model through the command line, as anybody would: attention, flatness and alignment, each with an oracle.

The numbers are compared with what the transformers library gives when it runs the model by itself.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ckpt_tools import load_encoder, read_results
from ckpt_tools.cli.main import cli

pytestmark = pytest.mark.slow

# People, where they go and what is there: no model of children's stories knows them, but all can be read and compared.
FACTS = [
    ("Lily", "went to the", "park", "where she saw a", "dog"),
    ("Tom", "went to the", "house", "where he saw a", "cat"),
    ("Sue", "went to the", "forest", "where she saw a", "bear"),
    ("Ben", "went to the", "sea", "where he saw a", "fish"),
    ("Anna", "went to the", "garden", "where she saw a", "flower"),
]
FLATNESS = {"k": 1, "max_products": 3, "probes": 2, "sigma": 0.01, "rho": 0.05}


@pytest.fixture(scope="module")
def model(shared_data: Path) -> Path:
    pytest.importorskip("transformers")
    return shared_data / "models" / "stories260k"


@pytest.fixture(scope="module")
def library(model: Path) -> Any:
    import transformers

    return transformers.AutoModelForCausalLM.from_pretrained(model / "hf_fp32", attn_implementation="eager").eval()


@pytest.fixture(scope="module")
def results(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The results file of one call; the facts lie beside it."""
    folder = tmp_path_factory.mktemp("published")
    names = ("head", "relation1", "bridge", "relation2", "tail")
    lines = [json.dumps(dict(zip(names, fact, strict=True))) for fact in FACTS]
    (folder / "facts.jsonl").write_text("\n".join(lines))
    settings = {f"flatness.{name}": value for name, value in FLATNESS.items()}
    settings |= {"alignment.facts": folder / "facts.jsonl", "alignment.tokenizer": model / "tok512.json"}
    words = ["analyze", str(model / "hf_fp32"), "--data", str(model / "tinystories_sample_tok512.npy"), "--quiet"]
    words += [word for name in ("attention", "flatness", "alignment") for word in ("--plugin", name)]
    words += [word for name, value in settings.items() for word in ("--set", f"{name}={value}")]
    assert cli.main([*words, "-o", str(folder / "r.h5")], standalone_mode=False) == 0
    with read_results(folder / "r.h5") as opened:
        yield opened


def first_tokens(model: Path) -> torch.Tensor:
    ids = np.load(model / "tinystories_sample_tok512.npy")
    return torch.from_numpy(ids[None, :512].astype(np.int64))


def test_loss_is_the_published_one(results: Any, library: Any, model: Path) -> None:
    tokens = first_tokens(model)
    with torch.no_grad():
        loss = float(library(input_ids=tokens, labels=tokens).loss)
    found = results["flatness"]["loss"].read()[0]
    assert found == pytest.approx(1.339, abs=5e-4) and found == pytest.approx(loss, abs=1e-6)
    flat = {name: results["flatness"][name].read()[0] for name in ("eigenvalue", "trace", "loss_increase")}
    assert flat["eigenvalue"][0] > 0 and flat["trace"] > flat["eigenvalue"][0]
    assert np.isfinite(flat["loss_increase"]).all()


def test_attention_is_that_of_output_attentions(results: Any, library: Any, model: Path) -> None:
    with torch.no_grad():
        maps = [a[0].double() for a in library(input_ids=first_tokens(model), output_attentions=True).attentions]
    entropy = torch.stack([torch.special.entr(a).sum(-1).mean(-1) for a in maps]).numpy()
    previous = torch.stack([a.diagonal(-1, -2, -1).sum(-1) / a.shape[-1] for a in maps]).numpy()
    assert entropy.shape == (5, 8)
    np.testing.assert_allclose(results["attention"]["entropy"].read()[0], entropy, atol=1e-6)
    np.testing.assert_allclose(results["attention"]["previous_mass"].read()[0], previous, atol=1e-6)


def last_states(library: Any, encode: Any, text: str) -> tuple[np.ndarray[Any, Any], torch.Tensor]:
    """Return hidden states `[layer, d]` and logits at the end of a prompt."""
    with torch.no_grad():
        out = library(input_ids=torch.tensor([encode(text)]), output_hidden_states=True)
    return np.stack([h[0, -1].double().numpy() for h in out.hidden_states]), out.logits[0, -1]


def test_facts_are_compared_at_the_ends_of_their_prompts(results: Any, library: Any, model: Path) -> None:
    encode = load_encoder(model / "tok512.json")
    cosines, ranks = [], []
    for head, relation1, bridge, relation2, tail in FACTS:
        a, _ = last_states(library, encode, f"{head} {relation1}")
        b, _ = last_states(library, encode, bridge)
        both = f"{head} {relation1} {relation2}"
        _, logits = last_states(library, encode, both)
        answer = encode(f"{both} {tail}")[len(encode(both))]
        cosines.append((a * b).sum(-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1))
        ranks.append(int((logits > logits[answer]).sum()))
    group = results["alignment"]
    # The library hands out its last hidden state normed.
    np.testing.assert_allclose(group["cosine"].read()[0, :5, 0], np.mean(cosines, 0)[:5], atol=1e-5)
    assert group["answer_rank"].read()[0, -1] == np.median(ranks)
    assert group["pairs"].read()[0] == len(FACTS) and np.isfinite(group["cka"].read()[0, 1:]).all()


def test_nuclear_norm_is_that_of_the_tied_embedding(results: Any, library: Any) -> None:
    s = np.linalg.svd(library.get_input_embeddings().weight.detach().double().numpy(), compute_uv=False)
    assert results["alignment"]["nuclear_norm"].read()[0] == pytest.approx(np.square(s).sum(), rel=1e-9)
