"""Frozen weights as constants: numbers and gradients, and that no change of one is missed."""

import copy
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from capture_helpers import SMALL, compile_for_twin, distance, loss_of, tokens
from torch import nn

from torchane import passes
from torchane.abi.frozen import dequantised
from torchane.capture.compiled import COMPILED
from torchane.errors import CompileError, TorchaneWarning, UsageError
from torchane.models.build import build_model
from torchane.models.config import LlamaConfig
from torchane.runtime.inside import Inside

#: A few roundings of fp16 on the way through three layers and back.
CLOSE = 3e-3
FORMS = [
    ("fp16", {}), ("int8", {"chip": "m4"}), ("int4", {"chip": "m5", "ranges": "on"}),
    *(pytest.param(*one, marks=pytest.mark.long) for one in (("fp16", {"ranges": "on"}), ("int8", {"chip": "m5"}), ("int4", {"chip": "m5"}))),
]  # fmt: skip


class Block(nn.Module):
    """A frozen MLP with a trained low-rank path beside it, as LoRA has."""

    def __init__(self, size: int = 64):
        super().__init__()
        self.norm = nn.LayerNorm(size)
        self.up = nn.Linear(size, 2 * size, bias=False)
        self.down = nn.Linear(2 * size, size)
        self.a = nn.Parameter(torch.randn(size, 8) / 8)
        self.b = nn.Parameter(torch.randn(8, size) / 8)
        for part in (self.norm, self.up, self.down):
            part.requires_grad_(False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.norm(x)
        return x + self.down(nn.functional.silu(self.up(h))) + (h @ self.a) @ self.b


class Blocks(nn.Module):
    def __init__(self, count: int = 3):
        super().__init__()
        self.layers = nn.ModuleList(Block() for _ in range(count))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


@pytest.fixture(autouse=True)
def _compiled_anew() -> None:
    """A graph serves all models of its class: without this a test would be given an earlier one's."""
    torch._dynamo.reset()


@pytest.fixture
def model() -> Blocks:
    torch.manual_seed(0)
    return Blocks()


@pytest.fixture
def x() -> torch.Tensor:
    return torch.randn(2, 32, 64, generator=torch.Generator().manual_seed(1), requires_grad=True)


def step(model: Callable[[torch.Tensor], torch.Tensor], parameters: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    """The output, and the gradients of the input and of what is trained."""
    x.grad = None
    parameters.zero_grad()
    y = model(x)
    (y * torch.linspace(-1, 1, 64, dtype=y.dtype)).sum().backward()
    return [y.detach(), x.grad, *(p.grad for p in parameters.parameters() if p.grad is not None)]


def exact(model: Blocks, x: torch.Tensor, form: str = "fp16") -> list[torch.Tensor]:
    """The same in float64 by PyTorch, with the numbers of the matrices that programs are to have."""
    double = copy.deepcopy(model).double()
    for name, parameter in double.named_parameters():
        if form != "fp16" and parameter.dim() == 2 and not parameter.requires_grad:
            parameter.data = torch.from_numpy(dequantised(dict(model.named_parameters())[name].detach().numpy(), form)).double()
    return step(double, double, x.detach().double().requires_grad_())


def worst(found: list[torch.Tensor], wanted: list[torch.Tensor]) -> float:
    return max(distance(one.double(), other) for one, other in zip(found, wanted, strict=True))


@pytest.mark.parametrize(("form", "options"), FORMS, ids=str)
def test_results_and_gradients_are_those_of_the_same_numbers_in_float64(model, x, form, options) -> None:
    compiled = compile_for_twin(model, frozen=form, **options)
    assert worst(step(compiled, model, x), exact(model, x, form)) < CLOSE
    held = [constant for plan in COMPILED[-1].plans.values() for spec in plan.programs for constant in spec.constants]
    assert form in {constant.form for constant in held} and {constant.rounded for constant in held} == {"fp16", form}


def test_few_bits_differ_from_the_weights_themselves_so_that_the_test_above_can_fail(model, x) -> None:
    assert worst(exact(model, x, "int8"), exact(model, x)) > 2e-3 and worst(exact(model, x, "int4"), exact(model, x)) > 20 * CLOSE / 2


CHANGES = {
    "in place": lambda w: w.mul_(1.5),
    ".data": lambda w: w.data.mul_(0.5),
    "one number through NumPy": lambda w: w.numpy().__setitem__((3, 5), 9.0),
    "two rows exchanged": lambda w: w.data.copy_(torch.cat([w[1:2], w[:1], w[2:]]).clone()),
}


@pytest.mark.parametrize("change", [pytest.param(one, marks=[pytest.mark.long] if one in ("two rows exchanged", ".data") else []) for one in CHANGES])
@pytest.mark.parametrize(("form", "options"), [("fp16", {}), pytest.param("int8", {"chip": "m4"}, marks=pytest.mark.long)], ids=str)
def test_no_change_is_missed(model, x, change, form, options) -> None:
    compiled = compile_for_twin(model, frozen=form, **options)
    before = step(compiled, model, x)[0]
    with torch.no_grad():
        CHANGES[change](model.layers[1].down.weight.detach())
    found = step(compiled, model, x)
    assert worst(found, exact(model, x, form)) < CLOSE
    assert distance(found[0], before) > 2 * CLOSE
    assert COMPILED[-1].frozen.remade >= 2  # a forward's and a backward's program


@pytest.mark.long
def test_another_tensor_in_its_place_is_found(model, x) -> None:
    compiled = compile_for_twin(model, frozen="fp16")
    for _ in range(5):
        model.layers[1].down.weight.data = model.layers[1].down.weight.data * 1.5
        assert worst(step(compiled, model, x), exact(model, x)) < CLOSE


@pytest.mark.long
def test_a_loaded_checkpoint_is_found(model, x) -> None:
    compiled = compile_for_twin(model, frozen="fp16")
    step(compiled, model, x)
    model.load_state_dict({name: 1.2 * value for name, value in model.state_dict().items()})
    assert worst(step(compiled, model, x), exact(model, x)) < CLOSE


def test_what_stays_the_same_makes_nothing_anew(model, x) -> None:
    compiled = compile_for_twin(model, frozen="fp16")
    first = step(compiled, model, x)
    model.load_state_dict(copy.deepcopy(model.state_dict()))
    with torch.no_grad():
        model.layers[0].up.weight.add_(0.0)
    assert all(torch.equal(a, b) for a, b in zip(step(compiled, model, x), first, strict=True))
    assert COMPILED[-1].frozen.remade == 0


@pytest.mark.long
def test_only_the_layer_that_changed_is_made_anew(model, x) -> None:
    compiled = compile_for_twin(model, frozen="fp16")
    step(compiled, model, x)
    model.layers[2].up.weight.data.mul_(1.1)
    step(compiled, model, x)
    assert COMPILED[-1].frozen.remade == 2


def test_weights_overwritten_between_a_forward_and_its_backward_count_as_in_eager(model, x) -> None:
    def gradient(run: Callable[[torch.Tensor], torch.Tensor], parameters: Blocks, x: torch.Tensor) -> torch.Tensor:
        x.grad = None
        y = run(x)
        parameters.layers[2].down.weight.data.mul_(2.0)
        y.sum().backward()
        parameters.layers[2].down.weight.data.mul_(0.5)
        return x.grad

    compiled, double = compile_for_twin(model, frozen="fp16"), copy.deepcopy(model).double()
    for _ in range(2):
        assert distance(gradient(compiled, model, x).double(), gradient(double, double, x.detach().double().requires_grad_())) < CLOSE


def test_a_weight_that_is_written_in_place_before_the_backward_raises_as_in_eager(model, x) -> None:
    y = compile_for_twin(model, frozen="fp16")(x)
    with torch.no_grad():
        model.layers[2].down.weight.mul_(2.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


@pytest.mark.long
def test_a_weight_that_changes_in_every_step_is_told(model, x) -> None:
    compiled = compile_for_twin(model, frozen="fp16")
    with pytest.warns(TorchaneWarning, match=r"layers\.1\.up\.weight wants no gradient and is a constant.* have changed 4 times.*frozen.*inputs"):
        for _ in range(5):
            model.layers[1].up.weight.data.mul_(0.99)
            step(compiled, model, x)


@pytest.mark.long
def test_a_weight_that_is_trained_again_gets_its_gradient(model, x) -> None:
    compiled = compile_for_twin(model, frozen="fp16")
    step(compiled, model, x)
    model.layers[1].up.weight.requires_grad_(True)
    found = step(compiled, model, x)
    assert model.layers[1].up.weight.grad is not None
    assert worst(found, exact(model, x)) < CLOSE


@pytest.mark.long
def test_two_models_of_one_class_share_a_graph_and_not_their_constants(model, x) -> None:
    other = copy.deepcopy(model)
    other.layers[0].up.weight.data.mul_(3.0)
    compiled = [(compile_for_twin(one, frozen="fp16"), one) for one in (model, other)]
    for _ in range(3):
        for run, parameters in compiled:
            assert worst(step(run, parameters, x), exact(parameters, x)) < CLOSE
    assert COMPILED[-1].frozen.remade == 0


def test_layers_that_differ_in_their_constants_share_all_else(x) -> None:
    torch.manual_seed(0)
    model = Blocks(6)
    step(compile_for_twin(model, frozen="fp16", cache="off"), model, x)
    for plan in COMPILED[-1].plans.values():
        assert len(plan.programs) == 2 and len({(one.program, one.constants) for one in plan.dispatches}) == 6


@pytest.mark.long
def test_without_the_option_weights_are_inputs(model, x) -> None:
    found = step(compile_for_twin(model), model, x)
    assert not any(spec.constants for plan in COMPILED[-1].plans.values() for spec in plan.programs)
    assert worst(found, exact(model, x)) < CLOSE


def test_products_with_constants_are_convolutions(model, x) -> None:
    step(compile_for_twin(model, frozen="fp16"), model, x)
    counts = COMPILED[-1].plans["forward"].op_counts()
    assert counts["conv"] == 6 and counts["matmul"] == 6  # two frozen and two trained products in each of three layers


def test_another_process_finds_the_program_and_not_its_weights(model, x, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("TORCHANE_CACHE", str(tmp_path))
    step(compile_for_twin(model, frozen="fp16"), model, x)
    torch._dynamo.reset()
    with torch.no_grad():
        for layer in model.layers:
            layer.up.weight.mul_(1.3)
    found = step(compile_for_twin(model, frozen="fp16"), model, x)
    assert all("kept on disk" not in str(one) for one in found)
    assert COMPILED[-1].plans["forward"].programs[0].passes == ()  # it came from the disk
    assert worst(found, exact(model, x)) < CLOSE


@pytest.mark.long
def test_a_program_of_inputs_is_not_taken_for_one_of_constants(model, x, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("TORCHANE_CACHE", str(tmp_path))
    for form in ("inputs", "fp16", "inputs"):
        torch._dynamo.reset()
        assert worst(step(compile_for_twin(model, frozen=form), model, x), exact(model, x)) < CLOSE
        assert any(spec.constants for spec in COMPILED[-1].plans["forward"].programs) == (form == "fp16")


@pytest.mark.parametrize("tied", [pytest.param(False, marks=pytest.mark.long), True])
def test_a_language_model_with_frozen_layers_and_a_frozen_table(tied) -> None:
    torch.manual_seed(0)
    model = build_model(LlamaConfig(**SMALL, tie_word_embeddings=tied))
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("layers.1" in name)
    x, double = tokens(), copy.deepcopy(model).double()
    compiled = compile_for_twin(model, frozen="int8", chip="m4")
    if not tied:
        double.lm_head.weight.data = torch.from_numpy(dequantised(model.lm_head.weight.detach().numpy(), "int8")).double()
    for name, parameter in model.named_parameters():
        if "layers.0" in name and parameter.dim() == 2:
            double.get_parameter(name).data = torch.from_numpy(dequantised(parameter.detach().numpy(), "int8")).double()
    losses = [loss_of(compiled, x), loss_of(double, x)]
    for loss in losses:
        loss.backward()
    assert losses[0].item() == pytest.approx(losses[1].item(), rel=1e-3)
    for name, parameter in model.named_parameters():
        assert (parameter.grad is None) == (double.get_parameter(name).grad is None), name
        if parameter.grad is not None:
            assert distance(parameter.grad.double(), double.get_parameter(name).grad) < 1e-2, name


@pytest.mark.parametrize("form", ["int8", "int4"])
def test_few_bits_are_refused_where_no_report_says_that_they_are_taken(model, x, form) -> None:
    with pytest.raises(Exception, match=rf"{form}.*is not known to take {form} constants.*Known to: .*m5") as caught:
        compile_for_twin(model, frozen=form)(x)
    assert isinstance(caught.value.inner_exception, UsageError)


def test_float32_takes_over_with_the_numbers_that_programs_have(model, x) -> None:
    compiled = compile_for_twin(model, frozen="int4", chip="m5")
    step(compiled, model, x)
    with torch.no_grad():
        x.data[0, 0, 0] = 1e6  # beyond fp16: PyTorch computes this step
    with pytest.warns(TorchaneWarning, match="above fp16's 65504"):
        found = step(compiled, model, x)
    assert worst(found, exact(model, x, "int4")) < 1e-4


@pytest.mark.parametrize("number", [float("inf"), *(pytest.param(one, marks=pytest.mark.long) for one in (float("nan"), 1e6, 1e-9))])
def test_a_weight_that_fp16_does_not_hold_is_found_each_time(model, x, number) -> None:
    with torch.no_grad():
        model.layers[1].down.bias.fill_(number)
    compiled = compile_for_twin(model, frozen="fp16")
    for _ in range(3):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", TorchaneWarning)
            found = compiled(x)
        wanted = model(x)
        assert torch.allclose(found, wanted, rtol=1e-2, atol=1e-2, equal_nan=True)


@pytest.mark.long
def test_no_observer_looks_into_a_program_whose_constants_it_has_not(model, x) -> None:
    with pytest.raises(Exception, match="cannot be looked into"):
        compile_for_twin(model, frozen="fp16", observers=[Inside(lambda *_: None)])(x)


@pytest.mark.long
def test_peft_lora_comes_out_right_by_itself() -> None:
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    base = build_model(LlamaConfig(**SMALL))
    model = peft.get_peft_model(base, peft.LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False))
    x, double = tokens(), copy.deepcopy(model).double()
    compiled = torch.compile(model, backend="ane", dynamic=False, options={"device": "twin", "frozen": "fp16"})
    for run in (compiled, double):
        loss_of(run, x).backward()
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert trained and all("lora" in name for name in trained)
    for name in trained:
        assert distance(model.get_parameter(name).grad.double(), double.get_parameter(name).grad) < 2e-2, name
    assert sum(len(spec.constants) for spec in COMPILED[-1].plans["forward"].programs) > 0


def test_weights_that_have_no_form_as_constants_stay_inputs_and_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    lower = passes.lower

    def without_constants(*args: Any, **more: Any) -> Any:
        if more.get("frozen") is not None:
            raise CompileError("no form")
        return lower(*args, **more)

    monkeypatch.setattr(passes, "lower", without_constants)
    model = nn.Linear(64, 32, bias=False).requires_grad_(False)
    x = torch.randn(4, 64, generator=torch.Generator().manual_seed(0))
    compiled = torch.compile(model, backend="ane", options={"device": "twin", "frozen": "fp16", "cache": "off"})
    with pytest.warns(TorchaneWarning, match=r"its 1 frozen weights stay inputs of its program.*as constants they have no form"):
        got = compiled(x)
    torch.testing.assert_close(got, model(x), rtol=1e-2, atol=1e-2)


def test_weights_staged_for_each_use_have_the_bits_of_those_that_stay(model: Blocks, x: torch.Tensor) -> None:
    """And no surface of their own: what is held belongs to trained weights."""
    found, held = [], []
    for form in ("inputs", "reused"):
        torch._dynamo.reset()
        compiled = compile_for_twin(model, frozen=form)
        found.append([value.clone() for value in step(compiled, model, x)])
        held.append(len(COMPILED[-1].weights.held))
    assert all(map(torch.equal, *found))
    assert held[1] == 2 * 3 < held[0]


class Positions(nn.Module):
    """A frozen table, of which the first rows are added to what a trained layer makes."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(256, 64), requires_grad=False)
        self.layer = nn.Linear(64, 64)
        self.fixed = nn.Linear(64, 64, bias=False).requires_grad_(False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fixed(self.layer(x) + self.table[: x.shape[1]])


def test_a_part_of_a_frozen_table_is_read() -> None:
    torch.manual_seed(0)
    model, x = Positions(), torch.randn(2, 32, 64)
    ours = compile_for_twin(copy.deepcopy(model), frozen="fp16", chip="m4")(x)
    assert distance(ours, model(x)) < CLOSE
