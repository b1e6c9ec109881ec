"""The stories: their probability is exact, and they are worth learning."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ngram import bits_spent

from torchane.data import stories
from torchane.data.dataset import TRAIN_STORIES, VALID_STORIES
from torchane.data.stories import STORY_BITS, floor_bits_per_byte, story_bits, write_stories
from torchane.data.tokenizer import Tokenizer
from torchane.data.words import CHOICES
from torchane.errors import DataError
from torchane.models.presets import preset

TRAIN = write_stories(TRAIN_STORIES, 0, "train")
VALID = write_stories(VALID_STORIES, 0, "valid")
STRETCH_BYTES = 64

STORY = (
    "Igor, a loud lamplighter from Windford, found a tan jug behind the quiet windmill. "
    'A lazy goat buried it while drying five beans. "My jug, still tan!" whined the goat.\n'
    "Igor won two beans and hopped past the sandy fort home to Windford. The goat kept three."
)
STORY_LISTS = [
    "NAME", "SHY", "BAKER", "ELMFORD", "FOUND", "RED", "KITE", "NEAR", "TALL", "MILL", "SHY", "FOX", "LOST",
    "SELLING", "FIVE", "PLUMS", "CRIED", "GOT", "TWO", "WALKED", "PAST", "TALL", "MILL",
]  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(TRAIN, preset("tiny").config.vocab_size)


def test_a_story_reads_like_this() -> None:
    assert write_stories(1, 0, "train") == [STORY]


def test_a_story_spends_the_bits_of_its_choices() -> None:
    bits = math.log2(math.prod(len(CHOICES[name]) for name in STORY_LISTS))
    assert story_bits(STORY) == pytest.approx(bits, rel=1e-12)
    assert STORY_BITS == pytest.approx(bits, rel=1e-12)


@given(st.integers(0, 10**9))
def test_a_story_has_one_derivation(seed: int) -> None:
    """Counted by trying every word at every choice, without knowing that the lists are prefix-free."""
    (story,) = write_stories(1, seed)

    def derivations(part: int, at: int, said: dict[str, str]) -> int:
        if part == len(stories._PARTS):
            return at == len(story)
        this = stories._PARTS[part]
        if isinstance(this, stories._Pick):
            return sum(
                derivations(part + 1, at + len(word), {**said, this.slot: word} if this.slot else said)
                for word in this.choice.options
                if story[at:].startswith(word)
            )
        word = stories._said_again(this.slot, said) if isinstance(this, stories._Again) else this
        return derivations(part + 1, at + len(word), said) if story[at:].startswith(word) else 0

    assert derivations(0, 0, {}) == 1


@given(st.integers(0, 10**9), st.text(max_size=8))
def test_every_story_can_be_read_back_and_has_the_same_probability(seed: int, stream: str) -> None:
    (story,) = write_stories(1, seed, stream)
    assert story_bits(story) == pytest.approx(STORY_BITS, rel=1e-12)


@given(st.integers(0, 10**6), st.integers(0, 10**6), st.characters(codec="ascii"))
def test_a_changed_story_is_another_story_or_none(seed: int, at: int, character: str) -> None:
    (story,) = write_stories(1, seed)
    at %= len(story)
    changed = story[:at] + character + story[at + 1 :]
    try:
        assert story_bits(changed) == pytest.approx(STORY_BITS, rel=1e-12)
    except DataError:
        assert changed != story


def test_every_word_of_a_list_is_as_likely() -> None:
    """The names' chi-square, of 95 degrees of freedom, exceeds 160 once in some 30,000 draws of the training set."""
    names = [story.split(",")[0] for story in TRAIN]
    counts = np.array([names.count(name) for name in CHOICES["NAME"].options])
    expected = len(TRAIN) / len(counts)
    assert ((counts - expected) ** 2 / expected).sum() < 160


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (STORY + " ", "at character 256 comes nothing more"),
        (STORY[:-1], "at character 255 comes '.', and there stands ''"),
        ("", "at character 0 comes one of 96 words such as 'Abel'"),
        (STORY.replace("Igor won", "Ivan won"), "comes 'Igor', and there stands 'Ivan won"),
        (STORY.replace("kept three", "kept four"), "comes 'three', and there stands 'four.'"),
        (STORY.replace("a loud", "a tall"), "comes one of 64 words such as 'bold'"),
    ],
)
def test_what_is_not_a_story_is_refused_with_the_place(text: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        story_bits(text)


def test_the_same_seed_gives_the_same_stories_and_another_gives_others() -> None:
    assert write_stories(5, 3, "train") == write_stories(9, 3, "train")[:5]
    assert not set(write_stories(5, 3, "train")) & set(write_stories(5, 4, "train"))
    assert not set(write_stories(5, 3, "train")) & set(write_stories(5, 3, "valid"))


def test_the_floor_is_the_bits_of_the_stories_over_their_bytes() -> None:
    stories = write_stories(3, 5)
    assert floor_bits_per_byte(stories) == pytest.approx(3 * STORY_BITS / len("".join(stories)))


def test_the_untrained_model_is_four_times_the_floor_away(tokenizer: Tokenizer) -> None:
    tokens = sum(map(len, tokenizer.encode_all(VALID))) + len(VALID)  # an end each
    uniform = tokens * math.log2(tokenizer.vocab_size) / sum(map(len, VALID))
    assert uniform >= 4 * floor_bits_per_byte(VALID)


def test_tokens_without_memory_are_a_third_above_the_floor(tokenizer: Tokenizer) -> None:
    train, valid = tokenizer.encode_all(TRAIN[:8192]), tokenizer.encode_all(VALID)
    assert bits_spent(train, valid, 5, tokenizer.vocab_size, [0.7, 0.8, 0.9]) >= 1.3 * STORY_BITS * len(VALID)


def test_bytes_without_memory_are_a_third_above_the_floor() -> None:
    train, valid = ([np.frombuffer(story.encode(), np.uint8) for story in half] for half in (TRAIN[:2048], VALID))
    assert bits_spent(train, valid, 5, 256, [0.4, 0.6, 0.8]) >= 1.3 * STORY_BITS * len(VALID)


@pytest.mark.long
@pytest.mark.parametrize("context", [3, 4, 5, 6])
@pytest.mark.parametrize("unit", ["tokens", "bytes"])
def test_no_context_or_smoothing_comes_near_the_floor(tokenizer: Tokenizer, unit: str, context: int) -> None:
    if unit == "tokens":
        train, valid, vocab_size = tokenizer.encode_all(TRAIN), tokenizer.encode_all(VALID), tokenizer.vocab_size
    else:
        train, valid = ([np.frombuffer(story.encode(), np.uint8) for story in half] for half in (TRAIN, VALID))
        vocab_size = 256
    spent = bits_spent(train, valid, context, vocab_size, [0.3, 0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95])
    print(f"{unit}, {context} before each: {spent / STORY_BITS / len(VALID):.3f} times the floor")
    assert spent >= 1.3 * STORY_BITS * len(VALID)


def test_no_stretch_of_validation_stands_in_training() -> None:
    assert shared_stretches(TRAIN, VALID) == set()


@pytest.mark.long
@pytest.mark.parametrize("seed", range(1, 21))
def test_no_stretch_of_validation_stands_in_training_for_other_seeds(seed: int) -> None:
    train, valid = write_stories(TRAIN_STORIES, seed, "train"), write_stories(VALID_STORIES, seed, "valid")
    assert shared_stretches(train, valid) == set()


def test_shared_stretches_are_found_where_there_are_some() -> None:
    planted = VALID[3][100:164]
    assert shared_stretches([*TRAIN[:10], "x" + planted + "y"], VALID) == {planted}


def shared_stretches(train: list[str], valid: list[str]) -> set[str]:
    """The stretches of 64 bytes that stand in both; stories are ASCII, so characters are bytes."""
    wanted = {story[at : at + STRETCH_BYTES] for story in valid for at in range(len(story) - STRETCH_BYTES + 1)}
    # A stretch in both begins with 16 bytes in both: few do, so the costly look-up is rare.
    starts = {stretch[:16] for stretch in wanted}
    return {
        story[at : at + STRETCH_BYTES]
        for story in train
        for at in range(len(story) - STRETCH_BYTES + 1)
        if story[at : at + 16] in starts and story[at : at + STRETCH_BYTES] in wanted
    }
