"""What prompts are filled up to: programs that are there are used again, within bounds."""

import pytest

from torchane.generate.sizes import Programs, positions_of, width_of


@pytest.mark.parametrize(("tokens", "width"), [(1, 32), (32, 32), (33, 64), (512, 512), (513, 1024), (1300, 1536)])
def test_widths(tokens, width):
    assert width_of(tokens) == width


@pytest.mark.parametrize(("places", "positions"), [(1, 256), (256, 256), (257, 512), (40_000, 65_536)])
def test_positions(places, positions):
    assert positions_of(places) == positions


@pytest.fixture
def after_700():
    programs = Programs()
    programs.used(1, *programs.choose(1, 700, 100))
    return programs


def test_a_longer_prompt_finds_the_program_of_its_pieces(after_700):
    assert after_700.choose(1, 1300, 100) == (1536, 2048)


def test_a_shorter_one_finds_it_with_a_larger_cache_than_it_wants(after_700):
    assert after_700.choose(1, 400, 100) == (512, 2048) and positions_of(512 + 100) == 1024


def test_one_that_would_mostly_be_fill_gets_its_own(after_700):
    assert after_700.choose(1, 20, 100) == (32, 256)


def test_another_number_of_texts_has_no_program(after_700):
    assert after_700.choose(2, 400, 100) == (512, 1024)


def test_a_last_piece_takes_the_narrowest_program_that_is_there(after_700):
    after_700.used(1, 128, 2048)
    assert after_700.width(1, 512 + 90, 2048) == 512 + 128 and after_700.width(1, 512 + 190, 2048) == 1024 and after_700.width(1, 1024, 2048) == 1024


def test_what_does_not_fit_the_cache_is_not_taken():
    programs = Programs()
    programs.used(1, 256, 256)
    assert programs.choose(1, 100, 200) == (128, 512)
