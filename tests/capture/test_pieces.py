"""Regions of too many ports are cut where their ops repeat; one op without a legal form does not take its layer with it."""

import copy
import warnings

import pytest
import torch
from capture_helpers import compile_for_twin, distance, gradients
from torch import nn

import torchane
from torchane import passes
from torchane.capture import backend, region
from torchane.errors import CompileError

BAR = 0.02


class Named(nn.Module):
    """Layers that are attributes: nothing in their names says where one ends."""

    def __init__(self, count: int):
        super().__init__()
        self.count, self.head = count, nn.Linear(8, 4)
        for i in range(count):
            setattr(self, f"conv{i}", nn.Conv2d(8, 8, 3, padding=1))
            setattr(self, f"norm{i}", nn.GroupNorm(2, 8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for i in range(self.count):
            x = torch.sigmoid(getattr(self, f"norm{i}")(getattr(self, f"conv{i}")(x))) + x
        return self.head(x.mean((2, 3)))


class Loop(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell, self.out = nn.GRUCell(8, 32), nn.Linear(32, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        state = x.new_zeros(len(x), 32)
        for t in range(x.shape[1]):
            state = self.cell(x[:, t], state)
        return self.out(state)


def _agree(model: nn.Module, x: torch.Tensor) -> backend.Compiled:
    """Gradients meet eager's in float64; the graph that was compiled."""
    right = copy.deepcopy(model).double()
    right(x.double()).square().mean().backward()
    known = len(backend.COMPILED)
    compile_for_twin(model)(x).square().mean().backward()
    for name, gradient in gradients(model).items():
        assert distance(gradient.double(), right.get_parameter(name).grad) < BAR, name
    (compiled,) = backend.COMPILED[known:]
    return compiled


@pytest.mark.parametrize(("model", "shape", "most"), [(Named(24), (2, 8, 8, 8), 8), (Loop(), (4, 40, 8), 6)], ids=["layers without numbers", "a loop of 40 steps"])
def test_too_many_ports_are_several_programs(model: nn.Module, shape: tuple[int, ...], most: int) -> None:
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # nothing runs in PyTorch that a user would not expect there
        compiled = _agree(model, torch.randn(shape))
    for plan in compiled.plans.values():
        assert 1 < len(plan.dispatches) <= most
        assert all(len(program.inputs) + len(program.outputs) <= 128 for program in plan.programs)


def test_equal_pieces_share_a_program() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        explained = torchane.explain(Named(36), torch.randn(2, 8, 4, 4))
    for plan in explained.plans:
        assert len(plan.programs) < len(plan.dispatches), plan.name


def test_one_refused_op_leaves_the_others_of_its_layer_in_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    lower = passes.lower

    def refusing(program, *args, **kwargs):
        if any(op.kind.name == "softmax" for op in program.ops):
            raise CompileError("softmax is refused in this test")
        return lower(program, *args, **kwargs)

    class Layer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.down = nn.Linear(16, 32), nn.Linear(32, 16)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.down(self.up(x).softmax(-1))

    monkeypatch.setattr(region.passes, "lower", refusing)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        compiled = _agree(nn.Sequential(Layer(), Layer()), torch.randn(6, 16))
    products = [row for row in compiled.rows if row.macs]
    assert len(products) >= 8
    assert {row.place for row in products} == {"program"}
    assert [row.op for row in compiled.rows if "refused in this test" in row.why] == ["aten._softmax.default"] * 2


def test_where_every_op_has_a_form_alone_the_region_is_cut_in_two(monkeypatch: pytest.MonkeyPatch) -> None:
    lower = passes.lower

    def refusing(program, *args, **kwargs):
        if sum(op.kind.name == "matmul" for op in program.ops) > 2:
            raise CompileError("three products are too many in this test")
        return lower(program, *args, **kwargs)

    monkeypatch.setattr(region.passes, "lower", refusing)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        compiled = _agree(nn.Sequential(nn.Linear(16, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 16)), torch.randn(6, 16))
    assert {row.place for row in compiled.rows if row.macs} == {"program"}
