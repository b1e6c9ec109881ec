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


def test_a_training_step_that_overflows_forward_ends_in_an_error_after_the_warning():
    model = compiled()
    with pytest.warns(TorchaneWarning, match="loud"):
        loss = model(torch.full((4, 32), 50.0)).square().mean()
    with pytest.raises(NumericsError, match="not finite"):
        loss.backward()


def test_a_backward_that_fits_at_no_scale_names_the_layer():
    model = compiled()
    nn.init.constant_(model._orig_mod.loud.weight, float("nan"))
    with pytest.raises(NumericsError, match=r" in (first|loud), test_overflow.py:"):
        model(torch.randn(4, 32)).backward(torch.ones(4, 32))


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
