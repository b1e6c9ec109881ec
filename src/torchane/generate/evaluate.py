"""How good a model is on a file: how well it predicts a text, whether it answers as expected, which of several answers it prefers.

    text, {"text": ...}                                        nats, perplexity, bits per byte: every token once, in windows
    {"prompt": ..., "completion": ...}, {"messages": [...]}    exact match: the likeliest text is the completion, but for white space at its ends
    {"prompt": ..., "choices": [...], "answer": ...}           multiple choice: the answer has the largest probability, of all its tokens and for each byte

A prompt for a model with a chat template is a message to it, where a text is written; choices are continuations of the prompt as it is.
The second way to prefer is that of EleutherAI's lm-evaluation-harness (acc_norm), which counts characters where this counts bytes.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from torchane.errors import DataError, UsageError, shown
from torchane.finetune.models import Base
from torchane.generate.pretrained import EXACT, Writer, templated
from torchane.generate.sampling import Sampling
from torchane.generate.sizes import width_of
from torchane.models.files import open_regular, parse_json

_LARGEST_BYTES = 1 << 30
_EXPECTED = '"text", "prompt" and "completion", "messages", or "prompt", "choices" and "answer"'
#: Keys of a line -> what is measured.
FORMS = (({"prompt", "choices", "answer"}, "choice"), ({"prompt", "completion"}, "match"), ({"messages"}, "match"), ({"text"}, "perplexity"))


@dataclass(frozen=True)
class Record:
    """A line of a jsonl file, by its number from 1."""

    line: int
    values: dict[str, Any]


def read(path: Path) -> tuple[str, list[Record]]:
    """(what is measured, records). A file that is no .jsonl is one text. Raises DataError, which names file, line and what is expected."""
    try:
        with open_regular(path, _LARGEST_BYTES) as file:
            text = file.read().decode()
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read: {(error.strerror if isinstance(error, OSError) else None) or error}. Give a UTF-8 text or a .jsonl file.") from error
    if path.suffix not in (".jsonl", ".ndjson"):
        if not text.strip():
            raise DataError(f"{path} holds no text.")
        return "perplexity", [Record(1, {"text": text})]
    records = [_record(path, number, line) for number, line in enumerate(text.splitlines(), 1) if line.strip()]
    if not records:
        raise DataError(f"{path} has no lines; expected is JSON with {_EXPECTED}.")
    kinds = [(record, _form(record)) for record in records]
    for record, kind in kinds:
        if kind is None or kind != kinds[0][1]:
            found = ", ".join(map(shown, record.values)) or "nothing"
            raise DataError(f"{path}, line {record.line}: it has {found}; expected is {_EXPECTED}, and all lines alike.")
        _require_types(path, record)
    return str(kinds[0][1]), records


def _record(path: Path, number: int, line: str) -> Record:
    try:
        value = parse_json(line)
    except ValueError as error:
        raise DataError(f"{path}, line {number}: it is no JSON: {error}.") from error
    if not isinstance(value, dict):
        raise DataError(f"{path}, line {number}: it is a {type(value).__name__}; expected is an object with {_EXPECTED}.")
    return Record(number, value)


def _form(record: Record) -> str | None:
    return next((kind for keys, kind in FORMS if keys <= set(record.values)), None)


def _require_types(path: Path, record: Record) -> None:
    values = record.values
    for key in ("prompt", "completion", "text"):
        if key in values and not isinstance(values[key], str):
            raise DataError(f"{path}, line {record.line}: {key} is {shown(values[key])}, and it must be text.")
    if "messages" in values:
        messages = values["messages"]
        is_talk = isinstance(messages, list) and len(messages) > 1 and all(isinstance(each, dict) and isinstance(each.get("content"), str) for each in messages)
        if not is_talk or messages[-1].get("role") != "assistant":
            raise DataError(f"{path}, line {record.line}: messages must be a list of objects with role and content, whose last one is the assistant's.")
    if "choices" in values:
        choices = values["choices"]
        if not isinstance(choices, list) or len(choices) < 2 or not all(isinstance(each, str) and each for each in choices):
            raise DataError(f"{path}, line {record.line}: choices is {shown(choices)}, and it must be a list of two texts or more.")
        if _right(values) is None:
            raise DataError(f"{path}, line {record.line}: answer is {shown(values['answer'])}, and it must be one of the choices, or its number from 0.")


def _right(values: dict[str, Any]) -> int | None:
    choices, answer = values["choices"], values["answer"]
    if isinstance(answer, str):
        return choices.index(answer) if answer in choices else None
    return answer if isinstance(answer, int) and not isinstance(answer, bool) and 0 <= answer < len(choices) else None


class Evaluator:
    """A model that is asked. batch_size: windows, prompts or choices at once. seq_len: tokens of a window."""

    def __init__(self, base: Base, device: str = "host", model: Any = None, *, batch_size: int = 8, seq_len: int | None = None, arithmetic: str = EXACT) -> None:
        self.writer = Writer(base, device, model, arithmetic=arithmetic)
        self.model, self.tokenizer = self.writer.model, self.writer.tokenizer
        self.batch_size = batch_size
        self.seq_len = seq_len or min(self.writer.positions, 1024)
        if self.seq_len > self.writer.positions:
            raise UsageError(f"--seq-len is {self.seq_len:,}, and the model has {self.writer.positions:,} positions.")

    def run(self, kind: str, records: Sequence[Record], *, max_tokens: int = 200) -> dict[str, Any]:
        """The results by their names. kind: as `read` gives it."""
        if kind == "perplexity":
            return self.perplexity([record.values["text"] for record in records])
        return self.choice(records) if kind == "choice" else self.match(records, max_tokens)

    def perplexity(self, texts: Sequence[str]) -> dict[str, Any]:
        """nats_per_token, perplexity, bits_per_byte, tokens, bytes. The first token of a text is predicted from the token that begins a
        text, and where there is none it is left out, with its bytes."""
        nats, tokens, size_bytes = 0.0, 0, 0
        for text in texts:
            ids = self.tokenizer(text, add_special_tokens=False).input_ids
            first = self.tokenizer.bos_token_id if self.tokenizer.bos_token_id is not None else self.tokenizer.eos_token_id
            left_out = 0 if first is not None or not ids else len(self.tokenizer.decode(ids[:1]).encode())
            row = [first, *ids] if first is not None else ids
            rows = [row[begin : begin + self.seq_len + 1] for begin in range(0, max(len(row) - 1, 0), self.seq_len)]
            nats += sum(float(each.sum()) for each in self._nats(rows, [1] * len(rows)))
            tokens += max(len(row) - 1, 0)
            size_bytes += len(text.encode()) - left_out
        if not tokens or not size_bytes:
            raise DataError("There is nothing to predict: the text has no token after its first.")
        return {"nats_per_token": nats / tokens, "perplexity": math.exp(nats / tokens), "bits_per_byte": nats / math.log(2) / size_bytes, "tokens": tokens, "bytes": size_bytes}

    def choice(self, records: Sequence[Record]) -> dict[str, Any]:
        """accuracy by the probability of all tokens, accuracy_per_byte by that for each byte, and how many were asked."""
        right = right_per_byte = 0
        rows, starts = zip(*(self._continued(record.values["prompt"], choice) for record in records for choice in record.values["choices"]), strict=True)
        found = (float(each.sum()) for each in self._nats(rows, starts))
        for record in records:
            choices = record.values["choices"]
            nats = torch.tensor([next(found) for _ in choices])
            sizes = torch.tensor([len(choice.encode()) for choice in choices])
            right += int(nats.argmin()) == _right(record.values)
            right_per_byte += int((nats / sizes).argmin()) == _right(record.values)
        return {"accuracy": right / len(records), "accuracy_per_byte": right_per_byte / len(records), "count": len(records)}

    def match(self, records: Sequence[Record], max_tokens: int) -> dict[str, Any]:
        """exact_match: the share of likeliest texts that are the completion."""
        sampling = Sampling(max_tokens=max_tokens, temperature=0)
        has_template = bool(self.tokenizer.chat_template)
        right = 0
        for part in self._batches(records):
            talks = [record.values["messages"][:-1] if "messages" in record.values else [{"role": "user", "content": record.values["prompt"]}] for record in part]
            is_talk = has_template or "messages" in part[0].values
            prompts = [templated(self.writer.base, talk) for talk in talks] if is_talk else [record.values["prompt"] for record in part]
            wanted = [record.values["messages"][-1]["content"] if "messages" in record.values else record.values["completion"] for record in part]
            written = self.writer.write(prompts, sampling, is_templated=is_talk)
            right += sum(one.text.strip() == want.strip() for one, want in zip(written, wanted, strict=True))
        return {"exact_match": right / len(records), "count": len(records)}

    def _continued(self, prompt: str, choice: str) -> tuple[list[int], int]:
        """The tokens of both together, and where the choice begins. A space is put between them where neither has one."""
        between = "" if not prompt or prompt[-1].isspace() or choice[0].isspace() else " "
        before, whole = (self.tokenizer(text).input_ids for text in (prompt, prompt + between + choice))
        first = [] if before else self.writer.first()
        row, start = [*first, *whole], min(len(first) + len(before), len(first) + len(whole) - 1)
        if len(row) > self.writer.positions:
            raise UsageError(f"A prompt with its choice has {len(row):,} tokens, and the model has {self.writer.positions:,} positions.")
        return row, max(start, 1)

    def _nats(self, rows: Sequence[Sequence[int]], starts: Sequence[int]) -> Iterator[torch.Tensor]:
        """For each row the negative logarithm of the probability of its tokens from `start` on, given those before, float64."""
        for part, begins in zip(self._batches(rows), self._batches(starts), strict=True):
            scores = self.scores([row[:-1] for row in part])
            for row, start, found in zip(part, begins, scores, strict=False):
                chosen = found[start - 1 : len(row) - 1].float().log_softmax(-1).gather(1, torch.tensor(row[start:])[:, None])
                yield -chosen[:, 0].double()

    def scores(self, rows: Sequence[Sequence[int]]) -> torch.Tensor:
        """The logits (B, S, V) of every place in rows, filled up behind, where a causal model does not look; in programs to few widths and the same
        number of rows, so that few are compiled."""
        width = max(map(len, rows))
        if self.writer.device != "host":
            width = max(width, min(width_of(width), self.writer.positions))
            rows = [*rows, *[rows[0]] * (self.batch_size - len(rows))]
        ids = torch.tensor([[*row, *[0] * (width - len(row))] for row in rows])
        mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
        with self.writer.asking():
            return self.model(input_ids=ids, attention_mask=mask, use_cache=False).logits  # type: ignore[no-any-return]

    def _batches(self, items: Sequence[Any]) -> Iterator[Sequence[Any]]:
        return (items[begin : begin + self.batch_size] for begin in range(0, len(items), self.batch_size))

