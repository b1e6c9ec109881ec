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
#: Forms that constants were fitted to; all others are "form" outside the data.
FORM_GROUPS = {"known": ("conv", "linear")}


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
