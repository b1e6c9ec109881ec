"""AdamW that stages for the next forward: torch's state and results, and no stale weight."""

import copy
from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from test_step import CONFIG, SETTINGS, batch
from torch import nn

from torchane import native
from torchane.capture import backend
from torchane.models.llama import LlamaForCausalLM
from torchane.native import pages
from torchane.train.engine import EngineModel
from torchane.train.optimizer import StagingAdamW
from torchane.train.step import adamw, train_step

ARGUMENTS = {"lr": 1e-2, "betas": (0.9, 0.95), "eps": 1e-8}


def stepped(optimizer, params, steps=3):
    for step in range(steps):
        for number, param in enumerate(params):
            param.grad = torch.randn(param.shape, generator=torch.Generator().manual_seed(10 * step + number))
        optimizer.step()


def pair():
    params = [nn.Parameter(torch.ones(7, 5)), nn.Parameter(torch.ones(9))]
    return params, [{"params": params[:1], "weight_decay": 0.1}, {"params": params[1:], "weight_decay": 0.0}]


def test_its_state_is_torchs_and_either_goes_on_from_the_others() -> None:
    (ours, our_groups), (theirs, their_groups) = pair(), pair()
    one, other = StagingAdamW(our_groups, **ARGUMENTS), torch.optim.AdamW(their_groups, **ARGUMENTS, fused=True)
    stepped(one, ours)
    stepped(other, theirs)
    mine, its = one.state_dict(), other.state_dict()
    assert mine["param_groups"] == its["param_groups"]
    for index, state in its["state"].items():
        assert {name: (value.dtype, value.shape) for name, value in state.items()} == {
            name: (value.dtype, value.shape) for name, value in mine["state"][index].items()
        }
        assert all(torch.allclose(value, mine["state"][index][name], rtol=1e-5) for name, value in state.items())
    one.load_state_dict(copy.deepcopy(its)), other.load_state_dict(copy.deepcopy(mine))
    stepped(one, ours)
    stepped(other, theirs)
    assert all(torch.allclose(a, b, rtol=1e-5) for a, b in zip(ours, theirs, strict=True))


def test_a_parameter_without_a_gradient_stays_and_has_no_state() -> None:
    params, groups = pair()
    optimizer = StagingAdamW(groups, **ARGUMENTS)
    params[0].grad = torch.ones(7, 5)
    optimizer.step()
    assert params[1] not in optimizer.state and torch.equal(params[1], torch.ones(9))


def test_moments_that_are_made_ahead_are_those_of_an_update_that_makes_them() -> None:
    (ahead, groups), (plain, their_groups) = pair(), pair()
    one, other = StagingAdamW(groups, **ARGUMENTS), StagingAdamW(their_groups, **ARGUMENTS)
    one.begin()
    assert not one.state, "no update has been made"
    stepped(one, ahead)
    stepped(other, plain)
    assert all(torch.equal(a, b) for a, b in zip(ahead, plain, strict=True))
    for param, same in zip(ahead, plain, strict=True):
        assert all(torch.equal(value, other.state[same][name]) for name, value in one.state[param].items())


def test_what_was_made_ahead_is_gone_after_the_update_and_nothing_is_made_twice(monkeypatch) -> None:
    params, groups = pair()
    optimizer, fetched = StagingAdamW(groups, **ARGUMENTS), []
    monkeypatch.setattr(pages, "Fetching", lambda arrays: fetched.append(arrays) or nullcontext())
    monkeypatch.setattr(optimizer, "_fetching", None)
    optimizer.begin()
    optimizer.begin()
    assert [array.shape for array in fetched[0]] == [(7, 5), (7, 5), (9,), (9,)] and len(fetched) == 1
    optimizer._fetching = None
    stepped(optimizer, params, steps=1)
    assert not optimizer._to_come
    optimizer.begin()
    assert len(fetched) == 1, "every parameter has its moments"


def test_memory_of_surfaces_that_the_host_stages_in_is_fetched_before_the_moments_and_dropped_after_the_update(monkeypatch) -> None:
    asked, fetched, dropped = [], [], []
    whole = torch.zeros(3).numpy()
    monkeypatch.setattr(pages, "reserve", lambda size: asked.append(size) or whole)
    monkeypatch.setattr(pages, "drop_reserve", lambda: dropped.append(len(fetched)))
    real = pages.Fetching
    monkeypatch.setattr(pages, "Fetching", lambda arrays: fetched.append(arrays) or real(arrays))
    params = [nn.Parameter(torch.ones(2048, 1024)), nn.Parameter(torch.ones(9))]
    for on_host in (True, False):
        optimizer = StagingAdamW([{"params": params, "weight_decay": 0.0}], **ARGUMENTS, stages_on_host=on_host)
        optimizer.begin()
        stepped(optimizer, params, steps=1)
    assert asked == [2 * 2048 * 1024], "of the large one, in fp16"
    assert [array is whole for array in fetched[0]] == [True, False, False, False, False] and len(fetched[1]) == 4
    assert dropped == [1, 2]


def test_moments_of_a_checkpoint_take_the_place_of_those_made_ahead() -> None:
    (params, groups), (others, other_groups) = pair(), pair()
    one, other = StagingAdamW(groups, **ARGUMENTS), StagingAdamW(other_groups, **ARGUMENTS)
    stepped(other, others)
    one.begin()
    one.load_state_dict(copy.deepcopy(other.state_dict()))
    with torch.no_grad():
        for param, same in zip(params, others, strict=True):
            param.copy_(same)
    stepped(one, params, steps=1)
    stepped(other, others, steps=1)
    assert all(torch.equal(a, b) for a, b in zip(params, others, strict=True))


@pytest.fixture(scope="module")
def engine():
    model = LlamaForCausalLM(CONFIG)
    compiled = EngineModel(model, "twin")
    optimizer = adamw(model, SETTINGS, compiled)
    for _ in range(2):
        train_step(compiled, optimizer, batch(), 1.0)
    return model, compiled, optimizer


@pytest.fixture
def staged(monkeypatch):
    """How many arrays each call of stage_many is given."""
    counts, real = [], native.stage_many
    monkeypatch.setattr(native, "stage_many", lambda jobs: (counts.append(len(jobs)), real(jobs))[1])
    return counts


def forget(optimizer):
    for weights in optimizer.weights():
        weights.forget()


def is_as_staged(compiled, optimizer):
    """The next forward has the bits of one that stages every weight."""
    found = compiled(batch().tokens).detach().clone()
    forget(optimizer)
    return torch.equal(found, compiled(batch().tokens))


def test_the_next_forward_stages_no_weight_that_the_update_wrote(engine, staged) -> None:
    model, compiled, optimizer = engine
    train_step(compiled, optimizer, batch(), 1.0)  # tests begin with Dynamo reset: this one compiles
    staged.clear()
    train_step(compiled, optimizer, batch(), 1.0)
    after_update = sum(staged)
    staged.clear()
    forget(optimizer)
    train_step(compiled, optimizer, batch(), 1.0)
    looked_up = {model.model.embed_tokens.weight} - {model.lm_head.weight}  # by PyTorch
    assert sum(staged) - after_update == len(set(model.parameters()) - looked_up)


def test_logits_have_the_bits_of_a_forward_that_stages_all(engine) -> None:
    _, compiled, optimizer = engine
    train_step(compiled, optimizer, batch(), 1.0)
    assert is_as_staged(compiled, optimizer)


def test_a_weight_that_is_written_after_the_update_is_staged_anew(engine) -> None:
    model, compiled, optimizer = engine
    train_step(compiled, optimizer, batch(), 1.0)
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight.mul_(3.0)
    assert is_as_staged(compiled, optimizer)


def test_a_backward_behind_an_update_is_refused_as_in_eager_mode(engine) -> None:
    model, compiled, optimizer = engine
    train_step(compiled, optimizer, batch(), 1.0)
    waiting = compiled(batch().tokens).sum()
    weight = model.model.layers[0].mlp.up_proj.weight
    weight.grad = torch.ones_like(weight)
    optimizer.update()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        waiting.backward()


def trained(steps=4, plain=False, scale=None, config=CONFIG, **options):
    """Losses, norms and weights of a few steps; how many gradients were read in surfaces. plain: none is."""
    torch._dynamo.reset()
    torch.manual_seed(0)
    model = LlamaForCausalLM(config)
    compiled = EngineModel(model, "twin", **options)
    optimizer = adamw(model, SETTINGS, compiled)
    seen, real = [], optimizer._in_surface
    optimizer._in_surface = lambda param: (seen.append(real(param)), seen[-1])[1]
    if plain:
        optimizer.reading_surfaces = nullcontext
    found = []
    for step in range(steps):
        if scale is not None and step == 2:
            for _, one in compiled._scales:
                one.target = scale
        found.append(train_step(compiled, optimizer, batch(), 0.5))
    assert all(param.grad is None or param.grad.dtype == torch.float32 for param in model.parameters())
    return found, [param.detach().clone() for param in model.parameters()], sum(one is not None for one in seen)


@pytest.mark.parametrize("options", [{}, {"ranges": "on"}])
def test_gradients_read_in_surfaces_give_the_bits_of_those_that_are_tensors(options) -> None:
    ours, ours_params, in_surfaces = trained(**options)
    plain, plain_params, none = trained(plain=True, **options)
    assert in_surfaces and not none
    assert ours == plain and all(torch.equal(a, b) for a, b in zip(ours_params, plain_params, strict=True))


BLOCKS = replace(CONFIG, vocab_size=33_000, num_hidden_layers=1, hidden_size=32)


def test_the_gradient_of_a_tied_table_of_several_blocks_is_read_in_its_surface() -> None:
    ours, ours_params, in_surfaces = trained(config=BLOCKS)
    plain, plain_params, _ = trained(plain=True, config=BLOCKS)
    assert in_surfaces == 4 * 2 * 11, "asked twice in each of four steps, for the norm and for the update"
    assert ours == plain and all(torch.equal(a, b) for a, b in zip(ours_params, plain_params, strict=True))


def test_blocks_of_a_table_are_staged_by_the_update() -> None:
    torch._dynamo.reset()
    model = LlamaForCausalLM(BLOCKS)
    compiled = EngineModel(model, "twin")
    optimizer = adamw(model, SETTINGS, compiled)
    train_step(compiled, optimizer, batch(), 1.0)
    (weights,) = compiled.weights()
    ahead = [name for name in weights.ahead if "_rows_" in name]
    assert len(ahead) == 2
    compiled(batch().tokens)
    assert not weights.ahead and all(name in weights.held for name in ahead)
    assert is_as_staged(compiled, optimizer)


def test_a_backward_that_overflows_stages_again_what_it_had_given_back() -> None:
    """A loss scale of 2^40 holds no gradient: the backward runs again with smaller ones."""
    ours, ours_params, in_surfaces = trained(scale=40)
    plain, plain_params, _ = trained(plain=True, scale=40)
    assert in_surfaces and ours == plain and all(torch.equal(a, b) for a, b in zip(ours_params, plain_params, strict=True))


def test_the_surfaces_of_a_step_are_enough_for_the_next_one(engine) -> None:
    _, compiled, optimizer = engine
    for _ in range(2):
        train_step(compiled, optimizer, batch(), 1.0)
    pool = backend.COMPILED[-1].pool
    before = pool.allocated_bytes
    train_step(compiled, optimizer, batch(), 1.0)
    assert pool.allocated_bytes == before


def test_outside_of_our_step_gradients_are_pytorchs(engine) -> None:
    model, compiled, optimizer = engine
    train_step(compiled, optimizer, batch(), 1.0)
    compiled(batch().tokens).sum().backward()
    assert all(param.grad.dtype == torch.float32 == param.grad_dtype for param in model.parameters())


def test_a_parameter_with_a_hook_is_told_of_true_gradients(engine) -> None:
    model, compiled, optimizer = engine
    weight, seen = model.model.layers[0].mlp.up_proj.weight, []
    handle = weight.register_hook(lambda grad: seen.append(grad.dtype))
    train_step(compiled, optimizer, batch(), 1.0)
    handle.remove()
    assert seen == [torch.float32] and weight.grad is not None
