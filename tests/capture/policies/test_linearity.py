"""Backwards that are not linear in the incoming gradient, and gradients that begin inside a graph, beside eager float32.

Each model is first ── middle ── last; what `middle` does on the way back is drawn. Under one loss scale, and under range control.
"""

import random
import warnings
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from capture_helpers import compile_for_twin, distance
from torch import Tensor, nn
from torch.func import grad, grad_and_value, hessian, jacrev, vjp, vmap
from torch.utils._pytree import tree_leaves

from torchane.capture import backend
from torchane.capture.policies.linearity import NOT_PROPORTIONAL, NOT_REACHED, SEED
from torchane.errors import NumericsError

pytestmark = [
    pytest.mark.filterwarnings("ignore::torchane.errors.TorchaneWarning"),
    pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning"),  # Dynamo's, at any such function
    pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning"),  # torch's own, at the first hessian
]

Back = Callable[[Tensor, Tensor], Tensor]

#: What a backward may do to its gradient g, h the activation there.
BACKS: dict[str, Back] = {
    "clip": lambda g, h: g.clamp(-0.002, 0.002),
    "sign": lambda g, h: 0.01 * g.sign(),
    "sign by a choice": lambda g, h: torch.where(g > 0, 0.01, -0.01),
    "unit norm": lambda g, h: g / (g.norm() + 1e-6),
    "unit rows": lambda g, h: F.normalize(g, dim=-1),
    "clip by norm": lambda g, h: g * torch.clamp(0.01 / (g.norm() + 1e-6), max=1.0),
    "clip rows by norm": lambda g, h: g / torch.clamp(g.norm(dim=-1, keepdim=True) / 0.003, min=1.0),
    "penalty": lambda g, h: g + 0.01 * h,
    "small penalty alone": lambda g, h: 1e-7 * h,
    "square": lambda g, h: 1000 * g * g,
    "times its magnitude": lambda g, h: 100 * g * g.detach().abs(),
    "softmax": lambda g, h: torch.softmax(g * 1000, -1) - 1 / 32,
    "logcumsumexp": lambda g, h: 1e-3 * torch.logcumsumexp(g * 100, -1),
    "reversed": lambda g, h: -0.3 * g,
    "positive part": lambda g, h: g.clamp(min=0),
    "least of two": lambda g, h: torch.minimum(g, 0.001 * h),
    "straight through": lambda g, h: torch.where(h.abs() <= 0.5, g, torch.zeros_like(g)),
    "chosen by its size": lambda g, h: torch.where(g.abs() > 1e-3, g, torch.zeros_like(g)),
    "chosen from activations": lambda g, h: torch.where(g > 0, 1e-3 * h, g),
    "tanh": lambda g, h: 0.01 * torch.tanh(g * 100),
    "root": lambda g, h: 0.01 * g.sign() * g.abs().sqrt(),
    "root mean square": lambda g, h: 1e-3 * g * torch.rsqrt(g.square().mean(-1, keepdim=True) + 1e-10),
    "part of it": lambda g, h: torch.cat([g[:, :16], 1e-3 * h[:, 16:]], 1),
    "padded with a number": lambda g, h: F.pad(g[:, :31], (0, 1), value=0.01),
    "without what h explains": lambda g, h: g - (g * h).sum(-1, keepdim=True) * h / h.square().sum(-1, keepdim=True),
    "products with itself": lambda g, h: 10 * (g @ (g.t() @ h)),
    "layer norm": lambda g, h: 1e-3 * F.layer_norm(g, (32,)),
    "a constant": lambda g, h: torch.full_like(g, 1e-6),
}  # fmt: skip


def through(back: Back) -> Callable[[Tensor], Tensor]:
    class Through(torch.autograd.Function):
        @staticmethod
        def forward(ctx, h):
            ctx.save_for_backward(h)
            return h * 1

        @staticmethod
        def backward(ctx, g):
            return back(g, *ctx.saved_tensors)

    return Through.apply


class Injected(torch.autograd.Function):
    """Hands h on; the loss beside it gets a gradient of its own."""

    @staticmethod
    def forward(ctx, h, loss, weight):
        ctx.weight = weight
        return h * 1

    @staticmethod
    def backward(ctx, g):
        return g, torch.full((), ctx.weight), None


def hooked(hook: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    def middle(h: Tensor) -> Tensor:
        h.register_hook(hook)
        return h

    return middle


def gaps(middle: Callable[[Tensor], Tensor], weight: float = 1.0, **options: object) -> dict[str, float]:
    """How far each parameter's gradient is from eager's, relative to its norm."""
    torch.manual_seed(0)
    first, last = nn.Linear(32, 32), nn.Linear(32, 8)
    x, w = torch.randn(16, 32), weight * torch.randn(16, 8)

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = first, last

        def forward(self, x: Tensor) -> Tensor:
            return self.last(middle(torch.tanh(self.first(x))))

    model = Model()

    def gradients(call: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
        model.zero_grad(set_to_none=True)
        (call(x) * w).mean().backward()
        return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}

    want = gradients(model)
    torch._dynamo.reset()
    got = gradients(compile_for_twin(model, **options))
    return {name: distance(got[name], want[name]) if want[name].any() else got[name].norm().item() for name in want}


def reasons(graph: str = "backward") -> set[str]:
    return {row.why for row in backend.COMPILED[-1].rows if row.graph == graph and row.place == "host"}


@pytest.mark.parametrize("name", BACKS)
def test_a_gradient_is_what_eager_gives(name: str) -> None:
    found = gaps(through(BACKS[name]))
    assert max(found.values()) < 0.005, found


@pytest.mark.parametrize("name", ["clip", "sign", "unit norm", "penalty", "square", "least of two", "chosen by its size"])
def test_so_it_is_under_range_control(name: str) -> None:
    found = gaps(through(BACKS[name]), ranges="on")
    assert max(found.values()) < 0.005, found


@pytest.mark.parametrize("name", ["clip", "unit norm", "small penalty alone"])
def test_so_it_is_for_a_gradient_that_fp16_does_not_have(name: str) -> None:
    found = gaps(through(BACKS[name]), weight=1e-6)
    assert max(found.values()) < 0.005, found


def test_a_hook_may_clip_too() -> None:
    found = gaps(hooked(lambda g: g.clamp(-0.002, 0.002)))
    assert max(found.values()) < 0.005, found
    assert NOT_PROPORTIONAL in reasons()


@pytest.mark.parametrize("weight", [1.0, 1e-5])
@pytest.mark.parametrize("ranges", ["off", "on"])
def test_an_injected_loss_keeps_its_own_gradient_in_programs(weight: float, ranges: str) -> None:
    """It begins with a constant, which is scaled like the gradient that comes in."""
    matrix = torch.randn(32, 32, generator=torch.Generator().manual_seed(1))
    found = gaps(lambda h: Injected.apply(h, torch.tanh(h @ matrix).square().mean(), weight), ranges=ranges)
    assert max(found.values()) < 0.005, found
    assert SEED in reasons() and not {NOT_PROPORTIONAL, NOT_REACHED} & reasons()


def test_what_is_proportional_stays_in_programs() -> None:
    gaps(through(lambda g, h: torch.where(h > 0, g, torch.zeros_like(g)).clamp(min=0) * h - 0.1 * g.abs()))
    assert not {NOT_PROPORTIONAL, NOT_REACHED, SEED} & reasons()


@pytest.mark.long
@pytest.mark.parametrize("seed", range(40))
def test_random_chains(seed: int) -> None:
    draw = random.Random(seed)
    at_a_threshold = ("straight through", "chosen by its size")  # one rounding of fp16 decides there
    names = draw.choices([name for name in BACKS if name not in at_a_threshold], k=draw.randint(2, 4))

    links = [through(BACKS[name]) for name in names]

    def middle(h: Tensor) -> Tensor:
        for link in links:
            h = torch.tanh(link(h))
        return h

    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        try:
            found = gaps(middle, draw.choice([1.0, 1e-3]), ranges=draw.choice(["off", "on"]))
        except NumericsError:
            return  # a chain of squares leaves fp16, and that is said
    is_said = any("no one scale keeps both" in str(one.message) for one in said)
    assert is_said or max(found.values()) < 0.02, (names, found)


# ---- gradients that begin in the forward

WEIGHT = 1e-6
PARAMETERS = {
    "a": 0.2 * torch.randn(32, 64, generator=torch.Generator().manual_seed(2)),
    "b": 0.1 * torch.randn(64, 10, generator=torch.Generator().manual_seed(3)),
}
X = torch.randn(64, 32, generator=torch.Generator().manual_seed(4))
Y = torch.randn(64, 10, generator=torch.Generator().manual_seed(5))


def loss(p: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
    return WEIGHT * F.mse_loss(torch.tanh(x @ p["a"]) @ p["b"], y)


def drops(p: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
    return WEIGHT * F.mse_loss(F.dropout(torch.tanh(x @ p["a"]), 0.3) @ p["b"], y)


def one_step(p: dict[str, Tensor], x: Tensor, y: Tensor) -> dict[str, Tensor]:
    found = grad(loss)(p, x, y)
    return {name: 0.1 / WEIGHT * found[name] for name in p}


def after_a_step(p: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
    step = one_step(p, x, y)
    return F.mse_loss(torch.tanh(x @ (p["a"] - step["a"])) @ (p["b"] - step["b"]), y)


def gradient_of_gradient(p: dict[str, Tensor], x: Tensor, y: Tensor) -> dict[str, Tensor]:
    return grad(lambda p: sum(one.sum() for one in grad(loss)(p, x, y).values()))(p)


def normalised(p: dict[str, Tensor], x: Tensor, y: Tensor) -> list[Tensor]:
    found = vmap(grad(loss), (None, 0, 0))(p, x[:8], y[:8])
    return [(one / (one.flatten(1).norm(dim=1).view(-1, 1, 1) + 1e-12)).mean(0) for one in found.values()]


FUNCTIONS = {
    "grad": grad(loss),
    "grad_and_value": grad_and_value(loss),
    "grad with dropout": grad(drops),
    "a step of descent": one_step,
    "the loss after a step": after_a_step,
    "grad of grad": gradient_of_gradient,
    "gradients of samples": vmap(grad(loss), (None, 0, 0)),
    "gradients of samples, normalised": normalised,
    "jacrev": lambda p, x, y: jacrev(lambda a: WEIGHT * (torch.tanh(x[:4] @ a) @ p["b"]).sum(0))(p["a"]),
    "vjp": lambda p, x, y: vjp(lambda p: torch.tanh(x @ p["a"]) @ p["b"], p)[1](1e-4 * y),
    "hessian": lambda p, x, y: hessian(lambda v: WEIGHT * torch.tanh(x[:, :4] @ v.view(4, 4)).square().mean())(p["b"].flatten()[:16]),
    "clipped": lambda p, x, y: [one.clamp(-1e-9, 1e-9) for one in grad(loss)(p, x, y).values()],
}  # fmt: skip


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_gradient_inside_a_function_is_what_eager_gives(name: str) -> None:
    torch._dynamo.reset()
    torch.manual_seed(0)
    want = FUNCTIONS[name](PARAMETERS, X, Y)
    torch.manual_seed(0)
    got = torch.compile(FUNCTIONS[name], backend=backend.ane, options={"device": "twin"})(PARAMETERS, X, Y)
    for ours, theirs in zip(tree_leaves(got), tree_leaves(want), strict=True):
        assert distance(ours, theirs) < 0.02


def test_products_of_a_gradient_inside_a_function_are_in_programs() -> None:
    torch._dynamo.reset()
    torch.compile(grad(loss), backend=backend.ane, options={"device": "twin"})(PARAMETERS, X, Y)
    assert {row.place for row in backend.COMPILED[-1].rows if row.macs} == {"program"}


@pytest.mark.parametrize("function", [after_a_step, lambda p, x, y: 1e6 * one_step(p, x, y)["a"].square().mean()])
def test_a_gradient_may_be_differentiated_again(function: Callable[..., Tensor]) -> None:
    """Its values are saved for a backward that reads them as they are, so nothing scales them: the host has them."""

    def gradients(call: Callable[..., Tensor]) -> list[Tensor]:
        p = {name: value.clone().requires_grad_() for name, value in PARAMETERS.items()}
        call(p, X, Y).backward()
        return [value.grad for value in p.values()]

    torch._dynamo.reset()
    want = gradients(function)
    got = gradients(torch.compile(function, backend=backend.ane, options={"device": "twin"}))
    for ours, theirs in zip(got, want, strict=True):
        assert distance(ours, theirs) < 0.05
    assert NOT_REACHED in reasons("forward")


def test_a_constant_of_the_model_is_read_while_fake_tensors_are_traced() -> None:
    x = torch.randn(4, 4, requires_grad=True)
    call = torch.compile(lambda x: (x.detach() > torch.tensor([0.5])) * x, backend="ane")
    call(x).sum().backward()
    assert torch.equal(x.grad, (x > 0.5).float())
