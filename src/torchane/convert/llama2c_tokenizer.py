"""The tokenizer.bin of llama2.c: a score and a text for each token of a SentencePiece vocabulary.

    u32 longest token | for each token: f32 score, i32 bytes, text            (the vocabulary's size stands in the model)

Spaces are spaces there, not marks; tokens 0, 1, 2 are unknown, beginning, end; 3 to 258 are the bytes.
Source: karpathy/llama2.c, tokenizer.py, run.c.
"""

import json
import struct
from pathlib import Path

from torchane.convert import spm
from torchane.convert.files import open_input
from torchane.errors import ParseError, UsageError

NAME = "tokenizer.bin"
_LARGEST_BYTES = 64 << 20
_FIRST_BYTE, _BYTES = 3, 256
_MARKED = {1: "<s>", 2: "</s>"}


def read(path: Path) -> tuple[list[float], list[bytes]]:
    """Scores and texts. Raises ParseError."""
    with open_input(path, _LARGEST_BYTES) as file:
        data = file.read()
    scores, texts = [], []
    offset = 4
    while offset < len(data):
        if offset + 8 > len(data):
            raise ParseError(f"{path} ends within token {len(texts)}. It is cut short, or no tokenizer.bin of llama2.c.")
        score, length = struct.unpack_from("<fi", data, offset)
        offset += 8
        if not 0 <= length <= len(data) - offset:
            raise ParseError(f"{path}: token {len(texts)} would have {length:,} bytes. It is damaged, or no tokenizer.bin of llama2.c.")
        scores.append(score)
        texts.append(data[offset : offset + length])
        offset += length
    if len(texts) <= _FIRST_BYTE + _BYTES:
        raise ParseError(f"{path} has {len(texts)} tokens, and a llama2.c vocabulary has more than {_FIRST_BYTE + _BYTES}.")
    return scores, texts


def files_for(model: Path, given: Path | None, vocab_size: int) -> dict[str, bytes]:
    """tokenizer.json and its config, from the tokenizer.bin given or beside the model; {} where there is none that fits.
    Raises ParseError where the one that was given does not fit."""
    path = given or model.parent / NAME
    if given is None and not path.is_file():
        return {}
    scores, texts = read(path)
    if len(texts) != vocab_size:
        if given is None:
            return {}
        raise ParseError(f"{path} has {len(texts):,} tokens and {model} {vocab_size:,}: they do not belong together.")
    return {"tokenizer.json": to_json(path, scores, texts).encode(), "tokenizer_config.json": _CONFIG}


_CONFIG = json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "add_bos_token": True}, indent=2).encode()


def to_json(path: Path, scores: list[float], texts: list[bytes]) -> str:
    """A `tokenizer.json`. Raises ParseError."""
    try:
        pieces = [_MARKED.get(number, text.decode().replace(" ", spm.SPACE)) for number, text in enumerate(texts)]
    except UnicodeDecodeError as error:
        raise ParseError(f"{path}: a token is not UTF-8: {error}.") from error
    normal = [piece for number, piece in enumerate(pieces) if number >= _FIRST_BYTE + _BYTES]
    kinds = [spm.UNKNOWN, spm.CONTROL, spm.CONTROL, *[spm.BYTE] * _BYTES, *[spm.NORMAL] * len(normal)]
    if pieces[_FIRST_BYTE : _FIRST_BYTE + _BYTES] != [f"<0x{byte:02X}>" for byte in range(_BYTES)]:
        raise ParseError(f"{path}: tokens 3 to 258 are not the bytes, as in every tokenizer.bin of llama2.c.")
    if len(set(pieces)) != len(pieces):
        raise ParseError(f"{path}: a token is there twice.")
    vocab = {piece: number for number, piece in enumerate(pieces)}
    return spm.tokenizer_json(pieces, kinds, spm.merges_of(vocab, scores, normal), unknown=0, add_space=True, first=1)


def write(pieces: list[str], kinds: list[int], scores: list[float], path: Path) -> None:
    """Raises UsageError for a vocabulary whose first tokens are not those that run.c has built in."""
    if [kind != spm.NORMAL for kind in kinds[: _FIRST_BYTE + _BYTES + 1]] != [True] * (_FIRST_BYTE + _BYTES) + [False] or kinds[_FIRST_BYTE] != spm.BYTE:
        raise UsageError("llama2.c wants unknown, beginning, end and then the 256 bytes as the first tokens; this vocabulary has others.")
    texts = [f"\n{_MARKED[n]}\n".encode() if n in _MARKED else piece.replace(spm.SPACE, " ").encode() for n, piece in enumerate(pieces)]
    with open(path, "wb") as file:
        file.write(struct.pack("<I", max(len(text) for text in texts)))
        for number, text in enumerate(texts):
            score = scores[number] if kinds[number] == spm.NORMAL else 0.0
            file.write(struct.pack("<fi", score, len(text)) + text)
