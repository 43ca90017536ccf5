"""The token goes to the endpoint and nowhere else: no other server, log, message, traceback, repr, pickle or result."""

from __future__ import annotations

import gc
import io
import logging
import os
import pickle
import subprocess
import sys
import traceback
from contextlib import suppress

import numpy as np
import pytest

from ckpt_tools import analyze
from ckpt_tools.checkpoint import open_checkpoint, open_trajectory
from ckpt_tools.errors import CkptError

from .conftest import TOKEN

W = np.random.default_rng(2).standard_normal((64, 64)).astype(np.float32)
SECRET = TOKEN[3:]


@pytest.fixture
def private(hub, packed, token):
    """A repository that only the owner of the token may see."""
    for step in (1, 2):
        files = {"model.safetensors": packed({"w": W * step}), "config.json": b"{}"}
        hub.commit("org/name", files, branch=f"step{step}")
    hub.repos["org/name"].private = hub.repos["org/name"].gated = True
    return hub


@pytest.fixture
def logs():
    """Everything that is logged by anybody, at every level."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    root, before = logging.getLogger(), logging.getLogger().level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    named = [logging.getLogger(n) for n in ("huggingface_hub", "httpx", "httpx2", "httpcore", "httpcore2")]
    levels = [logger.level for logger in named]
    for logger in named:
        logger.setLevel(logging.DEBUG)
        logger.addHandler(handler)
    yield stream
    root.setLevel(before)
    root.removeHandler(handler)
    for logger, level in zip(named, levels, strict=True):
        logger.setLevel(level)
        logger.removeHandler(handler)


def told(error: BaseException) -> str:
    """Return all that can be printed of an error: with the local variables, and of every error before it."""
    found: list[str] = []
    while error is not None:
        found += traceback.TracebackException.from_exception(error, capture_locals=True, max_group_width=99).format()
        found += [repr(error), str(error), repr(error.args)]
        error = error.__cause__ or error.__context__
    return "\n".join(found)


def test_the_endpoint_gets_it_and_the_content_server_does_not(private):
    with open_checkpoint("hf://org/name@step2") as checkpoint:
        assert np.array_equal(checkpoint.read("w"), W * 2)
    assert all(s.headers.get("authorization") == f"Bearer {TOKEN}" for s in private.asked("hub/"))
    assert private.asked("cdn/") and not any("authorization" in s.headers for s in private.asked("cdn/"))
    assert not any(SECRET in s.path for s in private.seen)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
@pytest.mark.parametrize(
    "what", ["hub/api.*revision", "hub/api.*tree", "hub/org/name/resolve", "hub/api/resolve-cache"]
)
def test_no_redirect_takes_it_along(private, what, host):
    elsewhere = f"http://{host}:{private.servers['cdn'].server_port}/org/x"
    private.fault(what, status=302, headers={"Location": elsewhere})
    with suppress(CkptError):
        open_checkpoint("hf://org/name@step2")
    assert private.asked("cdn/org/x")
    assert not any("authorization" in s.headers for s in private.asked("cdn/"))


def test_it_comes_back_when_a_redirect_does(private):
    way = f"{private.cdn}/away"
    private.fault("hub/api.*revision", status=302, headers={"Location": way})
    private.fault("cdn/away", status=302, headers={"Location": f"{private.url}/api/models/org/name/revision/step2"})
    with open_checkpoint("hf://org/name@step2") as checkpoint:
        assert np.array_equal(checkpoint.read("w"), W * 2)
    assert not any("authorization" in s.headers for s in private.asked("cdn/"))


def test_a_web_server_gets_none_even_if_it_is_the_hubs(private):
    private.plain["/files/model.safetensors"] = next(iter(private.repos["org/name"].commits.values()))[
        "model.safetensors"
    ]
    with open_checkpoint(f"{private.url}/files/model.safetensors") as checkpoint:
        checkpoint.read("w")
    assert not any("authorization" in s.headers for s in private.asked("hub/files"))


def test_a_user_may_keep_it_back(private, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_DISABLE_IMPLICIT_TOKEN", True)
    with pytest.raises(CkptError, match="or it is private"):
        open_checkpoint("hf://org/name@step2")
    assert not any("authorization" in s.headers for s in private.seen)


@pytest.mark.parametrize(
    ("where", "fault"),
    [
        ("hub/", {"status": 401, "headers": {"X-Error-Code": "GatedRepo"}}),
        ("hub/", {"status": 403}),
        ("hub/", {"status": 404, "headers": {"X-Error-Code": "RepoNotFound"}}),
        ("hub/", {"status": 503}),
        ("hub/", {"cut": 3}),
        ("hub/", {"status": 302, "headers": {"Location": "file:///x"}}),
        ("hub/", {"status": 302, "headers": {"Location": "http://127.0.0.1:9/x"}}),
        ("hub/org/name/resolve", {"status": 302, "headers": {"Location": "/org/name/resolve/loop"}}),
        ("cdn/", {"status": 403}),
        ("cdn/", {"cut": 3}),
        ("cdn/", {"shift": 1}),
        ("cdn/", {"headers": {"ETag": '"x"'}}),
    ],
)
def test_it_is_in_no_error(private, logs, where, fault, capfd):
    errors = []
    for times in (0, 1):  # with and without a checkpoint that was opened before
        try:
            checkpoint = open_checkpoint("hf://org/name@step2") if times else None
            private.fault(where, times=99, **fault)
            (checkpoint or open_checkpoint("hf://org/name@step2")).read("w")
        except CkptError as error:
            errors.append(error)
        private.faults.clear()
    if "headers" not in fault or "ETag" not in fault["headers"]:
        assert errors
    for error in errors:
        assert SECRET not in told(error)
        assert SECRET not in pickle.dumps(error).decode("latin-1")
    out, err = capfd.readouterr()
    assert SECRET not in out + err + logs.getvalue()


@pytest.mark.parametrize(
    "fault",
    [
        {"status": 400, "headers": {"X-Error-Message": f"bad token {TOKEN}"}},
        {"status": 302, "headers": {"Location": f"file:///x?{TOKEN}"}},
        {"headers": {"Link": f'<http://127.0.0.1:9/?{TOKEN}>; rel="next"'}, "status": 200},
    ],
)
def test_what_a_server_says_back_is_not_repeated(private, fault):
    private.fault("hub/", times=99, **fault)
    with pytest.raises(CkptError) as caught:
        open_checkpoint("hf://org/name@step2")
    assert SECRET not in "".join(traceback.format_exception(caught.value))


def test_it_is_in_no_result_repr_or_pickle(private, logs, tmp_path, capfd):
    output = tmp_path / "r.h5"
    outcome = analyze("hf://org/name@step*", ["rank"], output=output)
    assert outcome.steps == [1, 2]
    trajectory = open_trajectory("hf://org/name@step*")
    checkpoint = trajectory.checkpoint(1)
    checkpoint.read("w")
    things = [outcome, trajectory, checkpoint, trajectory.entries, checkpoint.metadata, checkpoint._sources]
    things += [vars(s) for s in checkpoint._sources] + [vars(trajectory.entries[0].path.store.repository.session)]
    assert SECRET not in "".join(map(repr, things)) + logs.getvalue() + "".join(capfd.readouterr())
    for thing in (trajectory, checkpoint):
        assert SECRET not in pickle.dumps(thing).decode("latin-1")
    assert logs.getvalue()
    for path in tmp_path.rglob("*"):
        assert not path.is_file() or SECRET.encode() not in path.read_bytes()


def test_no_object_of_ours_keeps_it(private):
    checkpoint = open_checkpoint("hf://org/name@step1")
    checkpoint.read("w")
    holders = []
    for thing in gc.get_objects():
        module = getattr(type(thing), "__module__", "")
        if isinstance(module, str) and module.startswith("ckpt_tools"):
            holders += [type(thing) for value in getattr(thing, "__dict__", {}).values() if SECRET in repr(value)]
    assert holders == []


def test_the_command_line_does_not_print_it(private, tmp_path):
    home = {"HF_ENDPOINT": private.url, "HF_HOME": str(tmp_path), "HF_TOKEN": TOKEN, "HF_DEBUG": "1"}
    environment = {**os.environ, **home}
    for arguments in (["analyze", "hf://org/name@step*", "-p", "rank", "-o", str(tmp_path / "x.h5")],
                      ["inspect", "hf://org/name@step2"], ["inspect", "hf://org/gone"]):  # fmt: skip
        command = [sys.executable, "-m", "ckpt_tools.cli", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        assert done.returncode == (2 if "hf://org/gone" in arguments else 0), done.stderr
        assert SECRET not in done.stdout + done.stderr
