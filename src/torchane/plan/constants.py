"""The fitted constants of the cost model, and which of them price a machine.

    load_fitted()            what scripts/fit_cost_model.py wrote (fitted.toml)
    engine_for("m3max")      its constants, and what is outside the data about it
    read_measurements(path)  what `torchane doctor` measured on a machine, which takes the fitted ones' place
"""

import json
import math
import tomllib
from dataclasses import dataclass, field, fields, replace
from functools import cache
from importlib import resources
from pathlib import Path

from torchane.chips.points import machine, machines
from torchane.errors import UsageError
from torchane.plan.cost import Engine, Globals

#: Whose constants price a machine: those of its generation, unless it has published figures of its own.
ENGINE_OF = {name: name if name in ("m4max", "m5max") else name[:2] for name in machines()}
#: Machines with figures among the fitted ones.
SEEN = frozenset({"m1", "m1max", "m2max", "m3pro", "m4", "m4max", "m5", "m5max", "m6"})
#: Whose fitted figures were all taken through e5rt, none in memory.
ONLY_THROUGH_E5RT = frozenset({"m1", "m2", "m6"})
#: Forms that constants were fitted to; all others are outside the data.
KNOWN_FORMS = frozenset({"conv", "linear"})


@dataclass(frozen=True)
class Errors:
    """published / predicted of a group of held-out points: the 10th and the 90th percentile."""

    points: int
    low: float
    high: float
    median_error: float
    beyond_two: int


@dataclass(frozen=True)
class Fitted:
    """Everything in fitted.toml but the residuals."""

    shared: Globals
    engines: dict[str, Engine]
    errors: dict[str, Errors] = field(default_factory=dict)


@cache
def load_fitted() -> Fitted:
    data = tomllib.loads((resources.files("torchane.plan") / "fitted.toml").read_text(encoding="utf-8"))
    return Fitted(
        Globals(**data["shared"]),
        {name: Engine(**values) for name, values in data["engines"].items()},
        {name: Errors(**values) for name, values in data["errors"].items()},
    )


@dataclass(frozen=True)
class Measured:
    """What was measured on one machine; what is None stays as fitted. error: measured / predicted, (low, high)."""

    machine: str
    macos: str
    dispatch_s: float | None = None
    surface_bytes_per_s: float | None = None
    weight_bytes_per_s: float | None = None
    error: tuple[float, float] | None = None


#: Of the record that `torchane doctor` writes (docs/cost-model.md has its fields).
RECORD_FORMAT, RECORD_VERSION = "torchane measurements", 1


def read_measurements(path: Path) -> Measured:
    """The record of one machine, a JSON object. Raises UsageError that names the file and the field that is wrong."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"{path}: this is no record of measurements: {error}.") from error
    if not isinstance(data, dict) or data.get("format") != RECORD_FORMAT:
        raise UsageError(f'{path}: this is no record of measurements; one is a JSON object with "format": "{RECORD_FORMAT}".')
    if data.get("version") != RECORD_VERSION:
        raise UsageError(f"{path}: its version is {data.get('version')!r}, and this torchane reads {RECORD_VERSION}.")
    if not isinstance(data.get("machine"), str):
        raise UsageError(f"{path}: machine is {data.get('machine')!r}, and must be a name such as \"m4max\".")
    machine(data["machine"])
    known = {item.name for item in fields(Measured)} | {"format", "version"}
    if extra := sorted(set(data) - known):
        raise UsageError(f"{path}: unknown fields {', '.join(extra)}; there are {', '.join(sorted(known))}.")
    rates = {name: _positive(path, name, data.get(name)) for name in ("dispatch_s", "surface_bytes_per_s", "weight_bytes_per_s")}
    error = data.get("error")
    if error is not None:
        if not isinstance(error, list) or len(error) != 2:
            raise UsageError(f"{path}: error is {error!r}, and must be two numbers, the lowest and highest measured / predicted.")
        low, high = (_positive(path, "error", value) for value in error)
        if low is None or high is None or low > high:
            raise UsageError(f"{path}: error is {error!r}, and must be two numbers, the lowest first.")
        error = (low, high)
    return Measured(data["machine"], str(data.get("macos", "")), **rates, error=error)


def _positive(path: Path, name: str, value: object) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not (0 < value < math.inf):
        raise UsageError(f"{path}: {name} is {value!r}, and must be a number above 0.")
    return float(value)


@dataclass(frozen=True)
class Pricing:
    """The constants of one machine, and what is outside the data about it ("" if nothing)."""

    name: str
    engine: Engine
    shared: Globals
    unseen: str
    measured: Measured | None = None


def pricing_for(name: str, measured: Measured | None = None) -> Pricing:
    """Raises UsageError for a machine without a clock, and for a record of another machine."""
    machine(name)
    fitted = load_fitted()
    engine = fitted.engines[ENGINE_OF[name]]
    unseen = "" if name in SEEN else f"no published figure of {name} was fitted: priced as {ENGINE_OF[name]}"
    if measured is None:
        return Pricing(name, engine, fitted.shared, unseen)
    if measured.machine != name:
        raise UsageError(f"the record is of {measured.machine}, and --chip says {name}. Take --chip {measured.machine}.")
    given = {key: value for key in vars(engine) if (value := getattr(measured, key)) is not None}
    return Pricing(name, replace(engine, **given), fitted.shared, "" if len(given) == len(vars(engine)) else unseen, measured)


def pricing_if_known(name: str) -> Pricing | None:
    """None for a chip that stands for no machine (`portable`)."""
    return pricing_for(name) if name in machines() else None


def interval(pricing: Pricing, unseen_form: bool) -> tuple[float, float]:
    """(low, high) to multiply a prediction with: the 10th and 90th percentile of published / predicted on held-out points of
    known chips and forms, widened by those of unseen chips and of unseen forms where that is the case."""
    errors = load_fitted().errors
    if pricing.measured is not None and pricing.measured.error is not None:
        low, high = pricing.measured.error
    else:
        low, high = errors["known"].low, errors["known"].high
        if pricing.unseen:
            low, high = min(low, errors["chip"].low), max(high, errors["chip"].high)
    if unseen_form:  # in logs: two doubts that have nothing to do with each other
        low = math.exp(-math.hypot(math.log(low), math.log(errors["form"].low)))
        high = math.exp(math.hypot(math.log(high), math.log(errors["form"].high)))
    return low, high
