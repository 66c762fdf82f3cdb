import pytest
import torch
import torch.nn.functional as F

from pgt import smooth_labels
from pgt.methods import uniform_epsilon


def test_both_conventions_on_a_worked_example():
    y = torch.tensor([1])
    assert smooth_labels(y, 5, 0.1, "paper")[0].tolist() == pytest.approx([0.025, 0.9, 0.025, 0.025, 0.025])
    assert smooth_labels(y, 5, 0.1, "uniform")[0].tolist() == pytest.approx([0.02, 0.92, 0.02, 0.02, 0.02])


def test_uniform_is_pytorchs():
    z, y = torch.randn(8, 10), torch.randint(10, (8,))
    expected = F.cross_entropy(z, y, label_smoothing=0.1)
    torch.testing.assert_close(F.cross_entropy(z, smooth_labels(y, 10, 0.1, "uniform")), expected)


@pytest.mark.parametrize("smoothing", ["paper", "uniform"])
@pytest.mark.parametrize("epsilon", [0.0, 0.1, 0.9])
def test_rows_are_distributions(smoothing, epsilon):
    q = smooth_labels(torch.randint(10, (4, 3)), 10, epsilon, smoothing)
    assert q.shape == (4, 3, 10)
    assert (q >= -1e-7).all()
    torch.testing.assert_close(q.sum(-1), torch.ones(4, 3))


@pytest.mark.parametrize("arguments", [(1.5, 10, "paper"), (0.1, 10, "eq7"), (0.1, 1, "paper"), (0.95, 10, "paper")])
def test_bad_arguments_are_refused(arguments):
    with pytest.raises(ValueError, match=r"label_smoothing|smoothing"):
        uniform_epsilon(*arguments)
