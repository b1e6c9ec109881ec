"""torch's own surface around a compiled model: each feature does what it does in eager.

One small model is compiled for all; tolerances as in test_backend.
"""

import copy
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
import torch
from capture_helpers import distance, gradients
from torch import nn
from torch.utils.checkpoint import checkpoint

from torchane.capture import backend
from torchane.errors import TorchaneWarning

GRADIENT_BAR = 0.02


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.norm, self.down = nn.Linear(16, 32), nn.LayerNorm(32), nn.Linear(32, 4)
        self.drop = nn.Dropout(0.25)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(self.drop(torch.relu(self.norm(self.up(x)))))


class Checkpointed(nn.Module):
    def __init__(self, inner: nn.Module):
        super().__init__()
        self.inner = inner

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return checkpoint(self.inner, x, use_reentrant=False)


def compiled_for_twin(model: nn.Module, **kwargs: object) -> nn.Module:
    return torch.compile(model, backend=backend.ane, options={"device": "twin"}, **kwargs)


@pytest.fixture(scope="module")
def _shared() -> Iterator[SimpleNamespace]:
    torch._dynamo.reset()
    torch.manual_seed(0)
    raw = Net()
    yield SimpleNamespace(raw=raw, model=compiled_for_twin(raw), eager=copy.deepcopy(raw), start=copy.deepcopy(raw.state_dict()))
    torch._dynamo.reset()


@pytest.fixture
def net(_shared: SimpleNamespace) -> SimpleNamespace:
    for model in (_shared.raw, _shared.eager):
        model.load_state_dict(_shared.start)
        model.zero_grad()
        model.train()
        model.requires_grad_(True)
    return _shared


def batch(seed: int = 0) -> torch.Tensor:
    return torch.randn(8, 16, generator=torch.Generator().manual_seed(seed))


def both(net: SimpleNamespace, act) -> None:
    """The same act on ours and on eager, with the same random stream."""
    for model in (net.model, net.eager):
        torch.manual_seed(3)
        act(model)


def agree(net: SimpleNamespace) -> None:
    for (name, ours), theirs in zip(net.raw.named_parameters(), net.eager.parameters(), strict=True):
        assert (ours.grad is None) == (theirs.grad is None), name
        if theirs.grad is not None:
            assert distance(ours.grad, theirs.grad) < GRADIENT_BAR, name


def test_dropout_draws_eagers_stream(net) -> None:
    both(net, lambda model: model(batch()).square().mean().backward())
    agree(net)


def test_eval_turns_dropout_off(net) -> None:
    net.raw.eval()
    net.eager.eval()
    with torch.no_grad():
        assert distance(net.model(batch()), net.eager(batch())) < 0.005
        assert torch.equal(net.model(batch()), net.model(batch()))


def test_inference_mode(net) -> None:
    net.raw.eval()
    net.eager.eval()
    with torch.inference_mode():
        assert distance(net.model(batch()), net.eager(batch())) < 0.005


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_batch_norm_under_autocast_is_eagers(dtype) -> None:
    """Its input comes in 16 bits there; statistics and gradients stay in 32."""
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Linear(16, 16), nn.BatchNorm1d(16))
    ours, x = copy.deepcopy(plain), torch.randn(32, 16)
    outputs = []
    for model, forward in ((plain, plain), (ours, torch.compile(ours, backend="ane"))):
        with torch.autocast("cpu", dtype=dtype):
            outputs.append(forward(x))
        (outputs[-1].float() * x).sum().backward()
    assert outputs[0].dtype == outputs[1].dtype == dtype
    assert distance(outputs[1].float(), outputs[0].float()) < 0.02
    for one, other in zip(ours.buffers(), plain.buffers(), strict=True):
        assert torch.allclose(one.float(), other.float(), rtol=0.02, atol=1e-3)
    weights = ours[1].weight.grad, plain[1].weight.grad
    assert distance(*weights) < 0.02


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_a_mask_of_the_models_own_type_is_a_constant_of_a_program(dtype) -> None:
    """A model in bf16 makes its causal mask in bf16, which NumPy has no type for."""
    layer = nn.Linear(32, 32, bias=False).to(dtype)

    def scores(x: torch.Tensor) -> torch.Tensor:
        mask = torch.full((32, 32), torch.finfo(x.dtype).min, dtype=x.dtype).triu(1)
        return torch.softmax(layer(x) + mask, -1)

    x = torch.randn(32, 32, dtype=dtype)
    ours = torch.compile(scores, backend="ane")(x)
    assert ours.dtype == dtype and distance(ours.float(), scores(x.float().to(dtype)).float()) < 0.02


def test_autocast_keeps_its_promised_dtype(net) -> None:
    def act(model: nn.Module) -> None:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y = model(batch())
        assert y.dtype == torch.bfloat16
        y.float().square().mean().backward()

    both(net, act)
    for (name, ours), theirs in zip(gradients(net.raw).items(), gradients(net.eager).values(), strict=True):
        assert distance(ours, theirs) < 0.1, name  # eager itself rounds to bf16 here, 2^-8 a step


def test_frozen_parameters_get_no_gradient_and_thaw(net) -> None:
    for model in (net.raw, net.eager):
        model.up.requires_grad_(False)
    both(net, lambda model: model(batch()).square().mean().backward())
    agree(net)
    assert net.raw.up.weight.grad is None
    for model in (net.raw, net.eager):
        model.requires_grad_(True)
    both(net, lambda model: model(batch()).square().mean().backward())
    assert net.raw.up.weight.grad is not None


def test_gradients_of_the_input(net) -> None:
    found = []
    both(net, lambda model: found.append(torch.autograd.grad(model(x := batch().requires_grad_()).square().mean(), x)[0]))
    assert distance(*found) < GRADIENT_BAR


def test_retain_graph(net) -> None:
    def act(model: nn.Module) -> None:
        loss = model(batch()).square().mean()
        loss.backward(retain_graph=True)
        loss.backward()

    both(net, act)
    agree(net)


def test_accumulated_and_clipped_gradients(net) -> None:
    def act(model: nn.Module) -> None:
        for seed in range(3):
            (model(batch(seed)).square().mean() / 3).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.1)

    both(net, act)
    agree(net)


def test_hooks_on_parameters_and_outputs(net) -> None:
    def act(model: nn.Module) -> None:
        handles = [parameter.register_hook(lambda grad: 2 * grad) for parameter in model.parameters()]
        y = model(batch())
        y.register_hook(lambda grad: 3 * grad)
        y.square().mean().backward()
        for handle in handles:
            handle.remove()

    both(net, act)
    agree(net)


def test_forward_hooks_on_a_submodule_are_traced(net) -> None:
    def act(model: nn.Module) -> None:
        inner = getattr(model, "_orig_mod", model)
        handle = inner.up.register_forward_hook(lambda module, args, y: 2 * y)
        model(batch()).square().mean().backward()
        handle.remove()

    both(net, act)
    agree(net)


def test_grad_scaler_finds_true_gradients(net) -> None:
    def act(model: nn.Module) -> None:
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
        scaler.scale(model(batch()).square().mean()).backward()
        scaler.unscale_(optimizer)
        scaler.step(optimizer)

    both(net, act)
    agree(net)


def test_state_dict_has_torchs_keys(net) -> None:
    assert [f"_orig_mod.{name}" for name in net.eager.state_dict()] == list(net.model.state_dict())
    assert list(net.raw.state_dict()) == list(net.eager.state_dict())


@pytest.mark.parametrize(
    "make",
    [
        lambda ps: torch.optim.SGD(ps, lr=0.1, momentum=0.9),
        lambda ps: torch.optim.Adam(ps, lr=0.01),
        lambda ps: torch.optim.AdamW(ps, lr=0.01, fused=True),
        lambda ps: torch.optim.AdamW(ps, lr=0.01, foreach=True),
        lambda ps: torch.optim.Adagrad(ps, lr=0.05),
        lambda ps: torch.optim.Adafactor(ps, lr=0.01),
    ],
    ids=["sgd", "adam", "adamw fused", "adamw foreach", "adagrad", "adafactor"],
)
def test_stock_optimizers(net, make) -> None:
    losses = {}

    def act(model: nn.Module) -> None:
        decayed, plain = [p for p in model.parameters() if p.dim() > 1], [p for p in model.parameters() if p.dim() == 1]
        optimizer = make([{"params": decayed, "weight_decay": 0.1}, {"params": plain, "weight_decay": 0.0}])
        losses[model] = []
        for _ in range(4):
            optimizer.zero_grad()
            loss = (model(batch()) - 1).square().mean()
            loss.backward()
            optimizer.step()
            losses[model].append(loss.item())

    both(net, act)
    assert losses[net.model] == pytest.approx(losses[net.eager], rel=0.02)
    assert losses[net.model][-1] < losses[net.model][0]


def test_muon_for_matrices_beside_adamw_for_the_rest(net) -> None:
    losses = {}

    def act(model: nn.Module) -> None:
        matrices, rest = [p for p in model.parameters() if p.dim() == 2], [p for p in model.parameters() if p.dim() != 2]
        optimizers = torch.optim.Muon(matrices, lr=0.02), torch.optim.AdamW(rest, lr=0.01)
        losses[model] = []
        for _ in range(3):
            loss = (model(batch()) - 1).square().mean()
            loss.backward()
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()
            losses[model].append(loss.item())

    both(net, act)
    assert losses[net.model] == pytest.approx(losses[net.eager], rel=0.02)
    assert losses[net.model][-1] < losses[net.model][0]


def test_checkpointing_inside_the_compiled_module(net) -> None:
    inner, eager = copy.deepcopy(net.raw), net.eager
    wrapped = compiled_for_twin(Checkpointed(inner))
    for model in (wrapped, eager):
        torch.manual_seed(3)
        model(batch()).square().mean().backward()
    for (name, ours), theirs in zip(gradients(inner).items(), gradients(eager).values(), strict=True):
        assert distance(ours, theirs) < GRADIENT_BAR, name


def test_checkpointing_around_the_compiled_module(net) -> None:
    def act(model: nn.Module) -> None:
        checkpoint(model, batch().requires_grad_(), use_reentrant=False).square().mean().backward()

    both(net, act)
    agree(net)


@pytest.mark.parametrize("mode", [None, "default"])
def test_fullgraph_and_the_default_mode_are_taken(net, mode: str | None) -> None:
    model = torch.compile(copy.deepcopy(net.raw).eval(), backend=backend.ane, mode=mode, fullgraph=True)
    net.eager.eval()
    with torch.no_grad():
        assert distance(model(batch()), net.eager(batch())) < 0.005


@pytest.mark.parametrize("mode", ["reduce-overhead", "max-autotune"])
def test_a_mode_of_torchs_own_compiler_is_said_to_change_nothing(net, mode: str) -> None:
    model = torch.compile(copy.deepcopy(net.raw), backend=backend.ane, mode=mode)
    with pytest.warns(TorchaneWarning, match=f"mode='{mode}' tunes PyTorch's own compiler and changes nothing"), torch.no_grad():
        model(batch())


def test_an_unknown_mode_is_refused_with_the_known(net) -> None:
    model = torch.compile(copy.deepcopy(net.raw), backend=backend.ane, mode="fastest")
    with pytest.raises(Exception, match="UsageError: torch.compile has no mode 'fastest'. Its modes are default"):
        model(batch())


def _functional(model: nn.Module) -> None:
    inner = getattr(model, "_orig_mod", model)
    halved = {name: (0.5 * value).detach().requires_grad_() for name, value in inner.named_parameters()}
    prefix = "" if inner is model else "_orig_mod."
    y = torch.func.functional_call(model, {prefix + name: value for name, value in halved.items()}, (batch(),))
    y.square().mean().backward()
    for name, parameter in inner.named_parameters():
        parameter.grad = halved[name].grad


def test_functional_call_uses_the_weights_it_is_given(net) -> None:
    both(net, _functional)
    agree(net)


def test_gradient_of_the_loss_in_the_parameters_alone(net) -> None:
    found = []
    both(net, lambda model: found.append(torch.autograd.grad(model(batch()).square().mean(), list(model.parameters()))))
    for ours, theirs in zip(*found, strict=True):
        assert distance(ours, theirs) < GRADIENT_BAR
    assert all(parameter.grad is None for parameter in net.raw.parameters())


def test_moving_averages_of_the_weights(net) -> None:
    def act(model: nn.Module) -> None:
        inner = getattr(model, "_orig_mod", model)
        averaged = torch.optim.swa_utils.AveragedModel(inner, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.5))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for seed in range(2):
            optimizer.zero_grad()
            model(batch(seed)).square().mean().backward()
            optimizer.step()
            averaged.update_parameters(inner)
        inner.load_state_dict(averaged.module.state_dict())
        optimizer.zero_grad()
        model(batch()).square().mean().backward()

    both(net, act)
    agree(net)


def test_a_schedule_of_learning_rates(net) -> None:
    def act(model: nn.Module) -> None:
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=4)
        for seed in range(3):
            optimizer.zero_grad()
            model(batch(seed)).square().mean().backward()
            optimizer.step()
            schedule.step()

    both(net, act)
    for ours, theirs in zip(net.raw.parameters(), net.eager.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0.01, atol=2e-3)


def test_reentrant_checkpointing_around_the_compiled_module(net) -> None:
    both(net, lambda model: checkpoint(model, batch().requires_grad_(), use_reentrant=True).square().mean().backward())
    agree(net)


def test_a_compiled_module_is_copied_with_weights_of_its_own(net) -> None:
    model = compiled_for_twin(copy.deepcopy(net.raw).eval())
    with torch.no_grad():
        before = model(batch())
        twin = copy.deepcopy(model)
        for parameter in twin.parameters():
            parameter.mul_(0.5)
        assert torch.equal(model(batch()), before)
        assert distance(twin(batch()), before) > 0.1


def test_threads_may_run_a_compiled_model_at_once(net) -> None:
    net.raw.eval()
    with torch.no_grad():
        expected = [net.model(batch(seed)) for seed in range(4)]

    def run(seed: int) -> bool:
        with torch.no_grad():
            return all(torch.equal(net.model(batch(seed)), expected[seed]) for _ in range(20))

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(run, range(4)))
