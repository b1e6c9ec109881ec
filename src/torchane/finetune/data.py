"""From a folder of jsonl, or from plain text, to the tokens of examples and which of them count.

    train.jsonl  {"messages": [...]}, {"messages": ..., "tools": ...}    the model's chat template   ─┐
    valid.jsonl  {"prompt": ..., "completion": ...}                      the same, as two messages    ├─► Example(ids, offset)
    test.jsonl   {"text": ...}                                           text and the end's token    ─┘
    notes.txt, src/                                                      windows of max_seq_length

The forms are mlx-lm's. All lines of a file have the form of its first. With mask_prompt, what comes before the last
message counts nothing. Source: mlx-lm 0.32.2, tuner/datasets.py.
"""

import hashlib
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from torchane.data.corpus import read_corpus, split_documents
from torchane.data.documents import Document
from torchane.errors import DataError, shown
from torchane.finetune.settings import LoraSettings
from torchane.models.files import open_regular, parse_json

SPLITS = ("train", "valid", "test")
_LARGEST_LINE_BYTES = 64 << 20
_LARGEST_FILE_BYTES = 1 << 40
_EXPECTED = '"messages" (a chat, perhaps with "tools"), "prompt" and "completion", or "text"'


@dataclass(frozen=True)
class Example:
    """ids: int32 (L,), L of 2 or more. The tokens from `offset` on are learned, the first one never."""

    ids: np.ndarray
    offset: int = 0


@dataclass
class Splits:
    """The examples of each split, empty where there is no such file, and what there is to say of them."""

    train: list[Example] = field(default_factory=list)
    valid: list[Example] = field(default_factory=list)
    test: list[Example] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def digest(self) -> str:
        """SHA-256 of the training and validation examples."""
        total = hashlib.sha256()
        for name in ("train", "valid"):
            for example in getattr(self, name):
                total.update(f"{name} {len(example.ids)} {example.offset}\n".encode())
                total.update(example.ids.tobytes())
        return total.hexdigest()


def load_splits(path: Path, tokenizer: Any, settings: LoraSettings, needed: Sequence[str], positions: int) -> Splits:
    """Every split at path. needed: those that must be there ("train", "test"). positions: the most tokens that the model takes.
    Raises DataError: nothing there, a line that is no example (its number, what was found, what is expected), an empty split.
    """
    longest = min(settings.max_seq_length, positions)
    if not path.exists():
        raise DataError(f"There is no {path}. Give --data a folder with train.jsonl and valid.jsonl, or a file or folder of text.")
    files = {name: path / f"{name}.jsonl" for name in SPLITS if (path / f"{name}.jsonl").exists()}
    if path.is_file() and path.suffix == ".jsonl":
        files = {"train" if "train" in needed else "test": path}
    splits = Splits()
    if not files:
        _read_text(path, tokenizer, settings, longest, splits)
    why_empty: dict[str, Sequence[str]] = {}
    for name in files:
        known = len(splits.notes)
        wanted = name in needed or name == "valid" and "train" in needed
        setattr(splits, name, _read_jsonl(files[name], tokenizer, settings, positions, splits.notes) if wanted else [])
        why_empty[name] = splits.notes[known:]
    for name in needed:
        if not getattr(splits, name):
            where = files.get(name, path / f"{name}.jsonl")
            if why_empty.get(name):
                raise DataError(f"No example to learn from is left, and --{name} needs one. {' '.join(why_empty[name])}")
            raise DataError(f"{where} {'holds no example' if where.exists() else 'does not exist'}, and --{name} needs one. Each line is one JSON object with {_EXPECTED}.")
    if "train" in needed and not splits.valid:
        splits.notes.append(f"There is no {path / 'valid.jsonl'}, so nothing is validated.")
    return splits


def _read_jsonl(path: Path, tokenizer: Any, settings: LoraSettings, positions: int, notes: list[str]) -> list[Example]:
    reader, longest = Lines(path, tokenizer, settings), min(settings.max_seq_length, positions)
    found = [reader.example(number, record) for number, record in _records(path)]
    lengths = [len(example.ids) for example in found]
    cut = [_cut(example, longest) for example in found]
    kept = [example for example in cut if example is not None]
    too_long = sum(length > longest for length in lengths)
    if too_long:
        limit, advice = (f"{longest:,} tokens", " or raise --max-seq-length") if longest < positions else (f"the model's {positions:,} positions", "")
        notes.append(
            f"{path}: {too_long:,} of {len(found):,} examples have more than {limit} (the longest has {max(lengths):,} tokens), and lose their ends. "
            f"Split them{advice}."
        )
    if len(kept) < len(found):
        notes.append(f"{path}: {len(found) - len(kept):,} of {len(found):,} examples have no token to learn from, and are left out.")
    return kept


def _cut(example: Example, longest: int) -> Example | None:
    """At most so many tokens; None where nothing is left to learn."""
    ids = example.ids[:longest]
    return Example(ids, example.offset) if len(ids) > max(1, example.offset) else None


def _records(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The objects of a jsonl, with their line numbers. Raises DataError."""
    try:
        with open_regular(path, _LARGEST_FILE_BYTES) as file:
            number = 0
            while line := file.readline(_LARGEST_LINE_BYTES):
                number += 1
                if not line.strip():
                    continue
                try:
                    record = parse_json(line.decode())
                except ValueError as error:
                    raise DataError(f"{path}, line {number:,} is no JSON: {str(error)[:120]}. Each line is one JSON object with {_EXPECTED}.") from error
                if not isinstance(record, dict):
                    raise DataError(f"{path}, line {number:,} is {shown(record)}; expected is an object with {_EXPECTED}.")
                yield number, record
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read: {error}.") from error


class Lines:
    """Makes examples of the lines of one file, whose form the first line decides."""

    def __init__(self, path: Path, tokenizer: Any, settings: LoraSettings) -> None:
        self.path, self.tokenizer, self.mask_prompt = path, tokenizer, settings.mask_prompt
        name = settings.features.get
        self.chat, self.text = name("chat_feature", "messages"), name("text_feature", "text")
        self.prompt, self.completion = name("prompt_feature", "prompt"), name("completion_feature", "completion")
        self.form: str | None = None

    def example(self, number: int, record: Mapping[str, Any]) -> Example:
        """Raises DataError, which names the line."""
        form = self._form(record)
        if form is None:
            keys = ", ".join(f'"{shown(key)[1:-1]}"' for key in record) or "nothing"
            raise DataError(f"{self.where(number)} has {keys}; expected is {self._expected()}.")
        self.form = self.form or form
        if form != self.form:
            raise DataError(f'{self.where(number)} is of the form "{form}", and the lines before it of "{self.form}". A file has lines of one form.')
        make: Callable[[int, Mapping[str, Any]], Example] = {"text": self._of_text, "chat": self._of_chat, "completion": self._of_pair}[form]
        return make(number, record)

    def where(self, number: int) -> str:
        return f"{self.path}, line {number:,}"

    def _form(self, record: Mapping[str, Any]) -> str | None:
        if self.prompt in record and self.completion in record:
            return "completion"
        return "chat" if self.chat in record else "text" if self.text in record else None

    def _expected(self) -> str:
        renamed = (self.chat, self.prompt, self.completion, self.text) != ("messages", "prompt", "completion", "text")
        return f'"{self.chat}", "{self.prompt}" and "{self.completion}", or "{self.text}"' if renamed else _EXPECTED

    def _of_text(self, number: int, record: Mapping[str, Any]) -> Example:
        if self.mask_prompt:
            raise DataError(f"{self.where(number)}: --mask-prompt leaves out the prompt, and a text has none. Use messages, or prompt and completion.")
        return Example(encode(self.tokenizer, self._string(number, record, self.text)))

    def _of_pair(self, number: int, record: Mapping[str, Any]) -> Example:
        asked, answer = (self._string(number, record, key) for key in (self.prompt, self.completion))
        messages = [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]
        return self._templated(number, messages, record.get("tools"))

    def _of_chat(self, number: int, record: Mapping[str, Any]) -> Example:
        messages = record[self.chat]
        if not isinstance(messages, list) or not messages:
            raise DataError(f'{self.where(number)}: "{self.chat}" is {shown(messages)}; expected is a list of {{"role": ..., "content": ...}}.')
        for message in messages:
            if not isinstance(message, dict) or not isinstance(message.get("role"), str) or not ("content" in message or "tool_calls" in message):
                raise DataError(f'{self.where(number)}: a message is {shown(message)}; expected is {{"role": ..., "content": ...}}.')
        return self._templated(number, messages, record.get("tools"))

    def _templated(self, number: int, messages: list[dict[str, Any]], tools: Any) -> Example:
        if self.tokenizer.chat_template is None:
            raise DataError(
                f"{self.where(number)} is a conversation, and the model's tokenizer has no chat template to write it with. Put a chat_template.jinja "
                'into the model\'s folder, or use {"text": ...} with the conversation written out.'
            )
        if tools is not None and not isinstance(tools, list):
            raise DataError(f'{self.where(number)}: "tools" is {shown(tools)}; expected is a list of descriptions of functions.')
        whole = self._apply(number, messages, tools, prompted=False)
        if not self.mask_prompt:
            return Example(np.array(whole, np.int32))
        prompted = messages[-1].get("role") == "assistant"
        prompt = self._apply(number, messages[:-1], tools, prompted=prompted) if len(messages) > 1 else []
        same = next((i for i, (one, other) in enumerate(zip(prompt, whole, strict=False)) if one != other), min(len(prompt), len(whole)))
        return Example(np.array(whole, np.int32), same)  # a template may write the last turn otherwise than its beginning

    def _apply(self, number: int, messages: list[dict[str, Any]], tools: Any, *, prompted: bool) -> list[int]:
        try:
            made = self.tokenizer.apply_chat_template(messages, tools=tools, add_generation_prompt=prompted, tokenize=True, return_dict=False)
        except Exception as error:  # a template raises whatever its author wrote
            raise DataError(f"{self.where(number)}: the model's chat template refuses it: {str(error).strip()[:300]}.") from error
        return list(made)

    def _string(self, number: int, record: Mapping[str, Any], key: str) -> str:
        value = record[key]
        if not isinstance(value, str):
            raise DataError(f'{self.where(number)}: "{key}" is {shown(value)}; expected is text.')
        return value


def encode(tokenizer: Any, text: str) -> np.ndarray:
    """The tokens of a text, and the end's token behind them where it is not there: int32 (L,)."""
    ids = list(tokenizer.encode(text))
    end = tokenizer.eos_token_id
    if end is not None and (not ids or ids[-1] != end):
        ids.append(end)
    return np.array(ids, np.int32)


def _read_text(path: Path, tokenizer: Any, settings: LoraSettings, longest: int, splits: Splits) -> None:
    """Windows of `longest` tokens of the documents below path; about a tenth of the text is held out."""
    if settings.mask_prompt:
        raise DataError(f"{path} is plain text, and --mask-prompt leaves out a prompt, which text has none of. Leave the flag out.")
    with tempfile.TemporaryDirectory() as folder:
        corpus = read_corpus(path, Path(folder))
        train, valid = split_documents(corpus.documents)
        splits.train, splits.valid = (_windows(documents, tokenizer, longest) for documents in (train, valid))
    splits.test = splits.valid
    splits.notes.append(f"{corpus.describe()}; {len(splits.train):,} windows of {longest:,} tokens to train on, {len(splits.valid):,} to validate and to test.")


def _windows(documents: Sequence[Document], tokenizer: Any, longest: int) -> list[Example]:
    """Side by side over the documents, each followed by the end's token; a window's last token is the next one's first."""
    stream = [encode(tokenizer, part) for document in documents for part in _texts(document)]
    if not stream:
        return []
    ids = np.concatenate(stream)
    return [Example(ids[at : at + longest]) for at in range(0, len(ids) - 1, longest - 1)]


def _texts(document: Document) -> Iterator[str]:
    """The texts of a document, which may hold several: a slice of None stands between them."""
    parts: list[str] = []
    for piece in [*document.pieces(), None]:
        if piece is not None:
            parts.append(piece)
        elif parts:
            yield "".join(parts)
            parts = []
