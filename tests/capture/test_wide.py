"""Products wider than a program may be run in blocks: the same numbers, nothing of them on the host."""

import copy
from collections.abc import Callable

import pytest
import torch
from capture_helpers import compile_for_twin, distance
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import fx, nn
from torch.fx.experimental.proxy_tensor import make_fx

import torchane
from torchane import chips
from torchane.capture import backend, planning
from torchane.capture.wide import cut_wide_products
from torchane.errors import TorchaneWarning
from torchane.plan import HostCall, Stage, Unstage

aten = torch.ops.aten


class Head(nn.Module):
    """tokens (B, S) -> scores (B, S, V)."""

    def __init__(self, vocabulary: int, *, tied: bool = False, bias: bool = False, cap: float | None = None) -> None:
        super().__init__()
        self.table = nn.Embedding(vocabulary, 32)
        self.mix = nn.Linear(32, 32)
        self.head = nn.Linear(32, vocabulary, bias=bias)
        self.cap = cap
        if tied:
            self.head.weight = self.table.weight

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        scores = self.head(torch.tanh(self.mix(self.table(tokens))))
        return scores if self.cap is None else self.cap * torch.tanh(scores / self.cap)


def some_tokens(vocabulary: int) -> torch.Tensor:
    return torch.randint(0, vocabulary, (2, 16), generator=torch.Generator().manual_seed(0))


def step(forward: Callable[..., torch.Tensor], model: nn.Module, x: torch.Tensor, scale: float = 1.0) -> dict[str, torch.Tensor]:
    """The results and gradients of one step, as float64."""
    model.zero_grad()
    scores = forward(x)
    target = torch.arange(scores.numel() // scores.shape[-1]) % scores.shape[-1]
    (nn.functional.cross_entropy(scores.double().flatten(0, -2), target) * scale).backward()
    grads = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.requires_grad}
    return {name: value.detach().double() for name, value in {"scores": scores, **grads}.items()}


def assert_alike(ours: dict[str, torch.Tensor], exact: dict[str, torch.Tensor], most: float = 0.002) -> None:
    """fp16 rounds inputs, weights and results by up to 0.05 % each."""
    assert ours.keys() == exact.keys()
    assert {name: found for name in ours if (found := distance(ours[name], exact[name])) > most} == {}


def seeded(make: Callable[[], nn.Module]) -> tuple[nn.Module, nn.Module]:
    """A module, and its copy in float64."""
    torch._dynamo.reset()
    torch.manual_seed(0)
    model = make()
    return model, copy.deepcopy(model).double()


def ops_on_the_host() -> set[str]:
    return {op for plan in backend.COMPILED[-1].plans.values() for op, _ in plan.host_ops}


@pytest.mark.parametrize(
    "keywords",
    [{"vocabulary": 50257, "tied": True}, {"vocabulary": 70000}, {"vocabulary": 70000, "bias": True}, {"vocabulary": 151936, "tied": True}],
    ids=["GPT-2", "untied", "with a bias", "Qwen3"],
)
def test_a_head_wider_than_a_program_runs_in_programs(keywords: dict) -> None:
    model, exact = seeded(lambda: Head(**keywords))
    tokens, compiled = some_tokens(keywords["vocabulary"]), compile_for_twin(model)
    wanted = step(exact, exact, tokens)
    for _ in range(2):
        assert_alike(step(compiled, model, tokens), wanted)
    assert ops_on_the_host() <= {
        "aten.embedding.default", "aten.embedding_dense_backward.default", "aten.slice.Tensor", "aten.add.Tensor"
    }  # fmt: skip


def test_explain_finds_every_multiply_add_of_a_wide_head_in_programs() -> None:
    found = torchane.explain(Head(70000, tied=True), some_tokens(70000))
    assert found.share("program") == 1.0
    assert found.macs == 3 * 32 * 32 * 70000 + 3 * 32 * 32 * 32


def test_blocks_of_a_weight_are_staged_once_a_step() -> None:
    model, _ = seeded(lambda: Head(70000))
    step(compile_for_twin(model), model, some_tokens(70000))
    compiled = backend.COMPILED[-1]
    blocks = [name for name in compiled.weights.held if "_rows_" in name]
    assert len(blocks) == 3
    assert sorted(compiled.weights.held[name].buffer.array.size for name in blocks) == [32 * 23280, 32 * 23360, 32 * 23360]
    read = [
        {copied.value for one in plan.steps if isinstance(one, Stage) for copied in one.copies if "_rows_" in copied.value}
        for plan in compiled.plans.values()
    ]
    assert read == [set(blocks), set(blocks)]
    version = {compiled.weights.held[name].version for name in blocks}.pop()
    step(compile_for_twin(model), model, some_tokens(70000))
    assert {held.version for held in compiled.weights.held.values()} == {version + 1}


def test_blocks_leave_their_surfaces_straight_into_the_whole() -> None:
    model, _ = seeded(lambda: Head(70000))
    step(compile_for_twin(model), model, some_tokens(70000))
    for plan, rows in zip(backend.COMPILED[-1].plans.values(), ((32, 70000), (70000, 32)), strict=True):
        parts = [copied.part for one in plan.steps if isinstance(one, Unstage) for copied in one.copies if copied.part]
        assert [part.shape for part in parts] == [rows] * 3
        assert [part.start for part in parts] == [0, 23360, 46720]
        assert [part.is_last for part in parts] == [False, False, True]
        assert not any("cat" in op for one in plan.steps if isinstance(one, HostCall) for op, _ in one.ops)


def test_what_a_model_does_with_wide_scores_runs_on_the_host_between_blocks() -> None:
    model, exact = seeded(lambda: Head(70000, cap=2.0))
    tokens = some_tokens(70000)
    assert_alike(step(compile_for_twin(model), model, tokens), step(exact, exact, tokens))
    assert "aten.mm.default" not in ops_on_the_host()


def test_a_layer_of_too_many_inputs_sums_over_blocks() -> None:
    model, exact = seeded(lambda: nn.Sequential(nn.Conv2d(3, 10, 3, padding=1), nn.Tanh(), nn.Flatten(), nn.Linear(40960, 10)))
    x = torch.randn(2, 3, 64, 64)
    with pytest.warns(TorchaneWarning, match="aten.slice.Tensor in .*a program's value is unstaged to be cut into blocks"):
        ours = step(compile_for_twin(model), model, x)
    assert_alike(ours, step(exact, exact, x.double()), 0.004)
    assert ops_on_the_host() == {"aten.slice.Tensor"}


@pytest.mark.parametrize("frozen", ["head", "mix"])
def test_a_frozen_side_of_a_wide_head_leaves_the_others_gradient_right(frozen: str) -> None:
    model, exact = seeded(lambda: Head(70000))
    for one in (model, exact):
        getattr(one, frozen).requires_grad_(False)
        one.table.requires_grad_(frozen != "mix")
    tokens = some_tokens(70000)
    assert_alike(step(compile_for_twin(model), model, tokens), step(exact, exact, tokens))


def test_range_control_gives_each_block_its_power() -> None:
    model, exact = seeded(lambda: Head(70000, bias=True))
    tokens, compiled = some_tokens(70000), compile_for_twin(model, ranges="on")
    wanted = step(exact, exact, tokens, 2.0**-40)
    for _ in range(2):
        assert_alike(step(compiled, model, tokens, 2.0**-40), wanted)


def test_gradients_of_blocks_that_overflow_are_computed_again() -> None:
    model, exact = seeded(lambda: Head(70000))
    tokens, compiled = some_tokens(70000), compile_for_twin(model)
    for scale in (1.0, 2.0**24):
        assert_alike(step(compiled, model, tokens, scale), step(exact, exact, tokens, scale))


def test_autocast_casts_blocks() -> None:
    model, exact = seeded(lambda: nn.Sequential(nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 70000)))
    x, compiled = torch.randn(8, 32), compile_for_twin(model)

    def forward(x: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return compiled(x)

    assert_alike(step(forward, model, x), step(exact, exact, x.double()), 0.01)  # bf16 rounds scores by 0.4 %


def test_without_gradients_a_wide_head_gives_the_same_scores() -> None:
    model, exact = seeded(lambda: Head(70000, tied=True))
    with torch.no_grad():
        assert distance(compile_for_twin(model)(some_tokens(70000)).double(), exact(some_tokens(70000))) < 0.002
    assert ops_on_the_host() == {"aten.embedding.default", "aten.slice.Tensor"}


def test_a_chip_of_shorter_axes_gets_more_blocks() -> None:
    assert (chips.load("portable").widest_matrix, chips.load("m1").widest_matrix) == (32768, 16384)
    model, exact = seeded(lambda: Head(32000))
    tokens = some_tokens(32000)
    assert_alike(step(compile_for_twin(model, chip="m1"), model, tokens), step(exact, exact, tokens))
    assert "aten.mm.default" not in ops_on_the_host()
    assert sum("_rows_" in name for name in backend.COMPILED[-1].weights.held) == 2


def test_a_gradient_that_sums_over_more_tokens_than_a_matmul_takes_is_a_programs() -> None:
    model, exact = seeded(lambda: nn.Sequential(nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 64)))
    x = torch.randn(40, 1024, 32)
    assert_alike(step(compile_for_twin(model), model, x), step(exact, exact, x.double()), 0.004)
    assert ops_on_the_host() == set()


def test_a_head_of_which_a_block_has_no_program_is_joined_by_torch_and_reported(monkeypatch) -> None:
    why_not = planning.why_not


    def without_the_last(node: fx.Node, chip: chips.Chip) -> str | None:
        is_last = node.target is aten.mm.default and node.meta["val"].shape == (32, 23280)
        return "taken out" if is_last else why_not(node, chip)

    monkeypatch.setattr(planning, "why_not", without_the_last)
    model, exact = seeded(lambda: Head(70000))
    tokens = some_tokens(70000)
    with pytest.warns(TorchaneWarning, match="joined by PyTorch: not all of its blocks are programs'"):
        ours = step(compile_for_twin(model), model, tokens)
    assert_alike(ours, step(exact, exact, tokens))


# ---- the rewriting alone, in float64


def linear(x: torch.Tensor, w: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return aten.mm(x, aten.t(w))


def linear_with_bias(x: torch.Tensor, w: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return aten.addmm(b, x, aten.transpose.int(w, 0, 1), beta=0.5, alpha=2.0)


def plain_product(x: torch.Tensor, w: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return aten.mm(aten.alias(w), aten.permute(x, [1, 0]))


def gradient(x: torch.Tensor, w: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    g = aten.mm(x, aten.t(w))
    return aten.mm(aten.t(g), x) + w * aten.sum.dim_IntList(aten.mm(g, w), [0], True) + aten.sum.dim_IntList(g, [0]).sum()


@settings(max_examples=40, deadline=None)
@given(
    function=st.sampled_from([linear, linear_with_bias, plain_product, gradient]),
    rows=st.integers(1, 70), columns=st.integers(1, 200), outputs=st.integers(1, 200), widest=st.sampled_from([32, 64, 96]),
    bias=st.sampled_from(["row", "one", "matrix"]),
)  # fmt: skip
def test_a_graph_cut_into_blocks_computes_what_it_did(function, rows, columns, outputs, widest, bias) -> None:
    generator = torch.Generator().manual_seed(0)
    shape = {"row": (outputs,), "one": (1,), "matrix": (rows, outputs)}[bias]
    x, w, b = (torch.randn(*size, generator=generator, dtype=torch.float64) for size in ((rows, columns), (outputs, columns), shape))
    graph = make_fx(function, tracing_mode="fake")(x, w, b).graph
    before = fx.GraphModule({}, copy.deepcopy(graph))(x, w, b)
    names = [node.name for node in graph.find_nodes(op="placeholder")]
    blocks = cut_wide_products(graph, {names[1]}, (), widest)
    graph.lint()
    assert torch.allclose(fx.GraphModule({}, graph)(x, w, b), before, rtol=1e-9, atol=1e-9)
    assert blocks.shapes == ({tuple(w.shape)} if max(w.shape) > widest else set())
    wide = [size for size in w.shape if size > widest]
    products = [node for node in graph.nodes if node.target in (aten.mm.default, aten.addmm.default)]
    axes = {size for node in products for factor in node.args[-2:] for size in factor.meta["val"].shape}
    assert len(wide) != 1 or len({rows, columns, outputs}) < 3 or wide[0] not in axes
    assert {node for node in graph.nodes if node.target is aten.cat.default} == blocks.wholes.keys()


def test_only_the_wide_parameters_products_are_cut_where_there_are_as_many_tokens_as_rows() -> None:
    def backward(x, trunk, head, g):
        hidden = aten.mm(x, aten.t(trunk))
        scores = aten.mm(hidden, aten.t(head))
        dx = aten.mm(g, head)
        return scores, aten.mm(aten.t(g), hidden), dx, aten.mm(aten.t(dx), x), aten.mm(dx, trunk)

    x, trunk, head, g = (torch.randn(*size, dtype=torch.float64) for size in ((64, 8), (8, 8), (64, 8), (64, 64)))
    graph = make_fx(backward, tracing_mode="fake")(x, trunk, head, g).graph
    names = [node.name for node in graph.find_nodes(op="placeholder")]
    blocks = cut_wide_products(graph, set(names[1:3]), (), 32)
    assert blocks.shapes == {(64, 8)}
    assert sorted(tuple(whole.meta["val"].shape) for whole in blocks.wholes) == [(64, 8), (64, 64)]
    assert sum(node.target in (aten.mm.default, aten.addmm.default) for node in graph.nodes) == 1 + 2 + 2 + 2 + 1 + 1
    for found, wanted in zip(fx.GraphModule({}, graph)(x, trunk, head, g), backward(x, trunk, head, g), strict=True):
        assert torch.allclose(found, wanted)
