"""`torch.compile(model, backend="ane")` on the twin, compared with PyTorch eager in fp32.

Tolerances: a gradient passes about 50 fp16 roundings of 2^-11; 2 % of its norm is the bar for training.
"""

import copy
from collections import Counter

import pytest
import torch
from capture_helpers import compile_for_twin, distance, gradients, loss_of, tokens
from torch import nn

from torchane import chips, mil, native
from torchane.capture import backend

GRADIENT_BAR = 0.02
OUTPUT_BAR = 0.005


def test_loss_and_every_gradient_agree_with_eager(llama) -> None:
    model, eager = llama.model, llama.eager
    loss, expected = loss_of(model, tokens()), loss_of(eager, tokens())
    loss.backward()
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-3)
    for (name, ours), theirs in zip(gradients(llama.raw).items(), gradients(eager).values(), strict=True):
        assert distance(ours, theirs) < GRADIENT_BAR, name


def test_only_embedding_and_tables_run_on_the_host(llama) -> None:
    model = llama.model
    loss_of(model, tokens()).backward()
    plans = backend.COMPILED[-1].plans
    assert {name for name, _ in plans["forward"].host_ops} <= {"aten.embedding.default", "aten.slice.Tensor"}
    backward = {name for name, _ in plans["backward"].host_ops}
    # add: the head and the embedding share a weight, and their gradients meet behind the last program
    assert backward <= {"aten.embedding_dense_backward.default", "aten.slice.Tensor", "aten.add.Tensor"}


def test_the_device_executes_what_the_plans_say(llama) -> None:
    model = llama.model
    loss_of(model, tokens()).backward()  # compiles
    found = backend.COMPILED[-1]
    before = Counter(found.device.executed)
    loss_of(model, tokens(seed=1)).backward()
    executed = Counter(found.device.executed)
    executed.subtract(before)
    planned = found.plans["forward"].op_counts() + found.plans["backward"].op_counts()
    assert +executed == planned
    assert planned["matmul"] >= 3 * (7 * 2 + 1)  # forward, dx and dW of 7 linears in 2 layers and the head


def test_layers_of_equal_structure_share_one_program(fresh_llama) -> None:
    model = compile_for_twin(fresh_llama(num_hidden_layers=6))
    loss_of(model, tokens()).backward()
    for plan in backend.COMPILED[-1].plans.values():
        assert len(plan.dispatches) == 7
        assert len(plan.programs) <= 5  # first and last layers see other neighbours


def test_every_program_is_legal_as_parsed_back_from_its_dump(fresh_llama, tmp_path) -> None:
    model = compile_for_twin(fresh_llama(), dump=str(tmp_path))
    loss_of(model, tokens()).backward()
    texts = sorted(tmp_path.rglob("*.mil"))
    assert len(texts) == sum(len(plan.programs) for plan in backend.COMPILED[-1].plans.values())
    for text in texts:
        program = mil.load(text)
        mil.check(program)
        chips.require_legal(program, chips.load("portable"))


def _fused(model: nn.Module) -> None:
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    torch.optim.AdamW(model.parameters(), lr=0.01, fused=True).step()


def _foreach(model: nn.Module) -> None:
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    torch.optim.AdamW(model.parameters(), lr=0.01, foreach=True).step()


def _data(model: nn.Module) -> None:
    for parameter in model.parameters():
        parameter.data.mul_(0.7)


def _numpy(model: nn.Module) -> None:
    for parameter in model.parameters():
        parameter.detach().numpy()[...] *= 0.7


def _load(model: nn.Module) -> None:
    model.load_state_dict({name: 0.7 * value for name, value in model.state_dict().items()})


def _swap(model: nn.Module) -> None:
    for parameter in model.parameters():
        parameter.data = 0.7 * parameter.data.clone()


@pytest.mark.parametrize("change", [_fused, _foreach, _data, _numpy, _load, _swap])
def test_a_forward_sees_weights_however_they_were_changed(llama, change) -> None:
    model, eager = llama.model, llama.eager
    before = model(tokens()).detach()
    change(llama.raw)
    change(eager)
    after = model(tokens()).detach()
    assert distance(after, eager(tokens()).detach()) < OUTPUT_BAR
    assert distance(after, before) > 10 * OUTPUT_BAR


class ReadLate(nn.Module):
    """PyTorch multiplies by w in the forward, behind a look-up; in the backward a program does."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(32, 32), nn.Linear(32, 32)
        self.w = nn.Parameter(torch.randn(32))

    def forward(self, x: torch.Tensor, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.a(x)[rows] * self.w, torch.tanh(self.b(x))


class ReadLateAlone(nn.Module):
    """No program of the forward reads a weight."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(32))

    def forward(self, x: torch.Tensor, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        mixed = torch.tanh(x @ x.t())
        return mixed[rows], (mixed @ x)[rows] * self.w


@pytest.mark.parametrize("make", [ReadLate, ReadLateAlone])
def test_a_weight_that_only_the_backward_stages_is_staged_at_every_step(make) -> None:
    torch._dynamo.reset()
    torch.manual_seed(0)
    model = make()
    eager = copy.deepcopy(model)
    compiled = compile_for_twin(model)
    x, rows = torch.randn(16, 32).requires_grad_(), torch.randint(0, 16, (16,))
    for _ in range(3):
        found = []
        for forward, owner in ((compiled, model), (eager, eager)):
            owner.zero_grad()
            x.grad = None
            owner.w.data.mul_(2)
            first, second = forward(x, rows)
            (first.sum() + second.square().sum()).backward()
            found.append({**gradients(owner), "x": x.grad.clone()})
        assert max(distance(found[0][name], found[1][name]) for name in found[1]) < GRADIENT_BAR


def test_a_backward_uses_the_weights_of_its_own_forward(llama) -> None:
    model, eager = llama.model, llama.eager
    with torch.no_grad():  # a copy with other weights takes a turn between forward and backward
        other = [parameter * 1.5 for parameter in llama.raw.parameters()]
    loss = loss_of(model, tokens())
    saved = [parameter.data for parameter in llama.raw.parameters()]
    for parameter, value in zip(llama.raw.parameters(), other, strict=True):
        parameter.data = value
    loss_of(model, tokens(seed=3))
    for parameter, value in zip(llama.raw.parameters(), saved, strict=True):
        parameter.data = value
    loss.backward()
    loss_of(eager, tokens()).backward()
    for (name, ours), theirs in zip(gradients(llama.raw).items(), gradients(eager).values(), strict=True):
        assert distance(ours, theirs) < GRADIENT_BAR, name


def test_two_forwards_may_wait_for_their_backwards(llama) -> None:
    model, eager = llama.model, llama.eager
    for current in (model, eager):
        first, second = loss_of(current, tokens(seed=1)), loss_of(current, tokens(seed=2))
        first.backward()
        second.backward()
    for (name, ours), theirs in zip(gradients(llama.raw).items(), gradients(eager).values(), strict=True):
        assert distance(ours, theirs) < GRADIENT_BAR, name


def test_a_retained_graph_gives_the_same_gradients_again(llama) -> None:
    model = llama.model
    loss = loss_of(model, tokens())
    loss.backward(retain_graph=True)
    first = gradients(llama.raw)
    model.zero_grad()
    loss.backward()
    for name, again in gradients(llama.raw).items():
        assert torch.equal(first[name], again), name


def test_saved_values_may_be_moved_by_hooks(llama) -> None:
    model = llama.model
    loss_of(model, tokens()).backward()
    expected = gradients(llama.raw)
    model.zero_grad()
    with torch.autograd.graph.saved_tensors_hooks(lambda saved: saved.clone(), lambda packed: packed.clone()):
        loss = loss_of(model, tokens())
    loss.backward()
    for name, ours in gradients(llama.raw).items():
        assert torch.equal(ours, expected[name]), name


@pytest.mark.parametrize("factor", [2.0**-20, 2.0**20])
def test_gradients_follow_a_scaled_loss_exactly(llama, factor: float) -> None:
    model = llama.model
    loss_of(model, tokens()).backward()
    plain = gradients(llama.raw)
    model.zero_grad()
    (loss_of(model, tokens()) * factor).backward()
    for name, scaled in gradients(llama.raw).items():
        if name != "model.embed_tokens.weight":  # its gradient is summed in fp32 on the host, scaled or not
            assert torch.equal(plain[name] * factor, scaled), name


def test_an_overflow_inside_the_backward_is_retried_and_the_step_kept(llama) -> None:
    model, eager = llama.model, llama.eager
    loss_of(model, tokens()).backward()
    model.zero_grad()
    state = backend.COMPILED[-1].loss_scale
    state.target = 40  # far beyond fp16
    loss_of(model, tokens()).backward()
    loss_of(eager, tokens()).backward()
    assert state.retries > 0
    for (name, ours), theirs in zip(gradients(llama.raw).items(), gradients(eager).values(), strict=True):
        assert distance(ours, theirs) < GRADIENT_BAR, name


def test_any_number_of_threads_gives_the_same_bits(llama) -> None:
    model = llama.model
    threads = native.get_threads()
    found = []
    try:
        for count in (1, 2, 3):
            native.set_threads(count)
            model.zero_grad()
            loss = loss_of(model, tokens())
            loss.backward()
            found.append((loss.detach().clone(), gradients(llama.raw)))
    finally:
        native.set_threads(threads)
    for loss, grads in found[1:]:
        assert torch.equal(loss, found[0][0])
        assert all(torch.equal(grads[name], found[0][1][name]) for name in grads)


def test_eval_without_gradients_agrees_and_keeps_nothing(llama) -> None:
    model, eager = llama.model, llama.eager
    with torch.no_grad():
        assert distance(model(tokens()), eager(tokens())) < OUTPUT_BAR
    assert not backend.COMPILED[-1].plans["forward"].kept


def test_surfaces_come_back_so_that_later_steps_allocate_nothing(llama) -> None:
    model = llama.model
    for _ in range(2):
        loss_of(model, tokens()).backward()
    pool = backend.COMPILED[-1].pool
    before = pool.allocated_bytes
    for _ in range(5):
        loss_of(model, tokens()).backward()
    assert pool.allocated_bytes == before


def test_a_forward_whose_result_is_dropped_gives_its_surfaces_back(llama) -> None:
    model = llama.model
    for _ in range(2):
        loss_of(model, tokens())
    pool = backend.COMPILED[-1].pool
    before = pool.allocated_bytes
    for _ in range(5):
        loss_of(model, tokens())
    assert pool.allocated_bytes == before


def test_an_unknown_option_is_named_with_the_known_ones(fresh_llama) -> None:
    model = torch.compile(fresh_llama(), backend=backend.ane, options={"devise": "twin"})
    with pytest.raises(Exception, match="unknown option devise .did you mean device[?].. Known: device, chip, dump"):
        model(tokens())


def test_double_backward_raises_torchs_own_error(llama) -> None:
    model = llama.model
    loss = loss_of(model, tokens())
    (grad,) = torch.autograd.grad(loss, [next(iter(model.parameters()))], create_graph=True)
    with pytest.raises(RuntimeError, match="torch.compile with aot_autograd does not currently support double backward"):
        grad.sum().backward()


class Stack(nn.Module):
    def __init__(self, widths: list[int], slopes: list[float]):
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Sequential(nn.Linear(16, width), nn.LeakyReLU(slope), nn.Linear(width, 16))
            for width, slope in zip(widths, slopes, strict=True)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = x + layer(x)
        return x


@pytest.mark.parametrize(
    "widths, slopes, odd",
    [([32] * 6, [0.1] * 6, None), ([32, 32, 48, 32, 32, 32], [0.1] * 6, 2), ([32] * 6, [0.1] * 3 + [0.2] + [0.1] * 2, 3)],
    ids=["equal", "one is wider", "one has another slope"],
)
def test_only_layers_of_equal_structure_share_a_program(widths, slopes, odd: int | None) -> None:
    torch._dynamo.reset()
    with torch.no_grad():
        compile_for_twin(Stack(widths, slopes))(torch.randn(4, 16))
    programs = [dispatch.program for dispatch in backend.COMPILED[-1].plans["forward"].dispatches]
    assert len(programs) == 6
    if odd is None:
        assert len(set(programs[1:5])) == 1  # the first and the last layer have other neighbours
    else:
        assert programs.count(programs[odd]) == 1
