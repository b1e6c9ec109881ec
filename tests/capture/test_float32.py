"""Numbers that fp16 does not hold: the forward is PyTorch's, sound samples are as they were, and the cause is named."""

import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from torchane.capture import backend
from torchane.errors import TorchaneWarning

NAN, INF = float("nan"), float("inf")


class Sums(nn.Module):
    """Rows of 24, no multiple of 32, and sums over the last axis."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(24, 24), nn.Linear(24, 20)
        self.table = nn.Embedding(10, 24)

    def forward(self, x: Tensor) -> Tensor:
        y = self.second(torch.tanh(self.first(x)))
        return torch.cat([y, x[:, :4]], 1) / (1 + y.abs().sum(-1, keepdim=True))


def compiled(model: nn.Module, **options: object) -> nn.Module:
    torch._dynamo.reset()
    return torch.compile(model, backend=backend.ane, options={"device": "twin", **options})


def spoilt(value: float) -> Tensor:
    x = torch.randn(6, 24, generator=torch.Generator().manual_seed(3))
    x[1, 2] = value
    return x


@pytest.mark.parametrize("value", [NAN, INF, -INF, 1e5, -1e7])
@pytest.mark.parametrize("ranges", ["off", "on"])
def test_one_number_spoils_no_other_sample(value: float, ranges: str) -> None:
    model = Sums()
    ours, x = compiled(model, ranges=ranges), spoilt(value)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore", TorchaneWarning)
        torch.testing.assert_close(ours(x), model(x), rtol=5e-3, atol=5e-3, equal_nan=True)


@pytest.mark.parametrize(("value", "words"), [(NAN, "The input x holds infinities or NaN, 1 of its 144 values"), (1e5, "The input x holds 100,000")])
def test_the_input_is_named_once(value: float, words: str) -> None:
    ours = compiled(Sums())
    with torch.no_grad():
        with pytest.warns(TorchaneWarning, match=f"{words}.*PyTorch computes the forward in float32"):
            ours(spoilt(value))
        ours(spoilt(value))  # warnings are errors here


def test_a_sound_batch_runs_in_programs_again() -> None:
    model = Sums()
    ours = compiled(model)
    sound = ours(spoilt(0.5))
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore", TorchaneWarning)
        ours(spoilt(NAN))
    assert torch.equal(ours(spoilt(0.5)), sound)


def test_what_the_host_looks_up_is_named_too() -> None:
    model = Sums()
    model.table.weight.data[3] = NAN
    function = compiled(lambda ids: model.first(model.table(ids)))
    with torch.no_grad(), pytest.warns(TorchaneWarning, match="What PyTorch computed as embedding"):
        got = function(torch.tensor([1, 3, 5]))
    assert got.isnan().any(-1).tolist() == [False, True, False]


def test_a_weight_that_is_not_finite_is_named() -> None:
    model = Sums()
    model.second.weight.data[3, 1] = NAN
    ours = compiled(model)
    with torch.no_grad(), pytest.warns(TorchaneWarning, match="holds infinities or NaN, 1 of its 480 values"):
        got = ours(spoilt(0.5))
    torch.testing.assert_close(got, model(spoilt(0.5)), rtol=5e-3, atol=5e-3, equal_nan=True)


def test_random_numbers_are_drawn_once() -> None:
    def function(x: Tensor) -> Tensor:
        return model.first(F.dropout(x, 0.5)) + torch.rand(6, 24)

    model = Sums()
    ours = compiled(function)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore", TorchaneWarning)
        for _ in range(2):
            torch.manual_seed(0)
            got, state = ours(spoilt(NAN)), torch.get_rng_state()
            torch.manual_seed(0)
            torch.testing.assert_close(got, function(spoilt(NAN)), rtol=5e-3, atol=5e-3, equal_nan=True)
            assert torch.equal(torch.get_rng_state(), state)


def test_a_forward_with_a_gradient_gives_sound_samples_and_the_gradients_of_eager():
    model = Sums()
    ours, x = compiled(model), spoilt(NAN)
    with pytest.warns(TorchaneWarning, match="The input x holds infinities or NaN.*the forward, and its backward, in float32"):
        got = ours(x)
    torch.testing.assert_close(got, model(x), equal_nan=True)
    parameters = [model.first.weight, model.second.weight, model.second.bias]
    found = torch.autograd.grad(got[[0, 2]].sum(), parameters)
    expected = torch.autograd.grad(model(x)[[0, 2]].sum(), parameters)
    torch.testing.assert_close(found, expected, equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_model_in_16_bits_is_differentiated_on_the_host_in_its_own(dtype: torch.dtype) -> None:
    model = Sums().to(dtype)
    x = spoilt(0.5).to(dtype)
    x[1, 2] = NAN
    with pytest.warns(TorchaneWarning, match="The input x holds infinities or NaN"):
        found = torch.autograd.grad(compiled(model)(x)[[0, 2]].sum(), [model.second.bias])
    torch.testing.assert_close(found, torch.autograd.grad(model(x)[[0, 2]].sum(), [model.second.bias]), equal_nan=True)
