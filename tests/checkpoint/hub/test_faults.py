"""What goes wrong on the way: asked again where that helps, refused where it does not, never a wrong number."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from threading import Event

import numpy as np
import pytest

from ckpt_tools.checkpoint import open_checkpoint, open_trajectory
from ckpt_tools.checkpoint.remote import retries, session
from ckpt_tools.errors import FetchError

W = np.random.default_rng(1).standard_normal((512, 256)).astype(np.float32)
URL = "hf://org/name"


@pytest.fixture
def model(hub, packed):
    """A tensor `x` of 512 KiB behind one of 64 KiB."""
    hub.commit("org/name", {"model.safetensors": packed({"a": W[:64], "x": W})}, branch="main")
    return hub


@pytest.fixture
def waits(monkeypatch):
    """The waits, in seconds, that would have been made."""
    found: list[float] = []

    def pause(seconds: float, stop: Event) -> bool:
        found.append(seconds)
        return stop.is_set()

    monkeypatch.setattr(retries, "pause", pause)
    return found


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504, 408])
@pytest.mark.parametrize("where", ["hub/api.*revision", "hub/api.*tree", "hub/org/name/resolve", "cdn/"])
def test_passing_trouble_is_sat_out(model, waits, status, where):
    model.fault(where, times=3, status=status)
    with open_checkpoint(URL) as checkpoint:
        assert np.array_equal(checkpoint.read("x"), W)
    assert len(waits) == 3
    for i, wait in enumerate(waits):
        assert 0.25 * 2**i <= wait <= 0.5 * 2**i


def test_lasting_trouble_is_an_error_that_says_where(model, waits):
    model.fault("cdn/", times=99, status=503)
    expected = r"model.safetensors \(main\) cannot be fetched: 127.0.0.1 answers with status 503 \(6 attempts\)"
    with pytest.raises(FetchError, match=expected):
        open_checkpoint(URL)
    assert len(waits) == 5 and len(model.asked("cdn/")) == 6


def test_the_server_says_how_long_to_wait(model, waits):
    model.fault("cdn/", status=429, headers={"Retry-After": "7"})
    model.fault("cdn/", status=503, headers={"Retry-After": format_datetime(datetime.now(UTC) + timedelta(seconds=90))})
    model.fault("cdn/", status=429, headers={"RateLimit": '"api";r=0;t=55'})
    model.fault("cdn/", status=503, headers={"Retry-After": "soon"})
    open_checkpoint(URL)
    assert waits[0] == 7.0 and 85 < waits[1] <= 90 and waits[2] == 56.0 and 2.0 <= waits[3] <= 4.0


def test_a_server_that_asks_for_too_much_patience_gets_none(model, waits):
    model.fault("cdn/", status=429, headers={"Retry-After": "3600"})
    with pytest.raises(FetchError, match="the server asks to wait 3,600 s"):
        open_checkpoint(URL)
    assert waits == []


@pytest.mark.parametrize("cut", [0, 1, 1000, 2**16, 2**18])
def test_a_cut_body_is_continued_where_it_was_cut(model, cut):
    checkpoint = open_checkpoint(URL)
    before = len(model.asked("cdn/"))
    model.fault("cdn/", cut=cut)
    assert np.array_equal(checkpoint.read("x"), W)
    first, second = (s.range.removeprefix("bytes=").split("-") for s in model.asked("cdn/")[before:])
    assert int(second[0]) == int(first[0]) + cut and second[1] == first[1]
    assert sum(s.sent for s in model.asked("cdn/")[before:]) == W.nbytes


def test_a_cut_interface_answer_is_asked_for_again(model):
    model.fault("hub/api.*tree", cut=20, times=2)
    model.fault("hub/api.*refs", cut=5)
    model.repos["org/name"].tags["step7"] = model.repos["org/name"].branches["main"]
    assert np.array_equal(open_trajectory("hf://org/name@step*").checkpoint(7).read("x"), W)
    assert len(model.asked("hub/api.*tree")) == 3 and len(model.asked("hub/api.*refs")) == 2


def test_a_body_cut_again_and_again_without_progress_is_given_up(model, waits):
    checkpoint = open_checkpoint(URL)
    model.fault("cdn/", cut=100, times=99)
    with pytest.raises(FetchError, match=r"cannot be fetched: .*6 attempts"):
        checkpoint.read("x")
    assert len(waits) == 5


def test_a_body_that_advances_between_cuts_arrives(model, waits):
    checkpoint = open_checkpoint(URL)
    model.fault("cdn/", cut=2**16, times=99)
    assert np.array_equal(checkpoint.read("x"), W)
    assert len(waits) == 7 and max(waits) <= 0.5  # each cut is the first after progress


def test_a_server_that_says_nothing_is_asked_again(model, monkeypatch):
    monkeypatch.setattr(session, "TIMEOUT", 0.2)
    model.fault("cdn/", pause=0.6)
    model.fault("hub/api.*tree", pause=0.6)
    assert np.array_equal(open_checkpoint(URL).read("x"), W)


def test_a_server_that_drips_is_asked_again(model, monkeypatch):
    clock = iter(range(0, 10**9, 100))
    checkpoint = open_checkpoint(URL)
    monkeypatch.setattr(session, "SLOWEST", 2**30)
    monkeypatch.setattr(session, "now", lambda: next(clock))
    monkeypatch.setattr(retries, "ENOUGH", 1)
    before = len(model.asked("cdn/"))
    assert np.array_equal(checkpoint.read("x"), W)
    starts = [int(s.range.removeprefix("bytes=").split("-")[0]) for s in model.asked("cdn/")[before:]]
    assert len(starts) > 3 and starts == sorted(set(starts))  # each goes on where the one before was left
    monkeypatch.setattr(retries, "ENOUGH", 2**30)
    with pytest.raises(FetchError, match=r"only [\d,]+ bytes came in \d+ s \(6 attempts\)"):
        checkpoint.read("x")


def test_nobody_there(hub, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(FetchError, match=r"cannot be fetched: ConnectError \(.*refused.*\) \(6 attempts\)"):
        open_checkpoint(URL)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ({"shift": 1}, r"was asked for bytes \d+-\d+ and answers with \d+-\d+"),
        ({"grow": 5}, r"has changed while it was being read: it has [\d,]+ bytes instead of"),
        ({"headers": {"ETag": '"other"'}}, "has changed while it was being read: its ETag is 'other' instead of"),
        ({"headers": {"Content-Encoding": "gzip"}}, "the server sends it compressed"),
        ({"headers": {"Content-Range": "bytes"}}, "the server's answer to a range makes no sense"),
        ({"status": 204}, "the server's answer to a range makes no sense .status 204"),
    ],
    ids=["shifted", "grown", "etag", "compressed", "malformed", "empty"],
)
def test_an_answer_about_other_bytes_is_refused(model, fault, message):
    checkpoint = open_checkpoint(URL)
    model.fault("cdn/", **fault)
    with pytest.raises(FetchError, match=message):
        checkpoint.read("x")


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ({"X-Linked-Etag": '"' + "0" * 64 + '"'}, r"its SHA-256 is 000000000000\.\.\. instead of"),
        ({"X-Repo-Commit": "1" * 40}, "it comes from commit 111111111111 instead of"),
    ],
)
def test_a_file_that_the_hub_changes_under_the_commit_is_refused(model, header, message):
    target = f"{model.cdn}/org/name/{{}}?Signature=sig-1"
    sha = next(b.sha256 for b in next(iter(model.repos["org/name"].commits.values())).values())
    model.fault("hub/org/name/resolve", status=302, headers={**header, "Location": target.format(sha)})
    with pytest.raises(FetchError, match=message):
        open_checkpoint(URL)


def test_a_changed_small_file_is_refused(hub, packed):
    hub.commit("org/name", {"model.safetensors": packed({"a": W}), "config.json": b'{"a": 1}'}, branch="main")
    hub.fault("resolve-cache", status=200)
    checkpoint = open_checkpoint(URL)
    reason = next(s.reason for s in checkpoint.skipped if s.name == "config.json")
    assert re.search("is not what the hub lists: its git hash is", reason)


def test_an_address_that_expires_is_resolved_again(model):
    checkpoint = open_checkpoint(URL)
    model.signature = "sig-2"
    assert np.array_equal(checkpoint.read("x"), W)
    assert [s.status for s in model.asked("cdn/")] == [206, 403, 206]
    assert len(model.asked("hub/org/name/resolve")) == 2


@pytest.mark.parametrize(
    ("location", "message"),
    [
        ("file:///etc/passwd", "a redirect to 'file:///etc/passwd' is not followed"),
        ("ftp://127.0.0.1/x", "a redirect to 'ftp://127.0.0.1/x' is not followed"),
        ("http://user:pw@127.0.0.1/x", "a redirect to 'http://127.0.0.1/x' is not followed"),
        ("http://[::bad", "it is redirected to no address|Invalid URL in location"),
        ("", "is not followed"),
        ("/org/name/resolve/loop", "more than 5 redirects"),
    ],
)
def test_redirects_to_strange_places_are_not_followed(model, location, message):
    model.fault("hub/org/name/resolve", times=99, status=302, headers={"Location": location})
    with pytest.raises(FetchError, match=message):
        open_checkpoint(URL)


def test_a_redirect_from_https_to_http_is_not_followed():
    with pytest.raises(FetchError, match=r"from https to http \(cdn.example\) is not followed"):
        session._next("https://hub.example/x", "http://cdn.example/x", "it")
    assert session._next("https://hub.example/x", "//cdn.example/y", "it") == "https://cdn.example/y"


def test_a_list_that_sends_its_reader_elsewhere_is_not_followed(model):
    model.fault("hub/api.*tree", headers={"Link": f'<{model.cdn}/more>; rel="next"'}, status=200)
    with pytest.raises(FetchError, match="does not answer like the hub"):
        open_checkpoint(URL)
    from ckpt_tools.checkpoint.remote.hub import Repository

    with pytest.raises(FetchError, match="the hub sends its reader to another server"):
        Repository("org/name").ask(f"{model.cdn}/more", "the list")
    assert not model.asked("cdn/")


def test_answers_are_bounded(model, monkeypatch):
    monkeypatch.setattr(session.Session.get, "__defaults__", (100,))
    with pytest.raises(FetchError, match="the answer has more than the 100 bytes that are accepted of it"):
        open_checkpoint(URL)


def test_lists_without_end_are_bounded(model, monkeypatch):
    from ckpt_tools.checkpoint.remote import hub

    monkeypatch.setattr(hub, "MAX_PAGES", 3)
    model.page_size = 0
    model.commit("org/name", {f"{i}.txt": b"" for i in range(9)}, branch="main")
    with pytest.raises(FetchError, match="has more than 3 pages"):
        open_checkpoint(URL)


def test_gated_private_and_absent_repositories_say_what_to_do(hub, packed):
    hub.commit("org/name", {"model.safetensors": packed({"a": W})}, branch="main")
    hub.repos["org/name"].gated = True
    with pytest.raises(FetchError, match=r"is gated. Accept its terms at http://127.*/org/name, then log in with `hf"):
        open_checkpoint(URL)
    hub.repos["org/name"].private = True
    with pytest.raises(FetchError, match="no such repository, or it is private; check the name, or log in with"):
        open_checkpoint(URL)
    hub.fault("hub/api", status=403)
    with pytest.raises(FetchError, match="access is denied; log in with"):
        open_checkpoint(URL)


def test_a_server_without_ranges_is_read_from_a_copy(model, tmp_path):
    model.fault("cdn/", times=99, whole=True)
    with open_checkpoint(URL) as checkpoint:
        assert np.array_equal(checkpoint.read("x"), W)
    assert [p.name for p in (tmp_path / "ckpt-cache").glob("*/*")] == ["model.safetensors"]
