"""Which assumptions of the engine's arithmetic a chip's data file makes.

    [[arithmetic]] name = "products.overflow", value = "saturate", certainty = "conflict", source = "GDE M1"
    arithmetic_of(load("m1")) -> Settings(products=Products(overflow="saturate"), ...)

What a file does not name is as measured on the M4 and M6: the defaults of `torchane.mil.engine.Settings`.
"""

from dataclasses import fields, replace
from typing import Any

from torchane.chips.chip import Chip
from torchane.mil.engine import Settings


def arithmetic_of(chip: Chip) -> Settings:
    """The settings of this chip. Asserts that every name is a field of them."""
    settings = Settings()
    for name, assumption in chip.arithmetic.items():
        settings = _with(settings, name.split("."), assumption.value)
    return settings


def _with(settings: Any, path: list[str], value: object) -> Any:
    assert path[0] in {field.name for field in fields(settings)}, f"the arithmetic has no setting {path[0]}"
    return replace(settings, **{path[0]: value if len(path) == 1 else _with(getattr(settings, path[0]), path[1:], value)})
