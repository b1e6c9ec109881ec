"""Losses inside the model, near their optimum: gradients beside eager fp32."""

import copy

import pytest
import torch
import torch.nn.functional as F
from capture_helpers import compile_for_twin, distance
from torch import nn


class Fitted(nn.Module):
    """A linear map whose targets lie 0.01 away, and the mean of the loss over a million differences."""

    def __init__(self, loss):
        super().__init__()
        self.loss = loss
        self.linear = nn.Linear(64, 64, bias=False).half().float()  # no rounding of weights, which would be a difference too

    def forward(self, x, target):
        return self.loss(self.linear(x), target)


@pytest.mark.parametrize("loss", [F.mse_loss, F.huber_loss, F.smooth_l1_loss])
def test_small_differences_among_many_keep_their_gradient(loss):
    torch.manual_seed(0)
    eager = Fitted(loss)
    model = copy.deepcopy(eager)
    x = torch.randn(2**14, 64)
    target = eager.linear(x).detach() + 0.01 * x @ torch.randn(64, 64) / 8
    eager(x, target).backward()
    compile_for_twin(model)(x, target).backward()
    assert distance(model.linear.weight.grad, eager.linear.weight.grad) < 0.02


def test_a_loss_with_a_small_factor_keeps_its_gradient():
    torch.manual_seed(0)
    eager = Fitted(lambda y, target: 1e-4 * F.mse_loss(y, target))
    model = copy.deepcopy(eager)
    x, target = torch.randn(2, 2048, 64)
    eager(x, target).backward()
    compile_for_twin(model)(x, target).backward()
    assert distance(model.linear.weight.grad, eager.linear.weight.grad) < 0.02
