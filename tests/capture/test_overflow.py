"""What leaves fp16's range in a forward is said."""

import pytest
import torch
from torch import nn

from torchane.capture import backend
from torchane.errors import NumericsError, TorchaneWarning


class Loud(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(32, 32, bias=False)
        self.loud = nn.Linear(32, 32, bias=False)
        nn.init.constant_(self.loud.weight, 1000.0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.loud(torch.relu(self.first(x)) + 1.0)


def compiled(**options) -> nn.Module:
    torch.manual_seed(0)
    return torch.compile(Loud(), backend=backend.ane, options={"device": "twin", **options})


def test_a_result_beyond_fp16_is_pytorchs_and_warned_of_with_its_layer_and_once():
    model = compiled()
    x = torch.full((4, 32), 50.0)
    with torch.no_grad():
        with pytest.warns(TorchaneWarning, match=r"values of \S+ in loud, test_overflow.py:\d+ are infinite.*65504.*float32"):
            torch.testing.assert_close(model(x), model._orig_mod(x))
        torch.testing.assert_close(model(x), model._orig_mod(x))  # warnings are errors here


def gradients_of(loss: torch.Tensor, model: nn.Module) -> tuple[torch.Tensor, ...]:
    return torch.autograd.grad(loss, list(model.parameters()))


def test_a_training_step_that_overflows_forward_is_pytorchs_forward_and_backward():
    model, x = compiled(), torch.full((4, 32), 50.0)
    with pytest.warns(TorchaneWarning, match="loud.*PyTorch computes the forward, and its backward, in float32"):
        loss = model(x).square().mean()
    expected = model._orig_mod(x).square().mean()
    torch.testing.assert_close(gradients_of(loss, model._orig_mod), gradients_of(expected, model._orig_mod))


def test_an_overflow_that_a_function_would_hide_is_seen_in_what_is_saved():
    torch.manual_seed(0)
    first, last = nn.Parameter(torch.randn(32, 32) * 2000), nn.Parameter(torch.randn(32, 32))

    def hidden(x):  # relu and tanh make 1 of an infinity
        return torch.tanh((x @ first).relu().mean(-1, keepdim=True) * 1e-3 * last)

    x = torch.randn(8, 32) * 10
    with pytest.warns(TorchaneWarning, match="are infinite or NaN.*float32"):
        got = torch.compile(hidden, backend=backend.ane, options={"device": "twin"})(x[:1])
    torch.testing.assert_close(got, hidden(x[:1]))


def deep(layers: int) -> tuple[nn.Module, torch.Tensor]:
    """Products whose forward is 0 and whose gradient grows by 16,000 a layer, and their input."""
    stack = nn.Sequential(*(nn.Linear(32, 32, bias=False) for _ in range(layers)))
    for layer in stack:
        nn.init.constant_(layer.weight, 500.0)
    return stack, torch.zeros(4, 32, requires_grad=True)


def test_a_backward_that_fits_at_no_scale_is_pytorchs_and_named():
    stack, zero = deep(6)
    got = torch.compile(stack, backend=backend.ane, options={"device": "twin"})(zero)
    with pytest.warns(TorchaneWarning, match="The backward makes the incoming gradient .* in float32"):
        (found,) = torch.autograd.grad(got.sum(), zero)
    torch.testing.assert_close(found, torch.autograd.grad(stack(zero).sum(), zero)[0])


def test_a_backward_that_makes_infinities_in_float32_too_says_so_and_blames_no_batch():
    stack, zero = deep(12)
    got = torch.compile(stack, backend=backend.ane, options={"device": "twin"})(zero)
    with pytest.raises(NumericsError, match="In float32 its results are infinite or NaN, too") as raised:
        torch.autograd.grad(got.sum(), zero)
    assert "batch" not in str(raised.value)


def test_an_input_beyond_fp16_that_a_product_reads_is_named_before_the_program_runs():
    class Regression(nn.Module):
        def __init__(self):
            super().__init__()
            self.out = nn.Linear(3, 2)

        def forward(self, income):
            return self.out(income)

    with torch.no_grad(), pytest.warns(TorchaneWarning, match=r"The input income holds 150,000, above fp16's 65504"):
        torch.compile(Regression(), backend=backend.ane, options={"device": "twin"})(torch.tensor([[1.0, 150000.0, 2.0]]))


def test_an_input_beyond_fp16_that_is_normed_first_is_none():
    torch.manual_seed(0)
    model = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 2))
    x = torch.randn(16, 3) * 1e5 + 3e5
    with torch.no_grad():
        torch.testing.assert_close(torch.compile(model, backend=backend.ane, options={"device": "twin"})(x), model(x), atol=4e-3, rtol=4e-3)
