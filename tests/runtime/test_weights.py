"""Surfaces of weights: whose numbers are in them, and that nobody reads another's."""

import copy
import threading

import pytest
import torch
from torch import nn

from torchane.capture import backend
from torchane.mil.types import FP16, TensorType
from torchane.plan import Stage
from torchane.runtime.range_control import Placed
from torchane.runtime.surfaces import Held
from torchane.runtime.twin import TwinDevice
from torchane.runtime.weights import StaleWeightError, Weights

SHAPE = (1, 2, 1, 32)


@pytest.fixture
def weights() -> Weights:
    return Weights()


def new(shape):
    return TwinDevice().allocate(TensorType(FP16, shape))


def stage(weights: Weights, name: str, version: int):
    surface = weights.surface(name, SHAPE, new)
    weights.staged(name, surface, version, Placed(version))
    return surface


def test_a_run_reads_what_it_staged_and_how_it_lies(weights) -> None:
    version = weights.new_version()
    surface = stage(weights, "w", version)
    assert surface.type == TensorType(FP16, SHAPE)
    assert weights.read("w", version) == Held(surface, version, Placed(version))


def test_what_another_run_staged_since_cannot_be_read(weights) -> None:
    first, second = weights.new_version(), weights.new_version()
    surface = stage(weights, "w", first)
    assert stage(weights, "w", second) is surface
    assert weights.holding("w", first) is None
    with pytest.raises(StaleWeightError, match="w: run 1 is about to read it, and its surface holds what run 2 staged"):
        weights.read("w", first)


def test_what_is_being_staged_cannot_be_read(weights) -> None:
    version = weights.new_version()
    stage(weights, "w", version)
    weights.surface("w", SHAPE, new)
    with pytest.raises(StaleWeightError, match="holds nothing"):
        weights.read("w", version)


def test_what_was_forgotten_cannot_be_read(weights) -> None:
    version = weights.new_version()
    stage(weights, "w", version)
    weights.forget()
    assert weights.holding("w", version) is None
    with pytest.raises(StaleWeightError):
        weights.read("w", version)


@pytest.fixture(scope="module")
def models() -> tuple[nn.Module, nn.Module, nn.Module]:
    """Plain, the same once more, and compiled."""
    torch._dynamo.reset()
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 32))
    ours = copy.deepcopy(plain)
    compiled = torch.compile(ours, backend=backend.ane, options={"device": "twin"})
    compiled(torch.ones(4, 32)).sum().backward()
    return plain, ours, compiled


def test_the_plan_says_which_weights_the_forward_left(models) -> None:
    plans = backend.COMPILED[-1].plans
    copies = {name: [c for step in plan.steps if isinstance(step, Stage) for c in step.copies if c.is_weight] for name, plan in plans.items()}
    assert copies["forward"] and not any(one.is_kept for one in copies["forward"])
    assert copies["backward"] and all(one.is_kept for one in copies["backward"])
    assert "1 weights, 1 of them where they are no longer as the forward left them; " in str(plans["backward"])


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_two_forwards_with_other_weights_then_their_backwards(models, order) -> None:
    """The surfaces hold the second forward's weights when the first one's backward wants its own."""
    plain, _, compiled = models
    torch.manual_seed(1)
    parameters = [{name: (p + 0.2 * torch.randn_like(p)).detach().requires_grad_() for name, p in plain.named_parameters()} for _ in range(2)]
    inputs = [torch.randn(4, 32, requires_grad=True) for _ in range(2)]
    losses = [torch.func.functional_call(compiled, {f"_orig_mod.{k}": p for k, p in p.items()}, x).square().mean() for p, x in zip(parameters, inputs, strict=True)]
    for i in order:
        losses[i].backward()
    for p, x in zip(parameters, inputs, strict=True):
        x_plain = x.detach().clone().requires_grad_()
        torch.func.functional_call(plain, p, x_plain).square().mean().backward()
        assert (x.grad - x_plain.grad).norm() < 4e-3 * x_plain.grad.norm()


def test_threads_that_share_a_graph_do_not_share_weights() -> None:
    """Each calls it with parameters of its own, over and over."""

    def network(first, second, x):
        return torch.tanh(x @ first) @ second

    torch._dynamo.reset()
    torch.manual_seed(2)
    compiled, x = torch.compile(network, backend=backend.ane, options={"device": "twin"}), torch.randn(4, 32)
    parameters = [[nn.Parameter(torch.randn(32, 32)) for _ in range(2)] for _ in range(4)]
    wanted = [network(*pair, x).detach() for pair in parameters]
    compiled(*parameters[0], x)
    assert len(backend.COMPILED[-1].weights.held) == 2
    wrong: list[float] = []

    def work(i: int) -> None:
        for _ in range(50):
            off = float((compiled(*parameters[i], x).detach() - wanted[i]).norm() / wanted[i].norm())
            if off > 4e-3:
                wrong.append(off)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
