"""A byte-level BPE tokenizer: any UTF-8 text to small integers and back, nothing lost.

    text ──encode──► [417, 22, 9] ──decode──► text        byte_counts[[417, 22, 9]] -> 6, 3, 1

Every token stands for a fixed string of bytes, so a loss in nats per token converts exactly to bits
per byte. One token, END, stands for no bytes: it precedes and ends every document. Text that spells
END's name is text: only this module's callers can place the token itself. The file is the
`tokenizer.json` of Hugging Face `tokenizers`, and any byte-level tokenizer of that form loads.
"""

import itertools
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from torchane.errors import DataError
from torchane.models.files import LARGEST_JSON_BYTES, open_regular, parse_json

END = "<|endoftext|>"

#: What a tokenizer_config.json says of a tokenizer.json of ours: without it transformers chooses a class by the model's architecture, and
#: Qwen's splits text by a rule of its own.
FOR_TRANSFORMERS = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": END, "eos_token": END, "clean_up_tokenization_spaces": False}

SMALLEST_VOCAB_SIZE = 257  # every byte, and END
SAMPLE_CHARS = 8_000_000  # enough for the merges of small vocabularies; training on more takes longer, no more
SLICE_CHARS = 1 << 16  # long texts are encoded in slices: threads share them, and progress can be told
_ENCODE_BATCH = 64
_STREAM_BATCH = 16  # what encoding a slice takes is some hundred times its tokens
_COUNTED = 4 << 20  # tokens that are looked at together


class Tokenizer:
    """A trained or loaded tokenizer. byte_counts is int32 (vocab_size,): the bytes each token stands for."""

    def __init__(self, inner: tokenizers.Tokenizer, name: str = "tokenizer"):
        """Raises DataError if inner is not byte-level or has no token for the end of a text."""
        self._inner = inner
        # Else a text that spells "<|endoftext|>" would lose those 13 bytes.
        self._inner.encode_special_tokens = True
        self.vocab_size: int = inner.get_vocab_size()
        end_id = inner.token_to_id(END)
        if end_id is None:
            raise DataError(
                f"{name} has no token {END}, which marks where a text ends. "
                "Train one on your data (leave --tokenizer out), or add the token to the file."
            )
        self.end_id: int = end_id
        self.byte_counts = _byte_counts(inner, name)

    @classmethod
    def train(cls, texts: Sequence[str], vocab_size: int, sample_chars: int = SAMPLE_CHARS) -> "Tokenizer":
        """Learns merges from about sample_chars characters all over texts; the same texts give the same tokenizer.

        The vocabulary is smaller than vocab_size where the text has too few repeated pairs: ask the
        result. Raises DataError if vocab_size cannot hold every byte.
        """
        stride = max(1, -(-sum(map(len, texts)) // sample_chars))
        return cls.train_on(itertools.islice((part for _, part in _slices(texts)), 0, None, stride), vocab_size)

    @classmethod
    def train_on(cls, sample: Iterable[str], vocab_size: int) -> "Tokenizer":
        """Learns merges from all of the sample. Raises DataError if vocab_size cannot hold every byte."""
        if vocab_size < SMALLEST_VOCAB_SIZE:
            raise DataError(
                f"A vocabulary of {vocab_size} cannot hold the 256 bytes and the end of a text. "
                f"Ask for {SMALLEST_VOCAB_SIZE} or more."
            )
        inner = tokenizers.Tokenizer(models.BPE())
        inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        inner.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size,
            min_frequency=2,
            special_tokens=[END],
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        )
        inner.train_from_iterator(sample, trainer)
        return cls(inner)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Tokenizer":
        """Reads a tokenizer.json. Raises DataError if it is missing, damaged or not byte-level."""
        path = Path(path)
        try:
            with open_regular(path, LARGEST_JSON_BYTES) as file:
                text = file.read().decode()
        except (OSError, ValueError) as error:
            reason = (error.strerror or error) if isinstance(error, OSError) else error
            raise DataError(f"The tokenizer {path} cannot be read: {reason}. Name a tokenizer.json file.") from error
        try:
            parse_json(text)  # nested too deep, it would end the Rust side
            inner = tokenizers.Tokenizer.from_str(text)
            inner.no_padding()  # a batch is cut and filled elsewhere; a file that asks for 10^12 tokens gets none
            inner.no_truncation()
            return cls(inner, str(path))
        except DataError:
            raise
        except BaseException as error:  # the Rust side raises plain Exception, and PanicException, which is none
            if isinstance(error, KeyboardInterrupt | SystemExit):
                raise
            raise DataError(
                f"{path} is not a tokenizer that we can use: {error}. "
                "It must be a tokenizer.json as Hugging Face tokenizers writes it."
            ) from error

    def to_text(self) -> str:
        """The contents of tokenizer.json."""
        return self._inner.to_str(pretty=True)

    def encode(self, text: str) -> list[int]:
        return self._inner.encode(text, add_special_tokens=False).ids

    def encode_all(self, texts: Sequence[str], progress: Callable[[int, int], None] | None = None) -> list[np.ndarray]:
        """Each text's tokens, uint16 or (beyond 65,536 tokens) uint32; progress(done, total) counts characters."""
        dtype = self.dtype
        total = sum(map(len, texts))
        done = 0
        slices: list[list[np.ndarray]] = [[] for _ in texts]
        for batch in _batched(_slices(texts), _ENCODE_BATCH):
            encoded = self._inner.encode_batch_fast([part for _, part in batch], add_special_tokens=False)
            for (index, part), encoding in zip(batch, encoded, strict=True):
                slices[index].append(np.array(encoding.ids, dtype=dtype))
                done += len(part)
            if progress is not None:
                progress(done, total)
        return [np.concatenate(parts) if parts else np.zeros(0, dtype) for parts in slices]

    def encode_stream(self, pieces: Iterable[str | None]) -> Iterator[np.ndarray]:
        """The tokens of texts that come in pieces, a few pieces at a time, and of END where a None stands."""
        end = np.array([self.end_id], self.dtype)
        for batch in _batched(pieces, _STREAM_BATCH):
            texts = [piece for piece in batch if piece is not None]
            encoded = iter(self._inner.encode_batch_fast(texts, add_special_tokens=False))
            yield np.concatenate([end if piece is None else np.array(next(encoded).ids, self.dtype) for piece in batch])

    @property
    def dtype(self) -> Any:
        """Of an array of tokens: uint16 where they fit."""
        return np.uint16 if self.vocab_size <= 1 << 16 else np.uint32

    def decode(self, tokens: Iterable[int]) -> str:
        """The text of tokens; END says nothing, and bytes that are no UTF-8 become U+FFFD."""
        return self._inner.decode(list(tokens), skip_special_tokens=True)

    def count_bytes(self, tokens: np.ndarray) -> int:
        """How many UTF-8 bytes tokens stand for."""
        parts = (tokens[begin : begin + _COUNTED] for begin in range(0, len(tokens), _COUNTED))
        return sum(int(self.byte_counts[part].sum(dtype=np.int64)) for part in parts)


def _slices(texts: Sequence[str]) -> Iterator[tuple[int, str]]:
    """(text's index, slice) of every text, cut at line ends where there are any."""
    for index, text in enumerate(texts):
        start = 0
        while start < len(text):
            end = start + SLICE_CHARS
            if end < len(text):
                newline = text.rfind("\n", start, end)
                end = newline + 1 if newline > start else end
            yield index, text[start:end]
            start = end


def slices_of(texts: Iterable[str]) -> Iterator[str]:
    """One text that comes in parts, in the slices of SLICE_CHARS that `_slices` would cut it into."""
    held = ""
    for text in texts:
        held += text
        start = 0
        while len(held) - start > SLICE_CHARS:  # what is left may go on, and is cut only where more is certain
            end = start + SLICE_CHARS
            newline = held.rfind("\n", start, end)
            end = newline + 1 if newline > start else end
            yield held[start:end]
            start = end
        held = held[start:]
    if held:
        yield held


Item = TypeVar("Item")


def _batched(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """As itertools.batched, of Python 3.12."""
    iterator = iter(items)
    while batch := list(itertools.islice(iterator, size)):
        yield batch


def _byte_counts(inner: tokenizers.Tokenizer, name: str) -> np.ndarray:
    """In a byte-level vocabulary each character of a token's spelling stands for one byte."""
    described = json.loads(inner.to_str())
    alphabet = set(pre_tokenizers.ByteLevel.alphabet())
    added = {token["id"]: token for token in described["added_tokens"]}
    counts = np.zeros(inner.get_vocab_size(), dtype=np.int32)
    if sorted(inner.get_vocab(with_added_tokens=True).values()) != list(range(len(counts))):
        raise DataError(f"{name}: its {len(counts):,} tokens are not numbered from 0 on. It is damaged, or no tokenizer of a model.")
    for spelling, token in inner.get_vocab(with_added_tokens=True).items():
        if token in added:
            counts[token] = 0 if added[token]["special"] else len(added[token]["content"].encode())
        elif alphabet.issuperset(spelling):
            counts[token] = len(spelling)
        else:
            raise DataError(
                f"{name} is not byte-level: its token {spelling!r} is not spelled in the 256 byte characters. "
                "Bits per byte could not be told. Use a byte-level BPE tokenizer, or train one on your data."
            )
    return counts
