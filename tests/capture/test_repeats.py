"""Layers of equal structure are traced once, and what comes out is what tracing each would give."""

import copy
from collections.abc import Callable

import pytest
import torch
from capture_helpers import compile_for_twin, distance, gradients
from torch import fx, nn
from torch._higher_order_ops.invoke_subgraph import invoke_subgraph
from torch.utils.checkpoint import checkpoint

import torchane
from torchane.capture.repeats import share_layers

GRADIENT_BAR = 0.02


class Layer(nn.Module):
    def __init__(self, width: int = 32, dropout: float = 0.0, norm: type[nn.Module] = nn.LayerNorm):
        super().__init__()
        self.norm, self.up, self.down = norm(16), nn.Linear(16, width), nn.Linear(width, 16)
        self.drop = nn.Dropout(dropout)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.drop(self.down(torch.tanh(self.up(self.norm(x)))))


class Stack(nn.Module):
    def __init__(self, *layers: nn.Module):
        super().__init__()
        self.layers, self.head = nn.ModuleList(layers), nn.Linear(16, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x)
        return self.head(x)


class Checkpointed(Stack):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = checkpoint(layer, x, use_reentrant=False)
        return self.head(x)


class Named(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = Layer(), Layer()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(self.first(x))


class Clamped(Layer):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.drop(self.down(torch.tanh(self.up(self.norm(x).clamp(-2, 2)))))


def calls(model: nn.Module, *inputs: torch.Tensor) -> list[str]:
    """The subgraph that each layer of the captured graph calls; the graph must give what it gave before."""
    found: list[str] = []

    def look(gm: fx.GraphModule, example_inputs: list[torch.Tensor]) -> Callable:
        shared = share_layers(copy.deepcopy(gm))
        shared.graph.lint()
        found.extend(node.args[0].target for node in shared.graph.nodes if node.target is invoke_subgraph)
        with torch.no_grad():
            torch.manual_seed(7)
            expected = gm(*example_inputs)
            torch.manual_seed(7)
            assert all(torch.equal(ours, theirs) for ours, theirs in zip(shared(*example_inputs), expected, strict=True))
        return gm.forward

    torch._dynamo.reset()
    torch.compile(model, backend=look, dynamic=False)(*inputs)
    torch._dynamo.reset()
    return found


def batch() -> torch.Tensor:
    return torch.randn(8, 16, generator=torch.Generator().manual_seed(0))


def test_twelve_equal_layers_call_one_subgraph() -> None:
    x = batch().requires_grad_()
    assert calls(Stack(*(Layer() for _ in range(12))), x) == ["layer_0"] * 12


def test_the_first_layer_differs_where_its_input_wants_no_gradient() -> None:
    assert calls(Stack(*(Layer() for _ in range(4))), batch()) == ["layer_0"] * 3


@pytest.mark.parametrize(
    "odd",
    [Layer(width=48), Clamped(), Layer(norm=nn.RMSNorm), Layer(dropout=0.5), Layer().requires_grad_(False), Layer().double().float()],
    ids=["wider", "one op more", "another norm", "dropout", "frozen", "equal after all"],
)
def test_an_edited_layer_is_not_shared(odd: Layer, request: pytest.FixtureRequest) -> None:
    found = calls(Stack(Layer(), Layer(), odd, Layer()), batch().requires_grad_())
    assert len(found) == (4 if request.node.callspec.id == "equal after all" else 3)


def test_two_kinds_of_layers_are_two_subgraphs() -> None:
    kinds = [Layer(), Layer(width=48), Layer(), Layer(width=48)]
    assert calls(Stack(*kinds), batch().requires_grad_()) == ["layer_0", "layer_1", "layer_0", "layer_1"]


def test_blocks_that_torch_does_not_number_are_not_shared() -> None:
    assert calls(Named(), batch().requires_grad_()) == []


def test_layers_that_write_to_buffers_are_not_shared() -> None:
    assert calls(Stack(*(Layer(norm=nn.BatchNorm1d) for _ in range(3))), batch().requires_grad_()) == []


def test_checkpointed_layers_are_not_shared() -> None:
    assert calls(Checkpointed(*(Layer() for _ in range(3))), batch().requires_grad_()) == []


def trained(make: Callable[[], nn.Module], *, twice: bool = False) -> tuple[nn.Module, nn.Module]:
    """The model on the twin and in eager, after one backward from the same random stream."""
    torch._dynamo.reset()
    torch.manual_seed(0)
    model = make()
    eager = copy.deepcopy(model)
    compiled = compile_for_twin(model)
    for current in (compiled, eager):
        torch.manual_seed(3)
        loss = current(batch()).square().mean()
        if twice:
            loss = loss + current(2 * batch()).square().mean()
        loss.backward()
    torch._dynamo.reset()
    return model, eager


@pytest.mark.parametrize(
    "make",
    [
        lambda: Stack(*(Layer() for _ in range(5))),
        lambda: Stack(*(Layer(dropout=0.3) for _ in range(4))),
        lambda: Stack(*(Layer(norm=nn.BatchNorm1d) for _ in range(3))),
        lambda: Stack(*[Layer()] * 3, Layer(), Layer()),
        lambda: Stack(*[layer for _ in range(2) for layer in (Layer(), Layer(width=48))]),
        lambda: Checkpointed(*(Layer(dropout=0.3) for _ in range(3))),
    ],
    ids=["equal", "dropout", "batch norm", "one layer three times", "two kinds", "checkpointed"],
)
def test_gradients_agree_with_eager(make: Callable[[], nn.Module]) -> None:
    model, eager = trained(make, twice=True)
    for (name, ours), theirs in zip(gradients(model).items(), gradients(eager).values(), strict=True):
        assert distance(ours, theirs) < GRADIENT_BAR, name
    for (name, ours), theirs in zip(model.named_buffers(), eager.buffers(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0.01, atol=0.01, msg=name)


def test_every_layer_keeps_its_own_name_in_forward_and_backward() -> None:
    torch._dynamo.reset()
    found = torchane.explain(Stack(*(Layer() for _ in range(4))), batch())
    products = {(row.graph, row.module) for row in found.rows if row.op == "aten.mm.default" or row.op == "aten.addmm.default"}
    assert {module for graph, module in products if graph == "forward"} >= {f"layers.{i}.up" for i in range(4)}
    for plan in found.plans:
        assert {dispatch.where for dispatch in plan.dispatches} >= {f"layers.{i}" for i in range(4)}
    torch._dynamo.reset()


# ---- layers that the user marked


class Marked(Layer):
    forward = torch.compiler.nested_compile_region(Layer.forward)


@pytest.mark.parametrize(
    "keywords", [{}, {"dropout": 0.3}, {"norm": nn.RMSNorm}], ids=["plain", "dropout", "RMSNorm"]
)
def test_marked_layers_give_the_programs_and_bits_of_unmarked_ones(keywords: dict) -> None:
    found = []
    for kind in (Layer, Marked):
        model, eager = trained(lambda kind=kind: Stack(*(kind(**keywords) for _ in range(4))))
        plans = torchane.capture.backend.COMPILED[-1].plans
        programs = [(program.text, dispatch.where) for plan in plans.values() for dispatch in plan.dispatches for program in [plan.programs[dispatch.program]]]
        found.append((programs, gradients(model)))
        assert max(distance(ours.grad, theirs.grad) for ours, theirs in zip(model.parameters(), eager.parameters())) < GRADIENT_BAR
    (texts, ours), (marked_texts, marked) = found
    assert texts == marked_texts
    assert all(torch.equal(ours[name], marked[name]) for name in ours)


def test_marked_layers_that_write_to_buffers_get_torchs_own_refusal() -> None:
    torch._dynamo.reset()
    model = compile_for_twin(Stack(*(Marked(norm=nn.BatchNorm1d) for _ in range(3))))
    with pytest.raises(torch._dynamo.exc.BackendCompilerFailed, match="in-place input or buffer mutations"):
        model(batch())
    torch._dynamo.reset()


class MarkedTwice(nn.Module):
    """Marked layers in a marked layer."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.ModuleList(Marked() for _ in range(2))

    @torch.compiler.nested_compile_region
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.inner:
            x = layer(x)
        return x


def test_marked_layers_in_marked_layers_run_in_programs() -> None:
    model, eager = trained(lambda: Stack(MarkedTwice(), MarkedTwice()))
    assert max(distance(ours.grad, theirs.grad) for ours, theirs in zip(model.parameters(), eager.parameters())) < GRADIENT_BAR
    with torch.no_grad():
        assert distance(compile_for_twin(model)(batch()), eager(batch())) < GRADIENT_BAR
    on_host = {op: reason for op, reason in torchane.capture.backend.COMPILED[-1].plans["forward"].host_ops}
    assert set(on_host) <= {"aten.native_layer_norm.default", "<built-in function getitem>"}, on_host  # the first norm, which reads the caller's own numbers
    torch._dynamo.reset()


class InPlace(Layer):
    """Writes to what it is given: F.hardtanh's last argument says so by its place alone."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(torch.tanh(self.up(self.norm(nn.functional.hardtanh(x, -1.0, 1.0, True)))))


def test_layers_that_write_to_their_input_by_a_positional_flag_are_not_shared() -> None:
    assert calls(Stack(nn.Linear(16, 16), *(InPlace() for _ in range(3))), batch().requires_grad_()) == []


class WithPenalty(nn.Module):
    """A layer that returns two tensors, as one with a loss for its router does."""

    def __init__(self, make: Callable[[], nn.Module], norm: bool = False) -> None:
        super().__init__()
        self.first, self.second = make(), make()
        self.norm = nn.LayerNorm(16) if norm else nn.Identity()

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        y = x + self.second(torch.tanh(self.first(self.norm(x))))
        return y, y.square().mean()


class Penalised(nn.Module):
    def __init__(self, count: int, make: Callable[[], nn.Module], norm: bool = False) -> None:
        super().__init__()
        self.layers = nn.ModuleList(WithPenalty(make, norm) for _ in range(count))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        total = 0.0
        for layer in self.layers:
            x, penalty = layer(x)
            total = total + penalty
        return x.square().mean() + 0.1 * total


@pytest.mark.parametrize("count", [1, 3, 4])
@pytest.mark.parametrize(
    ("make", "norm", "shape"),
    [
        (lambda: nn.Conv2d(16, 16, 3, padding=1), False, (1, 16, 16, 16)),
        (lambda: nn.Linear(16, 16), False, (4, 16)),
        (lambda: nn.Linear(16, 16), True, (2, 8, 16)),
    ],
    ids=["images", "rows", "sequences"],
)  # fmt: skip
def test_a_layers_result_that_leaves_it_and_is_saved_too_has_both_names(make, norm, shape, count) -> None:
    torch._dynamo.reset()
    torch.manual_seed(0)
    model = Penalised(count, make, norm)
    eager, x = copy.deepcopy(model), torch.randn(*shape)
    compile_for_twin(model)(x).backward()
    eager(x).backward()
    for (name, ours), theirs in zip(gradients(model).items(), gradients(eager).values(), strict=True):
        assert distance(ours, theirs) < GRADIENT_BAR, name
    torch._dynamo.reset()
