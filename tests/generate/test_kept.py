"""A conversation's cache: each turn reads what is new, and writes what it would write had it read everything."""

import pytest

pytest.importorskip("transformers", reason="transformers is not installed (pip install 'torchane[finetune]')")
import small_models

from torchane.errors import UsageError
from torchane.finetune.extras import quiet_transformers
from torchane.finetune.models import load_base
from torchane.generate.pretrained import Writer
from torchane.generate.sampling import Sampling

GREEDY = Sampling(max_tokens=6, temperature=0)
TURNS = [" and a dog sat", " on 12 mats", "; we'll see"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    with quiet_transformers():
        return small_models.save(tmp_path_factory.mktemp("m") / "m", "llama")


def conversation(writer, turns, **options):
    """What is written in each turn, and how many tokens are read."""
    text, found = "The cat", []
    for turn in turns:
        text += turn
        [one] = writer.write([text], GREEDY, **options)
        found.append((one.text, one.prompt_tokens))
        text += one.text
    return found


@pytest.mark.parametrize("device", ["host", pytest.param("twin", marks=pytest.mark.long)])
def test_turns_write_what_they_write_without_a_kept_cache_and_read_what_is_new(folder, device):
    theirs = conversation(Writer(load_base(folder)), TURNS)
    ours = conversation(Writer(load_base(folder), device), TURNS, keeps=True)
    assert [text for text, _ in ours] == [text for text, _ in theirs]
    assert ours[0][1] == theirs[0][1] and all(mine < yours for (_, mine), (_, yours) in zip(ours[1:], theirs[1:], strict=True))


def test_a_text_that_begins_otherwise_is_read_from_there_on(folder):
    writer, plain = Writer(load_base(folder)), Writer(load_base(folder))
    writer.write(["The cat sat on the mat and saw"], GREEDY, keeps=True)
    for text in ("The cat sat on 12 mats", "We'll see", "We'll see"):
        [ours], [theirs] = writer.write([text], GREEDY, keeps=True), plain.write([text], GREEDY)
        assert ours.text == theirs.text
    assert ours.prompt_tokens == 1  # the last one of a text is read, for what follows it


def test_what_ends_halfway_leaves_nothing_to_go_on_from(folder):
    writer = Writer(load_base(folder))
    writer.write(["The cat"], GREEDY, keeps=True)

    def stop(index, piece):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        writer.write(["The cat sat"], GREEDY, keeps=True, tell=stop)
    [ours], [theirs] = writer.write(["The cat sat"], GREEDY, keeps=True), Writer(load_base(folder)).write(["The cat sat"], GREEDY)
    assert (ours.text, ours.prompt_tokens) == (theirs.text, theirs.prompt_tokens)


def test_a_cache_that_is_full_gives_way_to_a_new_one(folder, monkeypatch):
    from torchane.generate import pretrained

    monkeypatch.setattr(pretrained, "LEAST_KEPT", 64)
    writer = Writer(load_base(folder))
    writer.device = "twin"  # places as the twin has them, computed by PyTorch
    assert [text for text, _ in conversation(writer, TURNS, keeps=True)] == [text for text, _ in conversation(Writer(load_base(folder)), TURNS)]


def test_a_sliding_window_is_read_again_where_a_text_begins_otherwise(tmp_path):
    with quiet_transformers():
        folder = small_models.save(tmp_path / "m", "mistral", sliding_window=8)
    writer, plain = Writer(load_base(folder)), Writer(load_base(folder))
    for text in ("The cat sat on the mat and saw 12 of them", "The cat sat on the mat and saw 12 of them, and", "The cat sat on 12 mats"):
        [ours], [theirs] = writer.write([text], GREEDY, keeps=True), plain.write([text], GREEDY)
        assert ours.text == theirs.text


def test_a_prompt_beyond_the_positions_is_refused_in_a_later_turn(folder):
    writer = Writer(load_base(folder))
    writer.write(["The cat"], GREEDY, keeps=True)
    with pytest.raises(UsageError, match="positions"):
        writer.write(["The cat" * 4000], GREEDY, keeps=True)
