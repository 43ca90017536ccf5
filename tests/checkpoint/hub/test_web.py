"""Web servers: a lone file, a listed folder, a trajectory of folders; Python's own server is one of them."""

from __future__ import annotations

import functools
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from ckpt_tools.checkpoint import open_checkpoint, open_trajectory
from ckpt_tools.checkpoint.location import Item
from ckpt_tools.checkpoint.remote.web import children
from ckpt_tools.errors import FetchError, SourceError

from .conftest import Blob

W = np.random.default_rng(4).standard_normal((128, 256)).astype(np.float32)


@pytest.fixture
def folder(hub, tmp_path):
    """A folder, and the address at which Python's server lists it; that server knows no ranges."""
    root = tmp_path / "www"
    root.mkdir()
    seen: list[str] = []

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, format, *args):
            seen.append(self.path)

    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(root)))
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    yield root, f"http://127.0.0.1:{server.server_port}", seen
    server.shutdown()
    server.server_close()


def put(hub, path, data):
    hub.plain[path] = Blob(data)


def test_a_lone_file_is_read_in_ranges(hub, packed):
    put(hub, "/some/dir/step7.safetensors", packed({"a": W, "b": W * 2}))
    with open_checkpoint(f"{hub.url}/some/dir/step7.safetensors?sig=secret#x") as checkpoint:
        assert np.array_equal(checkpoint.read("b"), W * 2)
        assert checkpoint.step == 7 and "secret" not in repr(checkpoint) + str(checkpoint.metadata)
        assert str(checkpoint.path) == f"{hub.url}/some/dir/step7.safetensors"
        assert list(checkpoint.metadata["etag"]) == ["step7.safetensors"]
    asked = hub.asked("step7")
    assert [s.status for s in asked] == [206, 206] and asked[1].sent == W.nbytes
    assert all("sig=secret" in s.path for s in asked)


def test_the_main_file_of_a_folder_brings_its_configuration(hub, packed):
    put(hub, "/m/model.safetensors", packed({"a": W}))
    put(hub, "/m/config.json", b'{"model_type": "llama"}')
    assert open_checkpoint(f"{hub.url}/m/model.safetensors").config == {"model_type": "llama"}
    with pytest.raises(SourceError, match=r"other.safetensors does not exist, or the server does not give it"):
        open_checkpoint(f"{hub.url}/m/other.safetensors")
    with pytest.raises(FetchError, match=r"the listing of .*/m/ cannot be fetched: it does not exist"):
        open_checkpoint(f"{hub.url}/m/")


def test_a_listed_folder_without_ranges(folder, save):
    root, url, seen = folder
    for step in (2, 10):
        save(root / "run" / f"checkpoint-{step}" / "model.safetensors", {"a": W * step, "b": W})
        (root / "run" / f"checkpoint-{step}" / "config.json").write_text('{"model_type": "llama"}')
    (root / "run" / "tmp-1").mkdir()
    for address in (f"{url}/run/", f"{url}/run"):
        trajectory = open_trajectory(address)
        assert trajectory.steps == [2, 10] and [s.name for s in trajectory.skipped] == ["tmp-1"]
        with trajectory.checkpoint(10) as checkpoint:
            assert np.array_equal(checkpoint.read("a"), W * 10)
            assert checkpoint.config == {"model_type": "llama"} and checkpoint.step == 10
    assert not any("checkpoint-2" in path for path in seen)


def test_a_file_that_changes_between_two_reads_is_refused(hub, packed):
    put(hub, "/x.safetensors", packed({"a": W, "b": W}))
    checkpoint = open_checkpoint(f"{hub.url}/x.safetensors")
    put(hub, "/x.safetensors", packed({"a": W, "b": -W}))
    with pytest.raises(FetchError, match="has changed while it was being read: its ETag is"):
        checkpoint.read("b")


def test_a_small_file_from_a_server_without_ranges_takes_one_request(folder, save):
    root, url, seen = folder
    save(root / "x.safetensors", {"a": W[:4]})
    assert np.array_equal(open_checkpoint(f"{url}/x.safetensors").read("a"), W[:4])
    assert seen == ["/x.safetensors"]


def test_an_empty_file_and_a_page(hub, folder):
    root, url, _ = folder
    (root / "empty.safetensors").write_bytes(b"")
    with pytest.raises(SourceError, match=r"empty.safetensors is empty \(0 bytes\)"):
        open_checkpoint(f"{url}/empty.safetensors")
    (root / "page.html").write_text("<html><a href='x'>x</a></html>")
    with pytest.raises(SourceError):
        open_checkpoint(f"{url}/page.html")


def test_passwords_do_not_belong_into_addresses(hub):
    with pytest.raises(SourceError, match="write the address without user and password") as caught:
        open_checkpoint("https://me:pw@host.example/x/")
    assert "pw" not in str(caught.value).replace("password", "")


def test_only_direct_children_of_a_page_count():
    page = """<a href="../">up</a> <a href="a.bin">a</a> <A HREF='/top/sub/b/'>b</A> <a href="/other/c">c</a>
    <a href="http://elsewhere/top/sub/d">d</a> <a href="e/f">deep</a> <a href="?C=N;O=D">sort</a> <a>none</a>
    <a href="step%201">spaced</a> <a href="..%2fx">out</a> <a href="%2e%2e">up</a> <a href="http://[bad">x</a>
    <a href="./g?download=1">g</a>"""
    found = children(page, "http://host/top/sub/")
    assert found == {"a.bin": Item(), "b": Item(folder=True), "step 1": Item(), "g": Item()}
