"""The lists of words: what makes a text readable in one way only."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from torchane.data.words import CHOICES, Choice


@given(st.lists(st.text("ab", min_size=1, max_size=4), min_size=1, max_size=6, unique=True))
def test_a_choice_is_refused_exactly_when_one_option_begins_another(options: list[str]) -> None:
    clashes = any(a != b and b.startswith(a) for a in options for b in options)
    try:
        Choice(*options)
    except ValueError:
        assert clashes
    else:
        assert not clashes


def test_a_choice_is_refused_when_an_option_is_there_twice_or_empty() -> None:
    for options in (("fox", "fox"), ("", "fox"), ("",)):
        with pytest.raises(ValueError, match="could not tell"):
            Choice(*options)


def test_words_that_follow_a_begin_with_a_consonant() -> None:
    for name in ("SHY", "BAKER", "RED"):
        spoken_first = [word for word in CHOICES[name].options if word[0] in "aeiou"]
        assert not spoken_first, f"{name}: 'a {spoken_first[:1]}'"
