"""Filters of the next token agree with transformers' own; text ends before a stop, and is given out when it is certain."""

import pytest
import torch

from torchane.errors import NumericsError, UsageError
from torchane.generate.sampling import Sampling, Text, kept, penalised, require_finite

LOGITS = torch.randn(5, 40, generator=torch.Generator().manual_seed(0)) * 3


@pytest.mark.parametrize(("top_p", "min_p"), [(0.5, 0.0), (0.9, 0.0), (0.01, 0.0), (1.0, 0.1), (1.0, 0.9), (0.8, 0.2)])
def test_what_top_p_and_min_p_keep_is_what_transformers_keeps(top_p, min_p):
    transformers = pytest.importorskip("transformers")
    for logits in LOGITS:
        scores = logits[None]
        if top_p < 1:
            scores = transformers.TopPLogitsWarper(top_p)(None, scores)
        if min_p > 0:
            scores = transformers.MinPLogitsWarper(min_p)(None, scores)
        assert torch.equal(kept(logits.softmax(0), top_p, min_p) > 0, scores[0].isfinite())


def test_the_repetition_penalty_is_transformers():
    transformers = pytest.importorskip("transformers")
    seen = [3, 7, 7, 20]
    theirs = transformers.RepetitionPenaltyLogitsProcessor(1.3)(torch.tensor([seen]), LOGITS[:1].clone())[0]
    torch.testing.assert_close(penalised(LOGITS[0], seen, 1.3), theirs)
    assert torch.equal(penalised(LOGITS[0], seen, 1.0), LOGITS[0])


def test_numbers_that_are_not_finite_are_an_error():
    with pytest.raises(NumericsError, match="not finite numbers"):
        require_finite(torch.tensor([0.0, float("nan")]))


@pytest.mark.parametrize(("changes", "said"), [({"top_p": 0.0}, "top_p is 0.0"), ({"min_p": 2.0}, "min_p is 2.0"), ({"stop": ("",)}, "stop at is empty"), ({"repetition_penalty": 0.0}, "repetition_penalty")])
def test_settings_out_of_range_are_refused(changes, said):
    with pytest.raises(UsageError, match=said):
        Sampling(**changes)


def written(pieces: list[str], *stop: str) -> tuple[list[str], Text]:
    text = Text(lambda tokens: "".join(pieces[token] for token in tokens), stop)
    given = []
    for token in range(len(pieces)):
        given.append(text.add(token))
        if text.is_over:
            break
    return [*given, text.finish()], text


def test_text_ends_before_a_stop_that_comes_in_parts():
    given, text = written(["The ", "cat", "\nUs", "er: ", "more"], "\nUser:")
    assert "".join(given) == text.text == "The cat" and text.is_over and given[2] == ""


def test_what_only_looked_like_a_stop_is_given_out():
    given, text = written(["a", "\nUs", "ed"], "\nUser:")
    assert given == ["a", "", "\nUsed", ""] and text.text == "a\nUsed" and not text.is_over


def test_the_first_of_several_stops_counts():
    assert written(["one END two STOP"], "STOP", "END")[1].text == "one "
