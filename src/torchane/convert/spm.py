"""SentencePiece's BPE between two forms: a score for each piece, and an ordered list of merges (a `tokenizer.json`).

    scores: at each step the two neighbours are joined whose piece has the highest score      llama.cpp, llama2.c
    merges: ... whose pair stands first in the list                                           Hugging Face tokenizers

They are equal where the list has every pair that makes a piece, piece after piece; one that has not is refused.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from torchane.errors import UsageError

SPACE = "\u2581"
#: Kinds of tokens in a GGUF. Source: llama.cpp, include/llama.h, llama_token_type.
NORMAL, UNKNOWN, CONTROL, USER, UNUSED, BYTE = range(1, 7)


def merges_of(vocab: Mapping[str, int], scores: Sequence[float], normal: Sequence[str]) -> list[tuple[str, str]]:
    """Every pair of pieces that makes a `normal` piece, in the order in which they are joined."""
    known = set(normal)
    merges = [
        (-scores[vocab[piece]], vocab[piece], vocab[piece[:cut]], (piece[:cut], piece[cut:]))
        for piece in normal for cut in range(1, len(piece)) if piece[:cut] in known and piece[cut:] in known
    ]  # fmt: skip
    return [pair for *_, pair in sorted(merges)]


def scores_of(vocab: Mapping[str, int], merges: Sequence[tuple[str, str]], source: str) -> list[float]:
    """A score for each token by its number: minus the place of its first merge, below all of them for what no merge makes.
    Raises UsageError where scores cannot say what the merges say."""
    places: dict[str, int] = {}
    last = None
    for left, right in merges:
        piece = left + right
        if piece != last and piece in places:
            raise UsageError(f"{source}: its merges that make {piece!r} do not stand together, which scores of pieces cannot say. It is no SentencePiece vocabulary.")
        places.setdefault(piece, len(places))
        last = piece
    pairs = set(merges)
    for piece in places:
        for cut in range(1, len(piece)):
            left, right = piece[:cut], piece[cut:]
            if left in vocab and right in vocab and (left, right) not in pairs and all(part in places or len(part) == 1 for part in (left, right)):
                raise UsageError(f"{source}: {piece!r} is not joined from {left!r} and {right!r}, though it has all three; scores of pieces cannot say so. It is no SentencePiece vocabulary.")
    lowest = float(-len(places) - 1)
    scores = [lowest] * (max(vocab.values()) + 1)
    for piece, place in places.items():
        if piece in vocab:
            scores[vocab[piece]] = float(-place)
    return scores


def tokenizer_json(pieces: Sequence[str], kinds: Sequence[int], merges: Sequence[tuple[str, str]], *, unknown: int | None, add_space: bool, first: int | None) -> str:
    """A `tokenizer.json`. first: the token that begins every text, None for none. Kinds as above; UNUSED ones are left out."""
    vocab = {piece: number for number, (piece, kind) in enumerate(zip(pieces, kinds, strict=True)) if kind != UNUSED}
    to_mark = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    from_mark = {"type": "Replace", "pattern": {"String": SPACE}, "content": " "}
    steps = [from_mark, {"type": "ByteFallback"}, {"type": "Fuse"}]
    described = {
        "version": "1.0", "truncation": None, "padding": None,
        "added_tokens": added_tokens(pieces, kinds),
        "normalizer": {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": SPACE}, to_mark]} if add_space else to_mark,
        "pre_tokenizer": None,
        "post_processor": None if first is None else begins_with(pieces[first], first),
        "decoder": {"type": "Sequence", "decoders": [*steps, {"type": "Strip", "content": " ", "start": 1, "stop": 0}] if add_space else steps},
        "model": {
            "type": "BPE", "dropout": None, "unk_token": None if unknown is None else pieces[unknown], "continuing_subword_prefix": None,
            "end_of_word_suffix": None, "fuse_unk": True, "byte_fallback": True, "ignore_merges": False, "vocab": vocab,
            "merges": [list(pair) for pair in merges],
        },
    }  # fmt: skip
    return json.dumps(described, ensure_ascii=False)


def added_tokens(pieces: Sequence[str], kinds: Sequence[int]) -> list[dict[str, Any]]:
    return [
        {"id": number, "content": piece, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": kind != USER}
        for number, (piece, kind) in enumerate(zip(pieces, kinds, strict=True)) if kind in (UNKNOWN, CONTROL, USER)
    ]  # fmt: skip


def begins_with(piece: str, number: int) -> dict[str, Any]:
    """A post-processor that puts a token before every text."""
    special, text = {"SpecialToken": {"id": piece, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}
    return {
        "type": "TemplateProcessing", "single": [special, text], "pair": [special, text, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {piece: {"id": piece, "ids": [number], "tokens": [piece]}},
    }  # fmt: skip
