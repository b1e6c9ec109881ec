"""What a graph writes is what eager's float32 writes: optimizers, averages, totals, buffers, inputs."""

import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call, grad
from torch.utils._pytree import tree_leaves

from torchane.capture import backend

pytestmark = [
    pytest.mark.filterwarnings("ignore::torchane.errors.TorchaneWarning"),  # what it leaves to PyTorch is not the question here
    pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning"),  # torch's own
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning"),  # Dynamo's own
]

X, Y = torch.randn(16, 8, generator=torch.Generator().manual_seed(1)), torch.randn(16, 4, generator=torch.Generator().manual_seed(2))


@dataclass
class Case:
    """A state, what changes it and is compiled, and what runs before each time and is not."""

    read: Callable[[], Iterable[torch.Tensor]]
    step: Callable[[], Any]
    before: Callable[[], Any] = lambda: None


def long(*values: Any) -> Any:
    return pytest.param(*values, marks=pytest.mark.long)


def gap(make: Callable[[], Case], steps: int) -> float:
    """How far compiled steps end from where eager ones do, in lengths of the way."""
    ways = []
    for is_compiled in (False, True):
        torch._dynamo.reset()
        torch.manual_seed(0)
        case = make()
        start = [value.detach().clone() for value in case.read()]
        step = torch.compile(case.step, backend=backend.ane) if is_compiled else case.step
        for _ in range(steps):
            case.before()
            step()
        ways.append(torch.cat([(now.detach() - was).double().flatten() for now, was in zip(case.read(), start, strict=True)]))
    assert ways[0].norm() > 0
    return ((ways[1] - ways[0]).norm() / ways[0].norm()).item()


def places(op: str, since: int) -> set[str]:
    """Where the graphs compiled since then run an op."""
    return {row.place for compiled in backend.COMPILED[since:] for row in compiled.rows if op in row.op}


def net() -> nn.Module:
    return nn.Sequential(nn.Linear(8, 32), nn.GELU(), nn.LayerNorm(32), nn.Linear(32, 4))


# ---- optimizers

VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {}, "foreach": {"foreach": True}, "fused": {"fused": True}, "maximize": {"maximize": True},
    "decayed": {"weight_decay": 1e-2}, "amsgrad": {"amsgrad": True}, "momentum": {"momentum": 0.9},
    "nesterov": {"momentum": 0.9, "nesterov": True}, "centered": {"centered": True}, "capturable": {"capturable": True},
    "tensor": {"lr": torch.tensor(1e-3)},
}  # fmt: skip
#: SparseAdam takes sparse gradients, which no program computes, and LBFGS calls back into the model.
OPTIMIZERS = ("SGD", "Adam", "AdamW", "NAdam", "RAdam", "Adamax", "Adadelta", "Adagrad", "Adafactor", "ASGD", "RMSprop", "Rprop", "Muon")
QUICK = {("SGD", "momentum"), ("Adam", "plain"), ("AdamW", "foreach"), ("Muon", "plain")}


def optimizing(name: str, settings: dict[str, Any]) -> Case:
    model = nn.Sequential(nn.Linear(8, 32, bias=name != "Muon"), nn.GELU(), nn.Linear(32, 4, bias=name != "Muon"))
    optimizer = getattr(torch.optim, name)(model.parameters(), **{"lr": 1e-4, **settings})

    def backward() -> None:
        optimizer.zero_grad()
        F.mse_loss(model(X), Y).backward()

    return Case(model.parameters, lambda: optimizer.step(), backward)


@pytest.mark.parametrize(
    ("name", "variant"), [pair if pair in QUICK else long(*pair) for pair in itertools.product(OPTIMIZERS, VARIANTS)]
)
def test_a_compiled_optimizer_moves_weights_as_eager_does(name: str, variant: str) -> None:
    try:
        eager = optimizing(name, VARIANTS[variant])
        eager.before()
        eager.step()
    except (TypeError, RuntimeError, AssertionError, ValueError) as error:
        pytest.skip(f"torch has no such: {error}")
    assert gap(lambda: optimizing(name, VARIANTS[variant]), 4) < (0.005 if name == "Muon" else 0.001)  # it iterates in bfloat16


def clipping() -> Case:
    model = net()

    def step() -> None:
        nn.utils.clip_grad_norm_(model.parameters(), 1e-3)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.sub_(1e-3 * parameter.grad)

    def backward() -> None:
        model.zero_grad()
        F.mse_loss(model(X), Y).backward()

    return Case(model.parameters, step, backward)


def averaging() -> Case:
    model = net()
    average = torch.optim.swa_utils.AveragedModel(model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.9999))
    average.update_parameters(model)
    return Case(average.module.parameters, lambda: average.update_parameters(model), lambda: [p.data.add_(0.01) for p in model.parameters()])


def shampoo() -> Case:
    """Products of gradients alone, of 1e-4 each."""
    weight, left = nn.Parameter(torch.randn(8, 4)), torch.zeros(8, 8)
    state = {"left": left}

    def step() -> None:
        with torch.no_grad():
            state["left"].add_(weight.grad @ weight.grad.T)
            weight.sub_(torch.linalg.solve(state["left"] + 1e-9 * torch.eye(8), weight.grad), alpha=1e-8)

    def backward() -> None:
        weight.grad = 1e-4 * torch.randn(8, 4)

    return Case(lambda: [left], step, backward)


@pytest.mark.parametrize("make", [clipping, averaging, shampoo])
def test_what_else_a_training_loop_compiles(make: Callable[[], Case]) -> None:
    assert gap(make, 10) < 0.002


# ---- whole steps

def plain_parameters(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def loss_with(model: nn.Module) -> Callable[[dict[str, torch.Tensor]], torch.Tensor]:
    return lambda weights: F.mse_loss(functional_call(model, weights, (X,)), Y)


def written_in_place() -> Case:
    model = net()
    weights, loss = plain_parameters(model), loss_with(model)

    def step() -> None:
        for name, gradient in grad(loss)(weights).items():
            weights[name].sub_(1e-3 * gradient)

    return Case(weights.values, step)


def adam_by_hand() -> Case:
    model = net()
    weights, loss = plain_parameters(model), loss_with(model)
    first, second = ({name: torch.zeros_like(value) for name, value in weights.items()} for _ in range(2))

    def step() -> None:
        for name, gradient in grad(loss)(weights).items():
            first[name].lerp_(gradient, 0.1)
            second[name].mul_(0.999).addcmul_(gradient, gradient, value=1e-3)
            weights[name].addcdiv_(first[name], second[name].sqrt() + 1e-8, value=-1e-3)

    return Case(weights.values, step)


def gradients_of_autograd() -> Case:
    model = net()
    weights = list(model.parameters())

    def step() -> None:
        gradients = torch.autograd.grad(F.mse_loss(model(X), Y), weights)
        with torch.no_grad():
            for weight, gradient in zip(weights, gradients, strict=True):
                weight.sub_(1e-3 * gradient)

    return Case(lambda: weights, step)


def sharpness_aware() -> Case:
    """Two forwards and two backwards in one graph."""
    model = net()
    weights, loss = plain_parameters(model), loss_with(model)

    def step() -> None:
        uphill = grad(loss)(weights)
        length = torch.sqrt(sum(gradient.square().sum() for gradient in uphill.values()))
        there = {name: value + 0.05 * uphill[name] / length for name, value in weights.items()}
        for name, gradient in grad(loss)(there).items():
            weights[name].sub_(1e-3 * gradient)

    return Case(weights.values, step)


def a_loop_of_torch_users() -> Case:
    model = net()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)

    def step() -> torch.Tensor:
        optimizer.zero_grad()
        loss = F.mse_loss(model(X), Y)
        loss.backward()
        optimizer.step()
        return loss.detach()

    return Case(model.parameters, step)


@pytest.mark.parametrize(
    "make", [written_in_place, long(adam_by_hand), gradients_of_autograd, long(sharpness_aware), long(a_loop_of_torch_users)]
)
def test_a_whole_step_trains_as_eager_does_and_its_products_are_programs(make: Callable[[], Case]) -> None:
    since = len(backend.COMPILED)
    assert gap(make, 10) < 0.01
    assert places("mm", since) == {"program"}


def test_returned_parameters_are_exact_too() -> None:
    model = net()
    loss = loss_with(model)

    def step(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        gradients = grad(loss)(weights)
        return {name: value - 1e-3 * gradients[name] for name, value in weights.items()}

    torch._dynamo.reset()
    since = len(backend.COMPILED)
    ways = []
    for call in (step, torch.compile(step, backend=backend.ane)):
        weights = plain_parameters(model)
        for _ in range(10):
            weights = call(weights)
        ways.append(torch.cat([(now - was).flatten() for now, was in zip(tree_leaves(weights), model.parameters(), strict=True)]))
    assert (ways[1] - ways[0]).norm() < 0.01 * ways[0].norm()
    assert places("mm", since) == {"program"}


# ---- averages, totals, counters

RETURNED: dict[str, tuple[torch.Tensor, Callable[[torch.Tensor], torch.Tensor]]] = {
    "an average": (torch.zeros(8), lambda state: 0.999 * state + 0.001 * Y[:2].flatten()),
    "lerp": (torch.zeros(8), lambda state: torch.lerp(state, Y[:2].flatten(), 0.001)),
    "a counter beyond 2048": (torch.full((8,), 3000.0), lambda state: state + 1),
    "a decay": (torch.ones(8), lambda state: state * 0.9999),
    "a clamped sum": (torch.zeros(8), lambda state: (state + 1e-5).clamp(max=1.0)),
}


@pytest.mark.parametrize("name", RETURNED)
def test_a_state_that_is_returned_and_given_again(name: str) -> None:
    state, step = RETURNED[name]
    torch._dynamo.reset()
    compiled = torch.compile(step, backend=backend.ane)
    ours, theirs = state, state
    for _ in range(300):
        ours, theirs = compiled(ours), step(theirs)
    assert (ours - theirs).norm() < 1e-4 * (theirs - state).norm()


class Observed(nn.Module):
    """Keeps what it saw in every way that modules do."""

    def __init__(self) -> None:
        super().__init__()
        self.map = nn.Linear(8, 8)
        self.average, self.steps = torch.zeros(8), torch.zeros(())
        for name, value in {
            "total": torch.zeros(8), "count": torch.full((), 3000.0), "largest": torch.zeros(()), "seen": torch.zeros(16, 8),
            "bank": torch.zeros(64, 8), "histogram": torch.zeros(10), "spread": torch.zeros(8),
        }.items():  # fmt: skip
            self.register_buffer(name, value)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.map(x)
        seen = y.detach()
        self.average = 0.999 * self.average + 0.001 * seen.mean(0)
        self.spread = self.spread.lerp(seen.var(0), 0.001)
        self.steps += 0.001
        self.count.add_(1)
        self.total.add_(x.square().sum(0), alpha=1e-5)
        self.largest.copy_(torch.maximum(self.largest, x.abs().max() * 1e5))
        self.seen.copy_(x * 1e-9)
        self.bank.index_put_((torch.arange(16) * 3,), x.sin() * 1e6)
        self.histogram.scatter_add_(0, torch.arange(16) % 10, torch.full((16,), 1e-4))
        return torch.tanh(y)


@pytest.mark.parametrize("name", ["average", "spread", "steps", "count", "total", "largest", "seen", "bank", "histogram"])
def test_what_a_module_keeps(name: str, observed: tuple[Observed, Observed]) -> None:
    ours, theirs = (getattr(model, name) for model in observed)
    bar = 2**-10 if name in ("average", "spread") else 1e-6  # these are of fp16 activations
    assert (ours - theirs).norm() <= bar * (theirs.norm() if name != "count" else 1.0)


@pytest.fixture(scope="module")
def observed() -> tuple[Observed, Observed]:
    """A compiled one and an eager one, after 40 steps of training."""
    torch._dynamo.reset()
    models = []
    for is_compiled in (True, False):
        torch.manual_seed(0)
        model = Observed()
        call = torch.compile(model, backend=backend.ane) if is_compiled else model
        for i in range(40):
            call(X + i / 100).square().mean().backward()
        models.append(model)
    torch._dynamo.reset()
    return models[0], models[1]


def normalizing(kind: Callable[..., nn.Module], raw: bool = False, **settings: Any) -> Callable[[], Case]:
    def make() -> Case:
        first = nn.Identity() if raw else nn.Conv2d(3, 3, 3)
        model, x = nn.ModuleList([first, kind(3, **settings), nn.Conv2d(3, 2, 3)]), torch.randn(4, 3, 9, 9)
        x = x * 30 + 1000 if raw else x

        def step() -> torch.Tensor:
            return model[2](torch.relu(model[1](model[0](x))))

        return Case(lambda: [value for value in model.buffers() if value.is_floating_point()], step)

    return make


@pytest.mark.parametrize(
    "make",
    [
        long(normalizing(nn.BatchNorm2d)), long(normalizing(nn.BatchNorm2d, momentum=None)), normalizing(nn.BatchNorm2d, raw=True),
        long(normalizing(nn.InstanceNorm2d, track_running_stats=True)),
        long(normalizing(nn.InstanceNorm2d, raw=True, track_running_stats=True)),
    ],
    ids=["batch", "cumulative", "raw batch", "instance", "raw instance"],
)  # fmt: skip
def test_running_statistics(make: Callable[[], Case]) -> None:
    assert gap(make, 10) < 0.002


def kalman() -> Case:
    covariance, motion = 1e-6 * torch.eye(4), torch.eye(4) + 0.01 * torch.randn(4, 4)
    return Case(lambda: [covariance], lambda: covariance.copy_(motion @ covariance @ motion.T + 1e-9 * torch.eye(4)))


def activations_written_to_an_input() -> Case:
    total, weight = torch.ones(16, 8), torch.randn(8, 8)
    return Case(lambda: [total], lambda: total.add_(torch.tanh(X @ weight), alpha=1e-4))


def a_view_of_an_input() -> Case:
    total = torch.ones(16, 8)
    return Case(lambda: [total], lambda: total[:, 2:4].mul_(0.9999))


def aliases() -> Case:
    """Two arguments that share memory."""
    total = torch.ones(6, 8)
    first, second = total[:4], total[2:]

    def step() -> torch.Tensor:
        first.add_(1e-5)
        second.mul_(0.9999)
        return first + second

    return Case(lambda: [total], step)


@pytest.mark.parametrize("make", [kalman, activations_written_to_an_input, a_view_of_an_input, aliases])
def test_inputs_that_a_function_writes(make: Callable[[], Case]) -> None:
    assert gap(make, 40) < 0.002


# ---- what stays in programs

class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down, self.norm = nn.Linear(8, 32), nn.Linear(32, 8), nn.LayerNorm(8)
        self.register_buffer("mean", torch.zeros(8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.tanh(self.down(F.gelu(self.up(x))))
        self.mean.lerp_(x.detach().mean(0), 0.1)
        return self.up(self.norm(x))


def test_activations_that_feed_a_statistic_stay_in_programs() -> None:
    torch._dynamo.reset()
    torch.compile(Block(), backend=backend.ane)(X).sum().backward()
    place = {row.op: row.place for row in backend.COMPILED[-1].rows if row.graph == "forward"}
    assert {place[f"aten.{op}.default"] for op in ("addmm", "gelu", "tanh", "native_layer_norm")} == {"program"}
    assert place["aten.mean.dim"] == "host"


def test_a_residual_of_an_inference_stays_in_programs() -> None:
    """Only what ends as an input plus an amount may be an update."""
    torch._dynamo.reset()
    first, second = nn.Linear(8, 8), nn.Linear(8, 8)

    def residual(x: torch.Tensor) -> torch.Tensor:
        x = x + torch.tanh(first(x))
        return x + torch.tanh(second(x))

    with torch.no_grad():
        torch.compile(residual, backend=backend.ane)(X)
    assert {row.place for row in backend.COMPILED[-1].rows} <= {"program", "view"}
