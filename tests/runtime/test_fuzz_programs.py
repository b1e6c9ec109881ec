"""Spoiled programs run or are refused by our errors: see fuzz_programs. Three thousand here, 160,000 in the long tier."""

import fuzz_programs
import pytest


def test_spoiled_programs_run_or_are_refused():
    ends = fuzz_programs.fuzz(3_000, seed=1)
    assert ends["ran"] > 500, ends
    assert ends["not run"] > 50, ends


@pytest.mark.long
@pytest.mark.parametrize("seed", range(100, 104))
def test_a_hundred_and_sixty_thousand_spoiled_programs(seed, evidence):
    evidence("ends", fuzz_programs.fuzz(40_000, seed))
