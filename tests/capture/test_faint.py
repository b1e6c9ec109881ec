"""Numbers that fp16 has few digits for, or none: PyTorch computes them, and zeros that are right cost nothing for long."""

import warnings
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from capture_helpers import distance
from torch import Tensor, nn

from torchane.capture import backend
from torchane.capture.faint import Doubts, only_added, zeros_of
from torchane.capture.float32 import _OnHost
from torchane.errors import TorchaneWarning

torch.manual_seed(0)
LAYER = nn.Linear(16, 16)
X = torch.randn(32, 16)

#: Functions of x whose values are below 1e-6 throughout somewhere.
FAINT: dict[str, Callable[[Tensor], Tensor]] = {
    "an exponential": lambda x: torch.exp(-LAYER(x).abs() - 18) @ LAYER.weight,
    "probabilities far away": lambda x: torch.sigmoid(LAYER(x) - 20) @ LAYER.weight,
    "a softplus": lambda x: F.softplus(LAYER(x) - 18) @ LAYER.weight,
    "an input in small units": lambda x: LAYER.weight @ (x * 1e-8).T,
    "a small weight": lambda x: F.linear(x, LAYER.weight * 1e-8),
    "squares": lambda x: (LAYER(x) * 1e-4) ** 2 @ LAYER.weight,
    "a product of three": lambda x: (LAYER(x) * 1e-3) @ (LAYER.weight * 1e-3) @ (LAYER.weight * 1e-3),
    "what is normalised after": lambda x: F.normalize(torch.sigmoid(LAYER(x) - 20) @ LAYER.weight, eps=0.0),
    "a gradient alone": lambda x: LAYER(x) + 1e-14 * (LAYER.weight @ x.T).sum(),
    "many small slopes": lambda x: torch.sigmoid(torch.sigmoid(torch.sigmoid(LAYER(x * 0.1) * 40 + 60) * 40) @ LAYER.weight * 1e-9),
}


def gradients(function: Callable[[Tensor], Tensor]) -> list[Tensor]:
    """The result and the gradients of x, weight and bias, where there are such."""
    x = X.clone().requires_grad_()
    y = function(x)
    found = torch.autograd.grad(y, [x, LAYER.weight, LAYER.bias], torch.ones_like(y), allow_unused=True)
    return [y.detach(), *(gradient for gradient in found if gradient is not None)]


def compiled(function: Callable[..., object], **options: object) -> Callable[..., object]:
    torch._dynamo.reset()
    return torch.compile(function, backend=backend.ane, options={"device": "twin", **options})


@pytest.mark.parametrize("name", FAINT)
def test_what_fp16_has_no_digits_for_is_right(name: str) -> None:
    ours = compiled(FAINT[name])
    for _ in range(3):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", TorchaneWarning)
            got = gradients(ours)
        want = gradients(FAINT[name])
        for mine, right in zip(got, want, strict=True):
            if right.any():
                assert distance(mine.double(), right.double()) < 0.03  # as far as digits may be lost


def test_it_is_said_once_where_and_what() -> None:
    ours = compiled(FAINT["an exponential"])
    with torch.no_grad():
        with pytest.warns(TorchaneWarning, match=r"mm .*test_faint\.py.* is 0 throughout in fp16.*PyTorch computes the forward in float32.*Scale inputs or weights up"):
            ours(X)
        ours(X)  # warnings are errors here


def runs_on_host(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Filled with an entry for each graph that PyTorch runs."""
    seen: list[str] = []
    run = _OnHost._promised
    monkeypatch.setattr(_OnHost, "_promised", lambda self, args: seen.append("run") or run(self, args))
    return seen


class Adapted(nn.Module):
    """A frozen layer and a low-rank adapter, whose second matrix begins as zeros."""

    def __init__(self) -> None:
        super().__init__()
        self.base, self.a, self.b = nn.Linear(16, 16).requires_grad_(False), nn.Linear(16, 4, bias=False), nn.Linear(4, 16, bias=False)
        nn.init.zeros_(self.b.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.b(self.a(x)), self.b(self.a(x))


def test_zeros_of_a_weight_of_zeros_are_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    seen, model = runs_on_host(monkeypatch), Adapted()
    y, beside = compiled(model)(X)
    (y.sum() + beside.sum()).backward()
    assert not model.a.weight.grad.any()
    assert model.b.weight.grad.any()
    assert not seen


def test_zeros_that_stay_are_looked_at_ever_less_often(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = runs_on_host(monkeypatch)
    ours = compiled(lambda x: torch.relu(LAYER(x) - 100) @ LAYER.weight)
    with torch.no_grad():
        for _ in range(20):
            assert not ours(X).any()
    assert 1 <= len(seen) <= 6


def test_doubts_wait_twice_as_long_each_time() -> None:
    doubts, asked = Doubts(), []
    for call in range(16):
        doubts.begin()
        if doubts.is_due("x"):
            asked.append(call)
            doubts.confirm(["x"])
            assert not doubts.is_due("x")  # in the same call
    assert asked == [0, 2, 5, 10]


def test_many_zeros_are_looked_at_together(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = runs_on_host(monkeypatch)
    ours = compiled(lambda x: tuple(torch.relu(LAYER(x) - shift) @ LAYER.weight for shift in range(100, 112)))
    with torch.no_grad():
        assert not any(y.any() for y in ours(X))
    assert len(seen) == 1


def test_zeros_are_followed_through_products_and_gradients() -> None:
    aten = torch.ops.aten
    graph = torch.fx.Graph()
    x, w = (graph.placeholder(name) for name in "xw")
    product = graph.call_function(aten.mm.default, (x, w))
    turned = graph.call_function(aten.t.default, (product,))
    both = graph.call_function(aten.add.Tensor, (turned, turned))
    more = graph.call_function(aten.add.Tensor, (turned, 1.0))
    slope = graph.call_function(aten.threshold_backward.default, (both, x, 0))
    other = graph.call_function(aten.exp.default, (both,))
    found = zeros_of(graph, {"x": torch.ones(2, 2), "w": torch.zeros(2, 2)})
    assert found >= {node.name for node in (w, product, turned, both, slope)}
    assert not found & {node.name for node in (x, more, other)}
    assert not zeros_of(graph, {"x": torch.ones(2, 2)})


def test_a_mean_and_what_is_added_do_no_harm() -> None:
    aten = torch.ops.aten
    graph = torch.fx.Graph()
    x, mean, shift, factor = (graph.placeholder(name) for name in ("x", "mean", "shift", "factor"))
    centred = graph.call_function(aten.sub.Tensor, (x, graph.call_function(aten.unsqueeze.default, (mean, 0))))
    moved = graph.call_function(aten.add.Tensor, (graph.call_function(aten.mul.Tensor, (centred, factor)), shift))
    graph.call_function(aten.native_batch_norm_backward.default, (moved, x, None, None, None, mean, factor, True, 1e-5, [True] * 3))
    assert {"mean", "shift"} <= only_added(graph)
    assert not only_added(graph) & {"factor", moved.name}
