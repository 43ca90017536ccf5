import numpy as np
import pytest
from ckpt_kurtosis import Kurtosis, moments

from ckpt_tools.testing import analyzer_checks


@pytest.mark.parametrize("check", analyzer_checks(Kurtosis), ids=str)
def test_conforms(check):
    check()


def test_two_values_and_one_outlier_have_closed_forms():
    coin = np.array([[[1.0, -1.0], [1.0, -1.0]]])
    assert moments(coin) == (pytest.approx([-2.0]), pytest.approx([1.0]))
    # One 1 among n - 1 zeros: the kurtosis of a Bernoulli variable of probability 1 / n.
    n, p = 100, 0.01
    spike = np.eye(1, n)[None]
    kurtosis, peak = moments(spike)
    assert kurtosis == pytest.approx([(1 - 6 * p * (1 - p)) / (p * (1 - p))])
    assert peak == pytest.approx([np.sqrt(n - 1)])
