"""What a model without memory would spend on a text: interpolated Kneser-Ney, any order, in NumPy.

    p(w | c1..ck) = max(count(c1..ck w) - d, 0) / count(c1..ck) + d types(c1..ck) / count(c1..ck) p(w | c2..ck)

The longest contexts count occurrences, shorter ones the different contexts they occur in. Contexts
do not reach over the start of a document. Source: Chen & Goodman 1999, section 2.7.
"""

from collections.abc import Sequence

import numpy as np

_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)


def bits_spent(
    train: Sequence[np.ndarray], test: Sequence[np.ndarray], context: int, vocab_size: int, discounts: Sequence[float]
) -> float:
    """-log2 of the probability of the test documents, by a model of up to `context` tokens before each one.

    The discount is the best of those given for these very documents, which flatters the model.
    """
    seen, asked = _Grams(train, context), _Grams(test, context)
    discount = np.array(discounts)[:, None]
    probability = np.full((len(discount), len(asked.position)), 1.0 / vocab_size)
    for k in range(context + 1):
        # Each gram of k + 1 tokens, where it stands first, and how often it counts.
        if k == context:
            grams, first, counts = np.unique(seen.key(k + 1), return_index=True, return_counts=True)
        else:
            _, first_longer = np.unique(seen.key(k + 2), return_index=True)
            grams, at, counts = np.unique(seen.key(k + 1)[first_longer], return_index=True, return_counts=True)
            first = first_longer[at]
        contexts, owner = np.unique(seen.key(k, shift=1)[first], return_inverse=True)
        wanted = asked.key(k, shift=1)
        total = _look_up(contexts, np.bincount(owner, weights=counts), wanted)
        types = _look_up(contexts, np.bincount(owner), wanted)
        count = _look_up(grams, counts, asked.key(k + 1))
        longer = np.maximum(count - discount, 0) + discount * types * probability
        probability = np.where(total > 0, longer / np.maximum(total, 1), probability)
    return float((-np.log2(probability)).sum(axis=1).min())


class _Grams:
    """The n-grams that end at each position of documents, as 64-bit hashes."""

    def __init__(self, documents: Sequence[np.ndarray], context: int):
        pad = np.zeros(context + 1, np.uint64)  # tokens are counted from 1, so 0 is before the start
        self.text = np.concatenate([part for d in documents for part in (pad, d.astype(np.uint64) + np.uint64(1))])
        self.position = np.flatnonzero(self.text)

    def key(self, length: int, shift: int = 0) -> np.ndarray:
        """Hashes of the `length` tokens that end `shift` before each position."""
        key = np.full(len(self.position), np.uint64(length))
        for back in range(length - 1 + shift, shift - 1, -1):
            key = (key ^ self.text[self.position - back]) * _MULTIPLIER
            key ^= key >> np.uint64(29)
        return key


def _look_up(keys: np.ndarray, values: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """values of the wanted keys, 0 where a key is not there."""
    at = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[at] == wanted, values[at], 0)
