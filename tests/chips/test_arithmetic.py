"""A chip's data file says which assumptions of the engine's arithmetic apply."""

from dataclasses import replace

import pytest

from torchane import chips
from torchane.chips import Assumption, Certainty, arithmetic_of
from torchane.mil.engine import Settings


@pytest.mark.parametrize("name", chips.names())
def test_every_file_names_settings_that_exist_with_a_source(name):
    chip = chips.load(name)
    assert isinstance(arithmetic_of(chip), Settings)
    assert all(assumption.source for assumption in chip.arithmetic.values())


def test_a_file_that_names_nothing_means_what_the_m4_was_measured_to_do():
    assert arithmetic_of(chips.load("portable")) == Settings() == arithmetic_of(chips.load("m4"))


def test_m1_rounds_and_flushes_as_reported():
    settings = arithmetic_of(chips.load("m1"))
    assert (settings.ties, settings.products.subnormals) == ("even", "zero")


def test_an_unknown_setting_is_an_error_of_ours():
    wrong = {"products.color": Assumption("products.color", 1, Certainty.UNKNOWN, "nobody")}
    with pytest.raises(AssertionError, match="no setting color"):
        arithmetic_of(replace(chips.load(), arithmetic=wrong))
