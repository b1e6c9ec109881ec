"""torch's optimizers under mlx-lm's names, and its schedules of the learning rate.

    lr_schedule: {name: cosine_decay, arguments: [1e-5, 1000], warmup: 100}     ─► Schedule(update) -> rate

Updates are counted from 0. Source: mlx, optimizers/schedulers.py, and mlx-lm 0.32.2, tuner/utils.py (build_schedule).
"""

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from torchane.errors import UsageError, nearest, shown

Schedule = Callable[[int], float]

#: mlx's default where torch's is another: Muon decays weights a tenth as much there.
_DEFAULTS: Mapping[str, Mapping[str, Any]] = {"muon": {"weight_decay": 0.01}}
#: What torch decides itself, or what a checkpoint could not hold.
_NOT_TAKEN = ("self", "params", "lr", "foreach", "maximize", "capturable", "differentiable", "fused", "amsgrad", "decoupled_weight_decay")


def make_optimizer(name: str, params: Sequence[nn.Parameter], lr: float, config: Mapping[str, Any]) -> torch.optim.Optimizer:
    """torch's optimizer of that name. config: its own arguments. Raises UsageError for an argument that it does not take."""
    kinds = {"adam": "Adam", "adamw": "AdamW", "sgd": "SGD", "adafactor": "Adafactor", "muon": "Muon"}
    kind = getattr(torch.optim, kinds[name])
    known = [argument for argument in inspect.signature(kind.__init__).parameters if argument not in _NOT_TAKEN]
    config = dict(config)
    if name in ("adam", "adamw") and config.pop("bias_correction", True) is not True:
        raise UsageError("optimizer_config: bias_correction false is not supported: torch's Adam always corrects it.")
    for argument in config:
        if argument not in known:
            raise UsageError(f"optimizer_config: {name} has no {argument}{nearest(argument, known)}. Known: {', '.join(known)}.")
    arguments = {**_DEFAULTS.get(name, {}), **{key: tuple(value) if isinstance(value, list) else value for key, value in config.items()}}
    try:
        return kind(params, lr=lr, **arguments)  # type: ignore[no-any-return]
    except (TypeError, ValueError) as error:
        raise UsageError(f"optimizer_config: {name} with {shown(config)}: {error}.") from error


def make_schedule(config: Mapping[str, Any] | None, learning_rate: float) -> Schedule:
    """The rate of each update. config: mlx-lm's lr_schedule; None: learning_rate throughout. Raises UsageError."""
    if config is None:
        return lambda update: learning_rate
    unknown = sorted(set(config) - {"name", "arguments", "warmup", "warmup_init"})
    if unknown or "name" not in config or "arguments" not in config:
        raise UsageError(f"lr_schedule has {shown(dict(config))}, and takes name, arguments, warmup and warmup_init; the first two are needed.")
    name, arguments = config["name"], config["arguments"]
    if name not in _SCHEDULES:
        raise UsageError(f"lr_schedule: unknown name {shown(name)}{nearest(str(name), _SCHEDULES)}. Known: {', '.join(_SCHEDULES)}.")
    if not isinstance(arguments, list | tuple) or not all(_is_number(value) for value in arguments):
        raise UsageError(f"lr_schedule: arguments are {shown(arguments)}, and they must be a list of numbers, the first rate first.")
    make, wanted, least = _SCHEDULES[name]
    if not least <= len(arguments) <= len(wanted):
        raise UsageError(f"lr_schedule: {name} takes {', '.join(wanted)}{' (the last may be left out)' if least < len(wanted) else ''}; {len(arguments)} are given.")
    _check_positive(name, wanted, arguments)
    rest = make(*arguments)
    warmup, start = config.get("warmup", 0), config.get("warmup_init", 0.0)
    if not isinstance(warmup, int) or isinstance(warmup, bool) or warmup < 0 or not _is_number(start):
        raise UsageError(f"lr_schedule: warmup is {shown(warmup)} and warmup_init {shown(start)}; they are a number of updates and a rate.")
    if not warmup:
        return rest
    rise = linear(start, arguments[0], warmup)
    return lambda update: rise(update) if update <= warmup else rest(update - warmup - 1)


def linear(init: float, end: float, steps: float) -> Schedule:
    return lambda update: init + min(update, steps) * ((end - init) / steps)


def cosine(init: float, steps: float, end: float = 0.0) -> Schedule:
    return lambda update: end + 0.5 * (1.0 + math.cos(math.pi / steps * min(update, steps))) * (init - end)


def exponential(init: float, decay_rate: float) -> Schedule:
    return lambda update: init * decay_rate**update


def step_decay(init: float, decay_rate: float, step_size: float) -> Schedule:
    return lambda update: init * decay_rate ** (update // step_size)


_SCHEDULES: Mapping[str, tuple[Callable[..., Schedule], tuple[str, ...], int]] = {
    "cosine_decay": (cosine, ("init", "decay_steps", "end"), 2),
    "linear_schedule": (linear, ("init", "end", "steps"), 3),
    "exponential_decay": (exponential, ("init", "decay_rate"), 2),
    "step_decay": (step_decay, ("init", "decay_rate", "step_size"), 3),
}


def _check_positive(name: str, wanted: Sequence[str], arguments: Sequence[float]) -> None:
    for what, value in zip(wanted, arguments, strict=False):
        if value < 0 or what in ("decay_steps", "steps", "step_size") and value < 1:
            raise UsageError(f"lr_schedule: {what} of {name} is {shown(value)}, and must be {'1 or more' if 'step' in what else '0 or more'}.")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
