"""Tensors as arrays."""

import numpy as np
import pytest
import torch

from ckpt_tools import to_numpy
from ckpt_tools.arrays import has_float64


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.int64, torch.bool])
def test_an_array_has_the_numbers_of_its_tensor(dtype: torch.dtype) -> None:
    tensor = torch.tensor([[0, 1, 2], [3, 4, 5]]).to(dtype)
    array = to_numpy(tensor.T)
    assert array.dtype == np.dtype(str(dtype).removeprefix("torch."))
    assert array.tolist() == tensor.T.tolist()
    array[0, 0] = 7
    assert tensor[0, 0] == torch.tensor(7).to(dtype), "on the CPU both are one"


def test_gradients_are_left_behind() -> None:
    assert to_numpy(2 * torch.ones(2, requires_grad=True)).tolist() == [2.0, 2.0]


def test_who_has_double_precision() -> None:
    assert [has_float64(name) for name in ("cpu", "cuda:1", "mps")] == [True, True, False]
