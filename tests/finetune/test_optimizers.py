"""Schedules give mlx's numbers, by its formulas written out; optimizers are torch's, and what they do not take is refused."""

import math

import pytest
import torch

from torchane.errors import UsageError
from torchane.finetune.optimizers import make_optimizer, make_schedule


def params():
    return [torch.nn.Parameter(torch.ones(4, 4))]


@pytest.mark.parametrize(
    ("config", "rates"),
    [
        (None, {0: 0.5, 99: 0.5}),
        ({"name": "cosine_decay", "arguments": [1.0, 10]}, {0: 1.0, 5: 0.5, 10: 0.0, 50: 0.0}),
        ({"name": "cosine_decay", "arguments": [1.0, 10, 0.2]}, {0: 1.0, 5: 0.6, 10: 0.2}),
        ({"name": "linear_schedule", "arguments": [1.0, 0.0, 4]}, {0: 1.0, 1: 0.75, 4: 0.0, 9: 0.0}),
        ({"name": "exponential_decay", "arguments": [1.0, 0.5]}, {0: 1.0, 3: 0.125}),
        ({"name": "step_decay", "arguments": [1.0, 0.5, 10]}, {0: 1.0, 9: 1.0, 10: 0.5, 25: 0.25}),
        ({"name": "linear_schedule", "arguments": [1.0, 0.0, 4], "warmup": 2, "warmup_init": 0.2}, {0: 0.2, 1: 0.6, 2: 1.0, 3: 1.0, 4: 0.75, 7: 0.0}),
    ],
)
def test_a_schedule_gives_the_rates_of_mlx(config, rates):
    schedule = make_schedule(config, 0.5)
    assert all(math.isclose(schedule(update), rate, abs_tol=1e-12) for update, rate in rates.items())


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"name": "cosine"}, "takes name, arguments, warmup and warmup_init"),
        ({"name": "cosine", "arguments": [1, 2]}, "unknown name 'cosine'"),
        ({"name": "cosine_decay", "arguments": [1.0]}, "cosine_decay takes init, decay_steps, end .the last may be left out.; 1 are given"),
        ({"name": "step_decay", "arguments": [1.0, "x", 3]}, "must be a list of numbers"),
        ({"name": "cosine_decay", "arguments": [1.0, 0]}, "decay_steps of cosine_decay is 0, and must be 1 or more"),
        ({"name": "cosine_decay", "arguments": [1.0, 5], "warmup": -1}, "warmup is -1"),
        ({"name": "cosine_decay", "arguments": [1.0, 5], "wamup": 1}, "takes name, arguments"),
    ],
)
def test_a_schedule_that_is_none_is_refused(config, said):
    with pytest.raises(UsageError, match=said):
        make_schedule(config, 1.0)


@pytest.mark.parametrize("name", ["adam", "adamw", "sgd", "adafactor", "muon"])
def test_every_optimizer_moves_the_weights(name):
    own = params()
    optimizer = make_optimizer(name, own, 0.1, {})
    own[0].grad = torch.arange(16.0).reshape(4, 4) + 1
    optimizer.step()
    assert type(optimizer).__name__.lower() == name and not torch.equal(own[0], torch.ones(4, 4))


def test_an_optimizers_own_numbers_reach_it():
    assert make_optimizer("adamw", params(), 0.1, {"betas": [0.8, 0.9], "weight_decay": 0.3}).defaults["betas"] == (0.8, 0.9)
    assert make_optimizer("adam", params(), 0.1, {"bias_correction": True}).defaults["eps"] == 1e-8


@pytest.mark.parametrize(
    ("name", "config", "said"),
    [
        ("adam", {"beta": 1}, "adam has no beta .did you mean betas"),
        ("adam", {"bias_correction": False}, "bias_correction false is not supported"),
        ("sgd", {"momentum": -1}, "sgd with .*Invalid momentum"),
        ("adam", {"fused": True}, "adam has no fused"),
    ],
)
def test_an_argument_that_an_optimizer_does_not_take_is_refused(name, config, said):
    with pytest.raises(UsageError, match=said):
        make_optimizer(name, params(), 0.1, config)
