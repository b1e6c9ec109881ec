"""The tokenizer of a GGUF, from and to a `tokenizer.json`.

    byte-level BPE     tokens, kinds, merges, and a name for how text is split first (PRE)       tokenizer.ggml.model "gpt2"
    SentencePiece BPE  tokens, kinds, scores (spm.py)                                            tokenizer.ggml.model "llama"

A GGUF does not hold the rule that splits text, only a name that llama.cpp knows a rule for. A tokenizer whose rule has no such name is
refused: llama.cpp would cut the same text into other tokens. Source: llama.cpp, src/llama-vocab.cpp.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torchane.convert import spm
from torchane.convert.spm import BYTE, CONTROL, NORMAL, UNKNOWN, UNUSED, USER
from torchane.errors import ParseError, UsageError, shown

_BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def _split(numbers: str) -> dict[str, Any]:
    pattern = {"type": "Split", "pattern": {"Regex": _WORDS % numbers}, "behavior": "Isolated", "invert": False}
    return {"type": "Sequence", "pretokenizers": [pattern, {**_BYTES, "use_regex": False}]}


#: llama.cpp's name -> the rule in a tokenizer.json. "llama-bpe" takes whole words that are tokens before any merge.
PRE: Mapping[str, dict[str, Any]] = {
    "gpt-2": _BYTES,
    "llama-bpe": _split(r"\p{N}{1,3}"),
    "qwen2": _split(r"\p{N}"),
    "smollm": {"type": "Sequence", "pretokenizers": [{"type": "Digits", "individual_digits": True}, _BYTES]},
}
WHOLE_WORDS = ("llama-bpe",)
#: llama.cpp puts no other form in place of a text before it splits it; text that is in NFC is not changed by this one.
_HARMLESS_NORMALIZERS = (None, {"type": "NFC"})


@dataclass(frozen=True)
class Vocabulary:
    """model: "gpt2" or "llama". pre: a name of PRE, or "default". special: ids by "bos", "eos", "unknown", "padding"."""

    model: str
    pre: str
    tokens: list[str]
    kinds: list[int]
    merges: list[tuple[str, str]] = field(default_factory=list)
    scores: list[float] | None = None
    add_space: bool = True
    add_bos: bool = False
    special: Mapping[str, int] = field(default_factory=dict)
    chat_template: str | None = None


def from_files(files: Mapping[str, bytes], config: Mapping[str, Any], source: str) -> Vocabulary | None:
    """The vocabulary of a model's tokenizer files; None where it has none. Raises UsageError for one that GGUF cannot say."""
    if "tokenizer.json" not in files:
        return None
    described, about = (_object(files, name, source) for name in ("tokenizer.json", "tokenizer_config.json"))
    model = described.get("model") or {}
    if model.get("type") != "BPE" or model.get("dropout"):
        raise UsageError(f"{source}: its tokenizer is {shown(model.get('type'))}; GGUF files are written for BPE and SentencePiece's BPE.")
    vocab, added = model["vocab"], {token["id"]: token for token in described.get("added_tokens", [])}
    tokens, kinds = _tokens(vocab, added, config["vocab_size"], source)
    merges = [tuple(pair.split(" ", 1)) if isinstance(pair, str) else tuple(pair) for pair in model["merges"]]
    special = _special(about, config, {token: number for number, token in enumerate(tokens)})
    template = about.get("chat_template") if isinstance(about.get("chat_template"), str) else None
    if "chat_template.jinja" in files:
        template = files["chat_template.jinja"].decode()
    common = {"add_bos": _adds_bos(described, special.get("bos")), "special": special, "chat_template": template}
    if model.get("byte_fallback"):
        kinds = [BYTE if _is_byte(token) and kind == NORMAL else kind for token, kind in zip(tokens, kinds, strict=True)]
        if model.get("unk_token") in vocab:
            kinds[vocab[model["unk_token"]]] = UNKNOWN
            common["special"] = {**special, "unknown": vocab[model["unk_token"]]}
        add_space = _adds_space(described, source)
        scores = spm.scores_of(vocab, merges, source)
        scores += [scores[0]] * (len(tokens) - len(scores))
        return Vocabulary("llama", "default", tokens, kinds, scores=scores, add_space=add_space, **common)
    return Vocabulary("gpt2", _pre(described, source), tokens, kinds, merges, **common)


def _object(files: Mapping[str, bytes], name: str, source: str) -> dict[str, Any]:
    try:
        value = json.loads(files.get(name, b"{}"))
    except (ValueError, RecursionError) as error:
        raise ParseError(f"{source}: its {name} is no JSON: {error}.") from error
    if not isinstance(value, dict):
        raise ParseError(f"{source}: its {name} holds no object.")
    return value


def _tokens(vocab: Mapping[str, int], added: Mapping[int, Any], size: int, source: str) -> tuple[list[str], list[int]]:
    by_number = {number: token for token, number in vocab.items()} | {number: token["content"] for number, token in added.items()}
    if by_number and max(by_number) >= size:
        raise UsageError(f"{source}: its tokenizer has token {max(by_number)} and the model's vocab_size is {size}. They do not belong together.")
    tokens = [by_number.get(number, f"[PAD{number}]") for number in range(size)]
    kinds = [
        (CONTROL if added[number]["special"] else USER) if number in added else NORMAL if number in by_number else UNUSED
        for number in range(size)
    ]  # fmt: skip
    return tokens, kinds


def _special(about: Mapping[str, Any], config: Mapping[str, Any], numbers: Mapping[str, int]) -> dict[str, int]:
    """Ids of the tokens with a meaning: those that tokenizer_config.json names, else config.json's."""
    found: dict[str, int] = {}
    for name, key in (("bos", "bos_token"), ("eos", "eos_token"), ("unknown", "unk_token"), ("padding", "pad_token")):
        token = about.get(key)
        token = token.get("content") if isinstance(token, Mapping) else token
        number = numbers.get(token) if isinstance(token, str) else config.get(f"{key}_id")
        number = number[0] if isinstance(number, list) and number else number
        if isinstance(number, int) and 0 <= number < len(numbers):
            found[name] = number
    return found


def _adds_bos(described: Mapping[str, Any], bos: int | None) -> bool:
    """Whether a text gets the token that begins it: what the tokenizer does counts, not what its config says."""
    if bos is None:
        return False
    import tokenizers  # noqa: PLC0415  (a dependency, slow to import)

    ids = tokenizers.Tokenizer.from_str(json.dumps(described)).encode("a").ids
    return bool(ids) and ids[0] == bos


def _is_byte(token: str) -> bool:
    return len(token) == 6 and token.startswith("<0x") and token.endswith(">")


def _adds_space(described: Mapping[str, Any], source: str) -> bool:
    """Whether the first word gets a space before it, of a SentencePiece tokenizer in one of transformers' two spellings."""
    mark = {"type": "Replace", "pattern": {"String": " "}, "content": spm.SPACE}
    normalizer, pre = described.get("normalizer"), described.get("pre_tokenizer")
    if pre is None and normalizer == mark:
        return False
    if pre is None and normalizer == {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": spm.SPACE}, mark]}:
        return True
    if normalizer is None and isinstance(pre, Mapping) and pre.get("type") == "Metaspace" and pre.get("replacement") == spm.SPACE and not pre.get("split", True):
        return pre.get("prepend_scheme") != "never"
    raise UsageError(f"{source}: its SentencePiece tokenizer changes texts in a way that llama.cpp does not ({shown(normalizer)}, {shown(pre)}).")


def _pre(described: Mapping[str, Any], source: str) -> str:
    """llama.cpp's name of the rule that splits text. Raises UsageError where it has none."""
    pre, ignores = described.get("pre_tokenizer"), bool(described["model"].get("ignore_merges"))
    for name, rule in PRE.items():
        if _plain(pre) == _plain(rule) and ignores == (name in WHOLE_WORDS) and described.get("normalizer") in _HARMLESS_NORMALIZERS:
            return name
    raise UsageError(
        f"{source}: llama.cpp knows no name for how its tokenizer splits text ({shown(pre)}); the names known here are {', '.join(PRE)}. A GGUF "
        "would give other tokens for the same text. Export it with --to hf, and convert that folder with llama.cpp's convert_hf_to_gguf.py."
    )


def _plain(rule: Any) -> Any:
    """Without what makes no difference to the tokens."""
    if isinstance(rule, Mapping):
        return {key: _plain(value) for key, value in rule.items() if key != "trim_offsets"}
    return [_plain(value) for value in rule] if isinstance(rule, list) else rule


def to_files(vocabulary: Vocabulary, source: str) -> dict[str, bytes]:
    """tokenizer.json, its config and the chat template. Raises ParseError."""
    tokens, kinds, special = vocabulary.tokens, vocabulary.kinds, vocabulary.special
    first = special.get("bos") if vocabulary.add_bos else None
    if len({token for token, kind in zip(tokens, kinds, strict=True) if kind != UNUSED}) != sum(kind != UNUSED for kind in kinds):
        raise ParseError(f"{source}: a token of its vocabulary is there twice.")
    if vocabulary.model == "llama":
        vocab = {token: number for number, token in enumerate(tokens)}
        normal = [token for token, kind in zip(tokens, kinds, strict=True) if kind == NORMAL]
        merges = spm.merges_of(vocab, vocabulary.scores or [0.0] * len(tokens), normal)
        text = spm.tokenizer_json(tokens, kinds, merges, unknown=special.get("unknown"), add_space=vocabulary.add_space, first=first)
    else:
        text = _byte_level_json(vocabulary, first, source)
    about: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    for name, key in (("bos", "bos_token"), ("eos", "eos_token"), ("unknown", "unk_token"), ("padding", "pad_token")):
        if name in special:
            about[key] = tokens[special[name]]
    files = {"tokenizer.json": text.encode(), "tokenizer_config.json": json.dumps(about, indent=2).encode()}
    if vocabulary.chat_template:
        files["chat_template.jinja"] = vocabulary.chat_template.encode()
    return files


def _byte_level_json(vocabulary: Vocabulary, first: int | None, source: str) -> str:
    if vocabulary.pre not in PRE:
        raise ParseError(f"{source}: its tokenizer splits text by llama.cpp's rule {shown(vocabulary.pre)}; known here are {', '.join(PRE)}. Take the model's Hugging Face folder.")
    tokens, kinds = vocabulary.tokens, vocabulary.kinds
    return json.dumps({
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": spm.added_tokens(tokens, kinds),
        "normalizer": {"type": "NFC"} if vocabulary.pre == "qwen2" else None,
        "pre_tokenizer": PRE[vocabulary.pre],
        "post_processor": None if first is None else spm.begins_with(tokens[first], first),
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {
            "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None, "end_of_word_suffix": None, "fuse_unk": False,
            "byte_fallback": False, "ignore_merges": vocabulary.pre in WHOLE_WORDS,
            # All of them: tokenizers gives an added token that is not in it the next free number, whatever `id` says.
            "vocab": {token: number for number, (token, kind) in enumerate(zip(tokens, kinds, strict=True)) if kind != UNUSED},
            "merges": [list(pair) for pair in vocabulary.merges],
        },
    }, ensure_ascii=False)  # fmt: skip


def require_sound(tokens: Sequence[Any], kinds: Sequence[Any] | None, source: str) -> list[int]:
    """The kinds of tokens read from a file. Raises ParseError."""
    if kinds is None:
        return [NORMAL] * len(tokens)
    if len(kinds) != len(tokens) or not all(isinstance(kind, int) and NORMAL <= kind <= BYTE for kind in kinds):
        raise ParseError(f"{source}: its vocabulary has {len(tokens):,} tokens and {len(kinds):,} kinds of tokens, or kinds that there are not. It is damaged.")
    return list(kinds)
