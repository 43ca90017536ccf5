"""hf:// addresses, what they name, and that it is pinned; huggingface_hub's own client is the oracle of the server."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys

import numpy as np
import pytest

from ckpt_tools.checkpoint import open_checkpoint, open_trajectory
from ckpt_tools.checkpoint.location import as_url
from ckpt_tools.checkpoint.remote.hub import Address, parse_address
from ckpt_tools.checkpoint.remote.revisions import step_of
from ckpt_tools.errors import FetchError, FormatError, SourceError

W = np.arange(12, dtype=np.float32).reshape(3, 4)
CONFIG = b'{"model_type": "llama"}'


@pytest.fixture
def steps(hub, packed):
    """Three revisions whose tensor `a` is `W` times the step."""
    for step in (10, 9, 100):
        files = {"config.json": CONFIG, "model.safetensors": packed({"a": W * step, "b": W}), "README.md": b"# Hi"}
        hub.commit("org/name", files, branch=f"step{step}")
    return hub


def test_the_server_is_one_that_huggingface_hub_believes(steps, tmp_path):
    from huggingface_hub import HfApi, hf_hub_download

    api = HfApi(endpoint=steps.url)
    refs = {b.name: b.target_commit for b in api.list_repo_refs("org/name").branches}
    assert refs == steps.repos["org/name"].branches
    info = api.model_info("org/name", revision="step9", files_metadata=True)
    blob = steps.repos["org/name"].commits[info.sha]["model.safetensors"]
    weights = next(s for s in info.siblings if s.rfilename == "model.safetensors")
    assert (weights.lfs.sha256, weights.size) == (blob.sha256, blob.size)
    listed = {f.path: f.size for f in api.list_repo_tree("org/name", revision="step9")}
    assert listed == {"config.json": len(CONFIG), "model.safetensors": blob.size, "README.md": 4}
    for name in ("config.json", "model.safetensors"):
        path = hf_hub_download("org/name", name, revision="step9", cache_dir=tmp_path, endpoint=steps.url)
        with open(path, "rb") as file:
            content = steps.repos["org/name"].commits[info.sha][name]
            assert file.read() == content.part(0, content.size)


def test_revisions_are_a_trajectory_in_the_order_of_their_numbers(steps):
    trajectory = open_trajectory("hf://org/name@step*")
    assert trajectory.steps == [9, 10, 100]
    assert str(trajectory.path) == "hf://org/name@step*"
    assert len(steps.seen) == 1  # all revisions resolved by one request
    for step in trajectory.steps:
        with trajectory.checkpoint(step) as checkpoint:
            assert (checkpoint.step, checkpoint.label) == (step, f"step{step}")
            assert np.array_equal(checkpoint.read("a"), W * step)
            assert checkpoint.config == {"model_type": "llama"}


def test_commit_and_hashes_are_recorded_and_not_believed_from_a_file(hub, packed):
    data = packed({"a": W}, {"commit": "fake", "format": "pt"})
    commit = hub.commit("org/name", {"model.safetensors": data}, branch="step3")
    hub.commit("org/name", {"model.safetensors": packed({"a": W})}, branch="main")
    with open_checkpoint("hf://org/name@step3") as checkpoint:
        blob = hub.repos["org/name"].commits[commit]["model.safetensors"]
        assert dict(checkpoint.metadata) == {
            "repository": "org/name",
            "revision": "step3",
            "commit": commit,
            "sha256": {"model.safetensors": blob.sha256},
            "format": "pt",
        }
        assert str(checkpoint.path) == f"hf://org/name@{commit}"
        assert checkpoint.step == 3


def test_a_branch_that_moves_does_not_mix(steps, packed):
    trajectory = open_trajectory("hf://org/name@step*")
    lone = open_checkpoint("hf://org/name@step9")
    steps.commit("org/name", {"model.safetensors": packed({"a": -W})}, branch="step9")
    assert np.array_equal(trajectory.checkpoint(9).read("a"), W * 9)
    assert np.array_equal(lone.read("a"), W * 9)
    assert np.array_equal(open_checkpoint("hf://org/name@step9").read("a"), -W)


def test_branches_and_tags_both_count_and_the_branch_wins(hub, packed):
    hub.commit("org/name", {"model.safetensors": packed({"a": W})}, tag="step1")
    hub.commit("org/name", {"model.safetensors": packed({"a": W * 2})}, branch="step1")
    hub.commit("org/name", {"model.safetensors": packed({"a": W * 3})}, tag="step2")
    trajectory = open_trajectory("hf://org/name@step*")
    assert [trajectory.checkpoint(s).read("a")[0, 1] for s in trajectory.steps] == [2.0, 3.0]


def test_names_that_fit_without_a_step_are_skipped(hub, packed):
    files = {"model.safetensors": packed({"a": W})}
    for branch in ("step1", "step-best", "step2", "other", "main"):
        hub.commit("org/name", files, branch=branch)
    hub.repos["org/name"].branches["step1-copy"] = hub.repos["org/name"].branches["step1"]
    trajectory = open_trajectory("hf://org/name@step*")
    assert trajectory.steps == [1, 2]
    assert {s.name: s.reason for s in trajectory.skipped} == {
        "step-best": "a revision whose name holds no step",
        "step1-copy": "the same step and commit as step1",
    }


def test_one_step_of_two_commits_asks_for_a_narrower_pattern(hub, packed):
    for stage in (1, 2):
        hub.commit("org/name", {"model.safetensors": packed({"a": W * stage})}, branch=f"stage{stage}-step100-tokens1B")
    with pytest.raises(SourceError, match=r"are both step 100\. Choose one of them by a narrower pattern"):
        open_trajectory("hf://org/name@*step*")
    assert open_trajectory("hf://org/name@stage2-step*").steps == [100]


@pytest.mark.parametrize(
    ("name", "pattern", "step"),
    [
        ("step1000", "step*", 1000),
        ("stage1-step150-tokens1B", "stage1-*", 150),
        ("ckpt500", "ckpt*", 500),
        ("v2-300M", "v2-*", 300),
        ("v2-300M-7", "v2-*", None),
        ("final", "*", None),
    ],
)
def test_the_step_in_a_name(name, pattern, step):
    assert step_of(name, pattern) == step


def test_a_pattern_that_nothing_fits_names_what_there_is(steps):
    with pytest.raises(FetchError, match=r"None of the 3 revisions of org/name fits 'stepp\*'. Did you mean 'step9'"):
        open_trajectory("hf://org/name@stepp*")
    steps.commit("org/name", {}, branch="best")
    with pytest.raises(FetchError, match="no name of the 1 revisions that fit holds a step"):
        open_trajectory("hf://org/name@b*")
    with pytest.raises(SourceError, match="stands for several revisions"):
        open_checkpoint("hf://org/name@step*")


def test_an_unknown_revision_names_the_nearest(steps):
    with pytest.raises(FetchError, match=r"org/name has no revision 'step11'. Did you mean 'step10'\?"):
        open_checkpoint("hf://org/name@step11")
    with pytest.raises(FetchError, match="no such repository, or it is private; check the name, or log in"):
        open_checkpoint("hf://org/nam")


def test_a_folder_of_a_revision_and_a_file_in_it(hub, packed):
    files = {"sub/deep/model.safetensors": packed({"a": W}), "sub/deep/config.json": CONFIG, "other.txt": b"x"}
    commit = hub.commit("org/name", files, branch="main")
    for url in ("hf://org/name/sub/deep", "hf://org/name@main/sub/deep/", f"hf://org/name@{commit}/sub/deep"):
        checkpoint = open_checkpoint(url)
        assert np.array_equal(checkpoint.read("a"), W) and checkpoint.config == {"model_type": "llama"}
        assert str(checkpoint.path) == f"hf://org/name@{commit}/sub/deep"
    assert open_checkpoint("hf://org/name/sub/deep/model.safetensors").config == {"model_type": "llama"}
    with pytest.raises(SourceError, match=r"sub/deeper does not exist. Did you mean 'deep'\?"):
        open_checkpoint("hf://org/name/sub/deeper")
    with pytest.raises(SourceError, match="Perhaps one of its folders is meant: deep"):
        open_checkpoint("hf://org/name/sub")


def test_step_folders_within_one_revision_are_a_trajectory(hub, packed):
    files = {f"checkpoint-{s}/model.safetensors": packed({"a": W * s}) for s in (5, 50, 0)}
    run = {"family": "x", "config": {"d": 3}, "seed": 7}
    metrics = b'{"step": 5, "loss": 0.5}\n{"step": 50, "loss": 0.25}\n'
    files |= {"run.json": json.dumps(run).encode(), "metrics.jsonl": metrics, "tmp-x/f.txt": b""}
    hub.commit("org/name", files, branch="main")
    trajectory = open_trajectory("hf://org/name")
    assert trajectory.steps == [0, 5, 50] and trajectory.run == run
    assert trajectory.metrics([5, 50]) == {"loss": [0.5, 0.25]}
    assert [s.name for s in trajectory.skipped] == ["tmp-x"]
    assert np.array_equal(trajectory.checkpoint(50).read("a"), W * 50)


def test_shards_by_an_index_and_without(hub, packed):
    shards = {f"model-0000{i}-of-00002.safetensors": {f"t{i}": W * i} for i in (1, 2)}
    files = {name: packed(tensors) for name, tensors in shards.items()}
    hub.commit("org/name", files, branch="numbered")
    assert np.array_equal(open_checkpoint("hf://org/name@numbered").read("t2"), W * 2)
    index = {"weight_map": {name: shard for shard, tensors in shards.items() for name in tensors}}
    files["model.safetensors.index.json"] = json.dumps(index).encode()
    commit = hub.commit("org/name", files, branch="main")
    checkpoint = open_checkpoint("hf://org/name")
    assert np.array_equal(checkpoint.read("t1"), W)
    hashes = {n: b.sha256 for n, b in hub.repos["org/name"].commits[commit].items() if n in shards}
    assert checkpoint.metadata["sha256"] == hashes


@pytest.mark.parametrize("shard", ["../model.safetensors", "/etc/passwd", "a/b.safetensors", "C:x", "..", "a\\b"])
def test_an_index_cannot_point_elsewhere(hub, packed, shard):
    index = json.dumps({"weight_map": {"a": shard}}).encode()
    files = {"model.safetensors.index.json": index, "model.bin": b"x"}
    hub.commit("org/name", {**files, "up/x.txt": b""}, branch="main")
    with pytest.raises(FormatError, match="must be the plain name of a file beside it"):
        open_checkpoint("hf://org/name")
    assert not hub.asked("model.safetensors$|passwd|b.safetensors")


def test_a_listing_cannot_name_files_elsewhere(hub, packed):
    files = {"model.safetensors": packed({"a": W})}
    commit = hub.commit("org/name", files, branch="main")
    hub.repos["org/name"].commits[commit]["x/../../y.safetensors"] = hub.repos["org/name"].commits[commit][
        "model.safetensors"
    ]
    checkpoint = open_checkpoint("hf://org/name")
    assert list(checkpoint.path.names()) == ["model.safetensors", "x"]
    assert (checkpoint.path / "..").exists() is False


def test_several_files_like_weights_are_not_all_downloaded(hub):
    hub.commit("org/name", {"a.bin": b"x" * 100, "b.h5": b"y" * 100, "README.md": b""}, branch="main")
    with pytest.raises(SourceError, match=r"holds 2 files that are named like weights: a.bin, b.h5. Name the one"):
        open_checkpoint("hf://org/name")
    assert not hub.asked("resolve")


def test_a_long_listing_comes_in_pages(steps):
    steps.page_size = 2
    assert np.array_equal(open_checkpoint("hf://org/name@step9").read("a"), W * 9)
    assert len(steps.asked("/tree/")) == 2


def test_an_answer_that_is_not_the_hubs_is_refused(steps):
    steps.fault("hub/api.*tree", headers={}, status=200)
    with pytest.raises(FetchError, match="does not answer like the hub: not valid JSON"):
        open_checkpoint("hf://org/name@step9")


def test_offline_is_offline(steps, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    for source in ("hf://org/name@step*", "hf://org/name@step9", f"{steps.url}/x/"):
        with pytest.raises(SourceError, match=r"HF_HUB_OFFLINE is set. Unset it, or give a folder on this machine"):
            open_trajectory(source)
    assert steps.seen == []


def test_what_huggingface_hub_has_saved_is_not_fetched_again(steps):
    from huggingface_hub import hf_hub_download

    for name in ("config.json", "model.safetensors"):
        hf_hub_download("org/name", name, revision="step9", endpoint=steps.url)
    before = len(steps.asked("resolve"))
    with open_checkpoint("hf://org/name@step9") as checkpoint:
        assert np.array_equal(checkpoint.read("a"), W * 9)
        assert checkpoint.metadata["sha256"].keys() == {"model.safetensors"} and checkpoint.bytes_transferred == 0
    assert len(steps.asked("resolve")) == before


def test_pinned_checkpoints_pickle_without_a_request(steps):
    trajectory = open_trajectory("hf://org/name@step*")
    before = len(steps.seen)
    again = pickle.loads(pickle.dumps(trajectory))
    assert len(steps.seen) == before
    assert again.entries == trajectory.entries
    checkpoint = pickle.loads(pickle.dumps(trajectory.checkpoint(10)))
    assert np.array_equal(checkpoint.read("a"), W * 10)


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("hf://org/name", Address("org/name")),
        ("hf://models/org/name@v1.0", Address("org/name", "v1.0")),
        ("hf://gpt2@main", Address("gpt2", "main")),
        ("hf://gpt2", Address("gpt2")),
        ("hf://org/name@refs/pr/3/sub", Address("org/name", "refs/pr/3", "sub")),
        ("hf://org/name@feature%2Fx/a/b/", Address("org/name", "feature/x", "a/b")),
        ("hf://org/name/a/b@c", Address("org/name", "", "a/b@c")),
        ("hf://org/name@step*", Address("org/name", "step*")),
    ],
)
def test_addresses(url, address):
    assert parse_address(url) == address
    assert parse_address(str(address)) == address


@pytest.mark.parametrize(
    "url",
    ["hf://", "hf://org/name@", "hf://org//name", "hf://../x", "hf://org/na me", "hf://org/name/../x", "hf://org/name@..",
     "hf://org/name@a b", "hf://org/name/a\\b", "hf://-x/y", "hf://org/name@%2e%2e%2fx"],
)  # fmt: skip
def test_malformed_addresses_are_refused(url):
    with pytest.raises(SourceError, match="is no address on the hub; expected"):
        parse_address(url)


def test_other_kinds_of_repositories_are_refused():
    with pytest.raises(SourceError, match="only repositories of models are read"):
        open_checkpoint("hf://datasets/org/name")


def test_a_path_that_swallowed_a_slash_is_still_a_url(tmp_path, monkeypatch):
    from pathlib import Path

    assert as_url(Path("hf://org/name@step*")) == "hf://org/name@step*"
    assert as_url("hf://org/name") == "hf://org/name"
    assert as_url("https:/host/x") == "https://host/x"
    assert as_url("C:/x") == as_url("runs/hf:x") == as_url(tmp_path) == ""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "hf:" / "org").mkdir(parents=True)
    assert as_url(Path("hf:/org")) == ""


def test_local_paths_import_nothing_of_it_and_a_missing_library_is_named(tmp_path, packed):
    (tmp_path / "model.safetensors").write_bytes(packed({"a": W}))
    code = (
        "import sys; from ckpt_tools.checkpoint import open_trajectory as t\n"
        f"t({str(tmp_path)!r}).checkpoint(0).read('a')\n"
        "bad = {m for m in sys.modules if m.startswith('ckpt_tools.checkpoint.remote')}\n"
        "bad |= {'huggingface_hub', 'fsspec', 'httpx', 'httpx2', 'requests', 'ssl'} & set(sys.modules)\n"
        "assert not bad, bad\n"
        "sys.modules['huggingface_hub'] = sys.modules['fsspec'] = None\n"
        "from ckpt_tools import SourceError\n"
        "for url in ('hf://a/b', 'hf://a/b@s*', 's3://a/b', 'https://a/b/'):\n"
        "    try: t(url)\n"
        "    except SourceError as error: assert \"pip install 'ckpt-tools[hf]'\" in str(error), error\n"
        "    else: raise SystemExit('no error')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
