"""Spoils texts and bytes, reproducibly: the same seed gives the same inputs.

Small edits find slips of the parser, splices of two inputs find states it did not expect, repetition finds
what grows faster than its input.
"""

import random
import re
from collections.abc import Iterator, Sequence
from typing import TypeVar

Data = TypeVar("Data", str, bytes)

#: No mutated input is longer than this factor times the longest seed, plus the bombs.
MAX_GROWTH = 4


def mutations(seeds: Sequence[Data], tokens: Sequence[Data], count: int, seed: int) -> Iterator[Data]:
    """`count` spoiled inputs, each a seed after one to six edits."""
    rng = random.Random(seed)
    longest = max(map(len, seeds)) * MAX_GROWTH
    for _ in range(count):
        data = rng.choice(seeds)
        for _ in range(rng.choice((1, 1, 1, 2, 3, 6))):
            data = rng.choice(_EDITS)(data, seeds, tokens, rng)[:longest]
        yield data


def _span(data: Data, rng: random.Random) -> tuple[int, int]:
    start = rng.randint(0, len(data))
    return start, min(len(data), start + rng.choice((1, 1, 2, 4, 8, 16, 64, 256)))


def _delete(data: Data, seeds: Sequence[Data], tokens: Sequence[Data], rng: random.Random) -> Data:
    start, end = _span(data, rng)
    return data[:start] + data[end:]


def _truncate(data: Data, seeds: Sequence[Data], tokens: Sequence[Data], rng: random.Random) -> Data:
    return data[: rng.randint(0, len(data))]


def _duplicate(data: Data, seeds: Sequence[Data], tokens: Sequence[Data], rng: random.Random) -> Data:
    start, end = _span(data, rng)
    return data[:end] + data[start:end] * rng.choice((1, 1, 2, 50)) + data[end:]


def _insert(data: Data, seeds: Sequence[Data], tokens: Sequence[Data], rng: random.Random) -> Data:
    start, _ = _span(data, rng)
    return data[:start] + rng.choice(tokens) * rng.choice((1, 1, 1, 1, 2, 200)) + data[start:]


def _replace(data: Data, seeds: Sequence[Data], tokens: Sequence[Data], rng: random.Random) -> Data:
    start, end = _span(data, rng)
    return data[:start] + rng.choice(tokens) + data[end:]


def _overwrite(data: Data, seeds: Sequence[Data], tokens: Sequence[Data], rng: random.Random) -> Data:
    """As many items as the token has: offsets behind it stay where they are."""
    token = rng.choice(tokens)
    start = rng.randint(0, len(data))
    return data[:start] + token + data[start + len(token) :]


def _flip(data: Data, seeds: Sequence[Data], tokens: Sequence[Data], rng: random.Random) -> Data:
    if not data:
        return data
    place = rng.randrange(len(data))
    if isinstance(data, bytes):
        return data[:place] + bytes([data[place] ^ 1 << rng.randrange(8)]) + data[place + 1 :]
    return data[:place] + chr(ord(data[place]) ^ 1 << rng.randrange(7)) + data[place + 1 :]


def _splice(data: Data, seeds: Sequence[Data], tokens: Sequence[Data], rng: random.Random) -> Data:
    other = rng.choice(seeds)
    start, end = _span(other, rng)
    place, _ = _span(data, rng)
    return data[:place] + other[start : end + rng.randint(0, 200)] + data[place:]


def _swap(data: Data, seeds: Sequence[Data], tokens: Sequence[Data], rng: random.Random) -> Data:
    a, b = sorted((_span(data, rng), _span(data, rng)))
    if a[1] > b[0]:
        return data
    return data[: a[0]] + data[b[0] : b[1]] + data[a[1] : b[0]] + data[a[0] : a[1]] + data[b[1] :]


def _word(data: Data, seeds: Sequence[Data], tokens: Sequence[Data], rng: random.Random) -> Data:
    """One word, or four bytes, become another: what comes out is often still well formed."""
    place, _ = _span(data, rng)
    other = rng.choice(seeds)
    source, _ = _span(other, rng)
    if isinstance(data, bytes):
        place, source = place & ~3, source & ~3
        return data[:place] + other[source : source + 4] + data[place + 4 :]
    old, new = _WORD.search(data, place), _WORD.search(other, source)
    return data if old is None or new is None else data[: old.start()] + new.group() + data[old.end() :]


_WORD = re.compile(r"\w+")
_EDITS = (_delete, _truncate, _duplicate, _insert, _replace, _overwrite, _flip, _splice, _swap, _word, _word, _word)
