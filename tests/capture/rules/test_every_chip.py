"""Every rule on every chip: what the compiler writes for the chip is settled there, and the twin has kernels for it."""

import pytest
import torch
from cases import CASES, Draw
from harness import natural_program

from torchane import chips, passes
from torchane.capture.rules import RULES, NoRule
from torchane.mil.constants import inline_constants
from torchane.runtime.twin import load_program


@pytest.mark.parametrize("name", [name for name in chips.names() if name != "portable"])
def test_what_a_rule_writes_for_a_chip_loads_on_the_twin(name: str) -> None:
    chip = chips.load(name)
    loaded = 0
    for target in RULES:
        if not all(passes.has_form(kind, chip) for kind in RULES[target].needs):
            continue
        for make in CASES[target]:
            args, kwargs = make(Draw((2, 3, 4, 2), torch.Generator().manual_seed(0)))
            try:
                natural = natural_program(target, args, kwargs)
            except NoRule:
                continue
            if natural is not None:
                load_program(inline_constants(passes.lower(natural, chip, {}).program), str(target))
                loaded += 1
    assert loaded > 150
