"""The yardstick is straight: the fast n-gram model against its formula, written out."""

import math
from collections import Counter, defaultdict

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ngram import bits_spent

documents = st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=12), min_size=1, max_size=6)


def slowly(train: list[list[int]], test: list[list[int]], context: int, vocab_size: int, discount: float) -> float:
    start = (-1,) * context
    counts: list[dict[tuple[int, ...], Counter[int]]] = [defaultdict(Counter) for _ in range(context + 1)]
    for document in train:
        text = (*start, *document)
        for at in range(context, len(text)):
            counts[context][text[at - context : at]][text[at]] += 1
    for k in reversed(range(context)):
        for before, words in counts[k + 1].items():
            for word in words:
                counts[k][before[1:]][word] += 1

    def probability(before: tuple[int, ...], word: int) -> float:
        shorter = probability(before[1:], word) if before else 1 / vocab_size
        words = counts[len(before)].get(before)
        if words is None:
            return shorter
        return (max(words[word] - discount, 0) + discount * len(words) * shorter) / words.total()

    bits = 0.0
    for document in test:
        text = (*start, *document)
        for at in range(context, len(text)):
            bits -= math.log2(probability(text[at - context : at], text[at]))
    return bits


@given(documents, documents, st.integers(0, 4), st.sampled_from([0.1, 0.5, 0.9]))
def test_the_fast_model_is_the_formula(
    train: list[list[int]], test: list[list[int]], context: int, discount: float
) -> None:
    fast = bits_spent([np.array(d) for d in train], [np.array(d) for d in test], context, 4, [discount])
    assert fast == pytest.approx(slowly(train, test, context, 4, discount), rel=1e-9)


def test_the_best_of_several_discounts_is_taken() -> None:
    train, test = [np.array([0, 1, 2, 0, 1, 3])], [np.array([0, 1, 2])]
    each = [bits_spent(train, test, 2, 4, [discount]) for discount in (0.2, 0.5, 0.8)]
    assert bits_spent(train, test, 2, 4, [0.2, 0.5, 0.8]) == pytest.approx(min(each))
