"""Decoding against torch's own conversion, every bit pattern of every small type."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ckpt_tools.checkpoint.dtypes import DTYPES, ITEMSIZE, SAFETENSORS, decode, float8_values

FLOAT8 = [name for name in DTYPES if name.startswith("float8")]


@pytest.mark.parametrize("name", FLOAT8)
def test_every_pattern_of_an_8_bit_float(name):
    raw = np.arange(256, dtype=np.uint8)
    expected = torch.from_numpy(raw.copy()).view(getattr(torch, name)).to(torch.float32).numpy()
    np.testing.assert_array_equal(decode(name, raw), expected)
    signs = ~np.isnan(expected)
    np.testing.assert_array_equal(np.signbit(decode(name, raw))[signs], np.signbit(expected)[signs])


@pytest.mark.parametrize("name", ["bfloat16", "float16"])
def test_every_pattern_of_a_16_bit_float(name):
    raw = np.arange(65536, dtype=np.uint16)
    expected = torch.from_numpy(raw.copy()).view(getattr(torch, name)).to(torch.float32).numpy()
    ours = decode(name, raw.view(DTYPES[name].stored))
    finite = ~np.isnan(expected)
    np.testing.assert_array_equal(np.isnan(ours), ~finite)
    np.testing.assert_array_equal(ours.view(np.uint32)[finite], expected.view(np.uint32)[finite])


def test_names_and_sizes_are_those_of_torch():
    for name, size in ITEMSIZE.items():
        assert getattr(torch, name).itemsize == size, name


def test_safetensors_codes_are_those_of_the_reference_library(tmp_path):
    from safetensors import safe_open
    from safetensors.torch import save_file

    for code, name in SAFETENSORS.items():
        save_file({"x": torch.zeros(2, dtype=getattr(torch, name))}, tmp_path / "x")
        with safe_open(tmp_path / "x", "pt") as file:
            assert file.get_slice("x").get_dtype() == code


def test_any_nonzero_byte_is_true():
    assert decode("bool", np.array([0, 1, 2, 255], dtype=np.uint8)).tolist() == [False, True, True, True]


def test_decodes_into_a_given_array_and_keeps_the_shape():
    raw = np.array([[0x3F80, 0xC000], [0x0000, 0x8000]], dtype=np.uint16)
    out = np.empty((2, 2), np.float32)
    assert decode("bfloat16", raw, out) is out
    assert out.tolist() == [[1.0, -2.0], [0.0, -0.0]]


def test_tables_of_8_bit_floats_cannot_be_changed():
    with pytest.raises(ValueError, match="read-only"):
        float8_values("float8_e5m2")[0] = 1.0
