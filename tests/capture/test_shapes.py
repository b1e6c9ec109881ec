"""Every exact shape has programs of its own; torch never gives up and runs eager."""

import copy
import functools
import gc
import json
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from capture_helpers import distance, gradients
from torch import nn
from torch._dynamo import config as dynamo_config
from torch.utils.checkpoint import checkpoint

import torchane
from torchane.capture import backend, resident, varied
from torchane.errors import CaptureError, IndexRangeError, TorchaneWarning

GRADIENT_BAR = 0.02

#: Of a test that is about something else than this warning.
MANY_SIZES = pytest.mark.filterwarnings("ignore:.*was compiled 8 times")


class Small(nn.Module):
    """Asks for sizes, gives one back, and takes a Python number."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(8, 16), nn.Linear(16, 4)

    def forward(self, x: torch.Tensor, factor: float = 1.0) -> tuple[torch.Tensor, int]:
        y = self.down(torch.relu(self.up(x) * factor))
        return y.reshape(x.shape[0] * x.shape[1], -1) / x.shape[1], x.shape[0]


@pytest.fixture(autouse=True)
def nothing_compiled_before():
    torch._dynamo.reset()
    with dynamo_config.patch(recompile_limit=8):
        yield
    torch._dynamo.reset()


def train_on(count: int, dynamic: bool | None, buckets: str = "auto") -> int:
    """Trains on `count` shapes beside eager; gives how many graphs were compiled."""
    before = len(backend.COMPILED)
    torch.manual_seed(0)
    model = Small()
    eager = copy.deepcopy(model)
    compiled = torch.compile(model, backend=backend.ane, dynamic=dynamic, options={"device": "twin", "buckets": buckets})
    for i in range(count):
        x, factor = torch.randn(2 + i % 3, 3 + i, 8), 1.0 + i
        for current in (compiled, eager):
            current.zero_grad()
            y, batch = current(x, factor)
            assert batch == x.shape[0]
            y.square().sum().backward()
        for (name, ours), theirs in zip(gradients(model).items(), gradients(eager).values(), strict=True):
            assert distance(ours, theirs) < GRADIENT_BAR, (name, x.shape)
    assert all(compiled.plans["backward"].dispatches for compiled in backend.COMPILED[before:])
    return len(backend.COMPILED) - before


@MANY_SIZES
@pytest.mark.parametrize(("dynamic", "buckets"), [(None, "off"), (False, "auto")])
def test_more_shapes_than_torchs_recompile_limit_all_run_in_programs(dynamic: bool | None, buckets: str) -> None:
    assert train_on(10, dynamic, buckets) == 10


def test_sizes_of_one_bucket_share_a_program() -> None:
    assert train_on(10, None) == 3  # the first shape, and batches of at most 2 and 4 with lengths of at most 32


@pytest.mark.parametrize("dynamic", [None, True])
def test_symbolic_graphs_are_specialised_for_every_shape_where_buckets_are_off(dynamic: bool | None) -> None:
    assert train_on(4, dynamic, "off") == 4


@MANY_SIZES
@pytest.mark.long
@pytest.mark.parametrize(("dynamic", "buckets", "count"), [(None, "auto", 3), (False, "auto", 20), (True, "auto", 2), (True, "off", 20)])
def test_twenty_shapes(dynamic: bool | None, buckets: str, count: int) -> None:
    assert train_on(20, dynamic, buckets) == count


def test_a_shape_that_comes_again_is_not_compiled_again() -> None:
    compiled = torch.compile(Small(), backend=backend.ane, dynamic=True, options={"device": "twin"})
    compiled(torch.randn(2, 3, 8))
    compiled(torch.randn(2, 5, 8))
    before = len(backend.COMPILED)
    compiled(torch.randn(2, 3, 8))
    assert len(backend.COMPILED) == before


@pytest.mark.parametrize("dynamic", [None, True])
def test_graphs_beyond_the_limit_are_let_go_and_compiled_again(dynamic: bool | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resident, "MOST_GRAPHS", 2)
    torch.manual_seed(0)
    model = Small()
    eager = copy.deepcopy(model)
    compiled = torch.compile(model, backend=backend.ane, dynamic=dynamic, options={"device": "twin", "buckets": "off"})
    before = len(backend.COMPILED)
    for length in (3, 4, 5, 5, 3):
        x = torch.randn(2, length, 8)
        for net, call in ((model, compiled), (eager, eager)):
            net.zero_grad()
            call(x)[0].square().sum().backward()
        for (name, ours), theirs in zip(gradients(model).items(), gradients(eager).values(), strict=True):
            assert distance(ours, theirs) < GRADIENT_BAR, (name, length)
    assert len(backend.COMPILED) - before == 4  # 3 was let go when 5 came
    gc.collect()
    assert len(backend.COMPILED[before:]) <= 3  # and its programs with it


def test_a_backward_outlives_its_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resident, "MOST_GRAPHS", 1)
    model = Small()
    compiled = torch.compile(model, backend=backend.ane, dynamic=False, options={"device": "twin"})
    results = [compiled(torch.randn(2, length, 8))[0] for length in (3, 4)]
    for result in results:
        result.sum().backward()
    assert model.up.weight.grad.isfinite().all()


def test_memory_is_a_limit_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resident, "ROOM_BYTES", 1)
    compiled = torch.compile(Small(), backend=backend.ane, dynamic=False, options={"device": "twin"})
    before = len(backend.COMPILED)
    with torch.no_grad():
        for length in (3, 4, 3):
            compiled(torch.randn(2, length, 8))
    assert len(backend.COMPILED) - before == 3


@pytest.mark.parametrize("dynamic", [False, True])
def test_one_warning_says_which_dimension_varies(dynamic: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(varied, "MANY", 3)
    compiled = torch.compile(Small(), backend=backend.ane, dynamic=dynamic, options={"device": "twin", "buckets": "off"})
    with torch.no_grad(), warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for length in range(3, 8):
            compiled(torch.randn(2, length, 8))
    texts = [str(one.message) for one in said if "was compiled" in str(one.message)]
    assert len(texts) == 1
    assert re.search(r"Small\.forward \(.*test_shapes.py:\d+\) was compiled 3 times: dimension 1 of x had 3 sizes, 3 to 5\.", texts[0]), texts[0]
    assert "collate function" in texts[0]


def _decorated(forward: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(forward)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return forward(*args, **kwargs)

    return wrapper


class Decorated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.map = nn.Linear(8, 8)

    @_decorated
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.map(x)


def test_the_warning_names_the_model_behind_a_decorator(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(varied, "MANY_BUCKETS", 2)
    model = Decorated()
    model.compile(backend="ane", dynamic=True, options={"device": "twin"})
    with torch.no_grad(), pytest.warns(TorchaneWarning, match=r"Decorated\.forward \(.*test_shapes\.py:\d+\) was compiled 2 times.*fewer buckets"):
        for length in (3, 40):
            model(torch.randn(2, length, 8))


class Scaled(nn.Module):
    """A norm whose epsilon is an attribute, as everywhere."""

    def __init__(self) -> None:
        super().__init__()
        self.map, self.eps = nn.Linear(8, 8), 1e-5

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.map(x)
        return self.map(x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps))


def test_a_number_that_never_changes_is_a_constant_where_all_may() -> None:
    """With dynamic=True an epsilon is a number like any other to Dynamo; a norm of an unknown one would run in PyTorch."""
    model, before = Scaled(), len(backend.COMPILED)
    compiled = torch.compile(model, backend=backend.ane, dynamic=True, options={"device": "twin"})
    for eps in (1e-5, 1e-5, 0.5, 0.7, 0.9):
        model.eps = eps
        x = torch.randn(4, 6, 8)
        ours, theirs = compiled(x), model(x)
        assert distance(ours, theirs) < GRADIENT_BAR
    assert len(backend.COMPILED) - before == 2
    assert len(backend.COMPILED[before].plans["forward"].dispatches) == 1
    assert not any(row.place == "host" and "mean" in row.op for row in backend.COMPILED[before].rows)


class Strided(nn.Module):
    def __init__(self, stride: int) -> None:
        super().__init__()
        self.conv = nn.Conv1d(8, 8, 3, padding=1, stride=stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.tanh(self.conv(x))


def test_a_size_that_is_no_named_bucket_and_cannot_be_filled_up_is_refused_by_name() -> None:
    compiled = torch.compile(Strided(2), backend=backend.ane, dynamic=True, fullgraph=True, options={"device": "twin", "buckets": (64, 128)})
    said = r"dimension 2 of x is 40, which is none of the buckets \(64, 128\).* a convolution with a stride .* in conv, test_shapes.py:\d+.*Pad to one"
    with pytest.raises(CaptureError, match=said):
        compiled(torch.randn(64, 8, 40))
    assert compiled(torch.randn(64, 8, 128)).shape == (64, 8, 64)


def test_sizes_that_one_graph_cannot_serve_are_refused_where_one_is_asked_for() -> None:
    options = {"device": "twin"}
    said = r"dimension 2 of x is 40, and no program can serve other sizes.* a convolution with a stride .* in conv, test_shapes.py:\d+.*Leave one of the two out"
    with pytest.raises(CaptureError, match=said):
        torch.compile(Strided(2), backend=backend.ane, dynamic=True, fullgraph=True, options=options)(torch.randn(64, 8, 40))
    assert torch.compile(Strided(1), backend=backend.ane, dynamic=True, fullgraph=True, options=options)(torch.randn(64, 8, 40)).shape == (64, 8, 40)


class Positions(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.place, self.map = nn.Embedding(24, 8), nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.map(x + self.place(torch.arange(x.shape[1])))


@pytest.mark.parametrize("dynamic", [False, True])
def test_a_sequence_beyond_the_table_of_positions_is_refused_by_name(dynamic: bool) -> None:
    compiled = torch.compile(Positions(), backend=backend.ane, dynamic=dynamic, options={"device": "twin"})
    assert compiled(torch.randn(4, 24, 8)).shape == (4, 24, 8)
    with pytest.raises(IndexRangeError, match=r"embedding.* in place, test_shapes.py:\d+: an index \(\d+,\) holds 24, and there are 24 rows .*at most 24.*model's\.$"):
        compiled(torch.randn(4, 25, 8))


@pytest.mark.parametrize(("stride", "said"), [(1, "dimension 2 of x: 48, in programs of 64, which serve all up to it; 25% of the forward's"), (2, r"sizes are exact \(dimension 2 of x: 48\): a convolution with a stride")])
def test_explain_and_dump_say_which_sizes_programs_serve(stride: int, said: str, tmp_path: Path) -> None:
    x = torch.randn(4, 8, 48)
    torch._dynamo.mark_dynamic(x, 2)
    found = torchane.explain(Strided(stride), x, options={"dump": str(tmp_path)})
    assert re.search(said, str(found)), str(found)
    assert json.loads(found.to_json())["sizes"][0]["served"] == [["dimension 2 of x", 48, 64 if stride == 1 else 48]]
    assert re.match(said, next(tmp_path.glob("*/forward.txt")).read_text())


class Checkpointed(nn.Module):
    def __init__(self, is_on: bool) -> None:
        super().__init__()
        self.map, self.is_on = nn.Linear(8, 8), is_on

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        body = lambda y: torch.tanh(torch.tanh(torch.tanh(self.map(y)) * y) @ self.map.weight)
        return checkpoint(body, self.map(x), use_reentrant=False) if self.is_on else body(self.map(x))


def test_a_checkpointed_layer_keeps_as_little_for_a_bucket_as_for_an_exact_shape() -> None:
    def kept(is_on: bool, dynamic: bool) -> int:
        model = Checkpointed(is_on)
        eager, before, x = copy.deepcopy(model), len(backend.COMPILED), torch.randn(2, 20, 8)
        compiled = torch.compile(model, backend=backend.ane, dynamic=dynamic, options={"device": "twin"})
        for current in (compiled, eager):
            current(x).square().sum().backward()
        assert distance(model.map.weight.grad, eager.map.weight.grad) < GRADIENT_BAR
        assert (backend.COMPILED[before].sizes is not None) is dynamic
        return len(backend.COMPILED[before].plans["forward"].kept)

    assert kept(True, True) == kept(True, False) < kept(False, True)


class Blocks(nn.Module):
    """Equal layers, whose strides and sizes share_layers compares."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = x + torch.tanh(layer(x))
        return x


@pytest.mark.parametrize(
    "sizes",
    [[(3, 8), (5, 8), (1, 8)], [(1, 8), (4, 8)], [(2, 4, 8), (2, 1, 8), (1, 4, 8), (1, 1, 8)], [(2, 2, 1, 8), (3, 1, 2, 8), (1, 1, 1, 8)]],
    ids=["a size of 1 last", "a size of 1 first", "either size is 1", "1 in the middle"],
)
def test_a_size_of_1_among_symbolic_ones(sizes: list[tuple[int, ...]]) -> None:
    model = Blocks()
    compiled = torch.compile(model, backend=backend.ane, dynamic=True, options={"device": "twin"})
    for shape in sizes:
        x = torch.randn(shape)
        assert distance(compiled(x), model(x)) < GRADIENT_BAR


def test_a_transposed_batch_of_1_with_symbolic_strides() -> None:
    model = Blocks()
    compiled = torch.compile(model, backend=backend.ane, dynamic=True, options={"device": "twin"})
    for count in (3, 5, 1):
        x = torch.randn(8, count, 2).permute(2, 1, 0)
        assert distance(compiled(x), model(x)) < GRADIENT_BAR


class Annealed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.map = nn.Linear(8, 8)

    def forward(self, x: torch.Tensor, weight: float) -> torch.Tensor:
        return self.map(x) * weight + (1 - weight) * x


def test_a_number_that_changes_at_each_step_is_an_input() -> None:
    model, before = Annealed(), len(backend.COMPILED)
    compiled = torch.compile(model, backend=backend.ane, options={"device": "twin"})
    for step in range(12):
        x, weight = torch.randn(4, 8), (step + 1) / 100
        ours, theirs = compiled(x, weight), model(x, weight)
        assert distance(ours, theirs) < GRADIENT_BAR
        ours.sum().backward()
    assert len(backend.COMPILED) - before == 2


#: What a model makes of a number that it is given; all of it in one graph, once the number has changed.
GIVEN: dict[str, Callable[[torch.Tensor, float], torch.Tensor]] = {
    "a threshold": lambda y, t: torch.where(y > t, y, y / 2),
    "a threshold on the left": lambda y, t: torch.where(t <= y, y, y / 2),
    "a power": lambda y, t: torch.sigmoid(y) ** t + torch.sigmoid(y).pow(t),
    "a factor": lambda y, t: y * t,
}


@pytest.mark.filterwarnings("ignore:.*aten.pow:torchane.errors.TorchaneWarning")  # a power whose exponent is a tensor runs in PyTorch
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", GIVEN)
def test_a_number_that_is_given_is_an_input_wherever_it_is_an_operand(name: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    layer, before = nn.Linear(8, 8).to(dtype), len(backend.COMPILED)

    def function(x: torch.Tensor, number: float) -> torch.Tensor:
        return GIVEN[name](layer(x), number)

    compiled = torch.compile(function, backend=backend.ane, options={"device": "twin"})
    for step in range(6):
        x, number = torch.randn(64, 8, dtype=dtype), 0.1 + 0.0137 * step
        ours = compiled(x, number)
        assert ours.dtype is dtype
        assert distance(ours.double(), function(x, number).double()) < (0.002 if dtype is torch.float32 else 0.01)
    assert len(backend.COMPILED) - before == 2


def test_a_number_beside_fewer_digits_keeps_its_own() -> None:
    """Rounded to bfloat16 first, 1.0035 would be 1."""
    layer = nn.Linear(8, 8, bias=False).to(torch.bfloat16)
    nn.init.eye_(layer.weight)
    compiled = torch.compile(lambda x, number: layer(x) * number, backend=backend.ane, options={"device": "twin"})
    x = torch.full((4, 8), 1.5, dtype=torch.bfloat16)
    for number in (0.5, 1.25, 1.0035):
        assert torch.equal(compiled(x, number), layer(x) * number)


class Counting(nn.Module):
    """Numbers of its own, which its forward changes."""

    def __init__(self, forward: Callable[..., Any]) -> None:
        super().__init__()
        self.map = nn.Linear(8, 8)
        self.seen, self.temperature = 0, 2.0
        self._forward = forward

    def forward(self, x: torch.Tensor) -> Any:
        self.seen += 1
        self.temperature *= 0.9
        return self._forward(self, x)


#: What a model makes of its numbers, and in how many graphs at most.
NUMBERS: dict[str, tuple[Callable[..., Any], int]] = {
    "a step counter": (lambda m, x: m.map(x) * min(1.0, m.seen / 100), 6),
    "a counter that chooses a branch": (lambda m, x: m.map(x) * 2 / m.seen if m.seen % 4 == 0 else m.map(x) / m.seen, 7),
    "returned numbers": (lambda m, x: (m.map(x) * 0.5**m.seen, m.seen, m.seen / 3), 6),
    "in place": (lambda m, x: m.map(x).mul_(m.seen / 50).add_(1 - m.seen / 50), 6),
    "a temperature": (lambda m, x: torch.tanh(m.map(x) / m.temperature), 6),
    "a bias correction": (lambda m, x: m.map(x) / (1 - 0.9**m.seen) + m.seen**0.5 * x, 6),
    "between two tensors": (lambda m, x: torch.lerp(x, m.map(x), 1 / (m.seen + 1)), 6),
}


@pytest.mark.parametrize("name", NUMBERS)
def test_a_number_that_a_model_changes_itself_becomes_an_input(name: str) -> None:
    forward, most_graphs = NUMBERS[name]
    model, before = Counting(forward), len(backend.COMPILED)
    eager = copy.deepcopy(model)
    compiled = torch.compile(model, backend=backend.ane, options={"device": "twin"})
    for _ in range(9):
        x = torch.randn(4, 8)
        ours, theirs = compiled(x), eager(x)
        if isinstance(ours, tuple):
            assert ours[1:] == theirs[1:]
            ours, theirs = ours[0], theirs[0]
        assert distance(ours, theirs) < GRADIENT_BAR
        assert (model.seen, model.temperature) == (eager.seen, eager.temperature)
        for out, net in ((ours, model), (theirs, eager)):
            net.zero_grad()
            out.sum().backward()
        assert distance(model.map.weight.grad, eager.map.weight.grad) < GRADIENT_BAR
    assert len(backend.COMPILED) - before <= most_graphs


@MANY_SIZES
@pytest.mark.parametrize("use", [lambda y, n: y[:, : n % 7 + 1], lambda y, n: torch.add(y, y, alpha=n), lambda y, n: y.repeat(n % 3 + 1, 1)])
def test_a_number_that_is_no_operand_is_traced_for_each_of_its_values(use: Callable[..., torch.Tensor]) -> None:
    model = Counting(lambda m, x: use(m.map(x), m.seen))
    eager = copy.deepcopy(model)
    compiled = torch.compile(model, backend=backend.ane, options={"device": "twin"})
    for _ in range(8):
        x = torch.randn(4, 8)
        assert distance(compiled(x), eager(x)) < GRADIENT_BAR


class Wide(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.map = nn.Linear(4, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.tanh(self.map(x))


@pytest.mark.long
@pytest.mark.parametrize("are_kept", [False, True], ids=["those before are gone", "all are kept"])
def test_a_sweep_of_more_models_than_one_may_have_shapes(are_kept: bool) -> None:
    """Models of one class share a frame."""
    kept = []
    for width in range(67):
        compiled = torch.compile(Wide(4 + width), backend=backend.ane)
        assert compiled(torch.randn(2, 4)).shape == (2, 4 + width)
        kept = [*kept, compiled] if are_kept else []
