"""Messages stay readable whatever a file holds."""

from __future__ import annotations

import pickle

from ckpt_tools.errors import FormatError, nearest


def test_long_names_do_not_flood_the_screen() -> None:
    error = FormatError(f"x.bin: tensor {'a' * 100_000!r} needs 4 bytes.")
    assert len(str(error)) < 1_700
    assert str(error).startswith("x.bin: tensor 'aaa") and str(error).endswith("a' needs 4 bytes.")
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


def test_nearest_names_the_closest_or_all() -> None:
    assert nearest("ranc", ["rank", "drift"]) == " Did you mean 'rank'?"
    assert nearest("x", ["rank", "drift"]) == " Known: drift, rank."
    assert nearest("x", []) == ""
