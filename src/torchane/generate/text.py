"""Continue a prompt with a model of ours: text in, pieces of text out as soon as they are certain."""

import time
from collections.abc import Iterator
from dataclasses import dataclass

from torchane.data.tokenizer import Tokenizer
from torchane.errors import UsageError
from torchane.generate.decode import decode
from torchane.generate.sampling import Sampling, Text
from torchane.models.build import CausalLM


@dataclass
class Written:
    """One prompt and what followed it. Times in seconds: to the first token, and of the others. end: "end", "stop", "length", or
    "context" where the model's positions ended it. tokens: of the text, without the one that ends it. note: what a reader has to know besides."""

    prompt: str
    prompt_tokens: int = 0
    text: str = ""
    tokens: int = 0
    prefill_s: float = 0.0
    decode_s: float = 0.0
    end: str = "length"
    note: str = ""


def require_text(prompt: str) -> None:
    """Raises UsageError where a prompt is no text."""
    try:
        prompt.encode()
    except UnicodeEncodeError as error:
        raise UsageError(f"The prompt is not UTF-8 text: {prompt!a}. Give it in UTF-8.") from error


def continue_text(
    model: CausalLM, tokenizer: Tokenizer, prompt: str, sampling: Sampling, written: Written | None = None
) -> Iterator[str]:
    """Yields what follows the prompt, in pieces; `written` is filled meanwhile.

    The prompt stands at the beginning of a document, as in training; it ends where the model ends the
    document, at a stop, or after max_tokens. Raises UsageError where model and tokenizer do not belong together, or where the
    prompt is no text, or longer than the model's positions.
    """
    require_text(prompt)
    if tokenizer.vocab_size > model.config.vocab_size:
        raise UsageError(
            f"The tokenizer has {tokenizer.vocab_size} tokens and the model {model.config.vocab_size}: "
            "they are not of the same run."
        )
    tokens = [tokenizer.end_id, *tokenizer.encode(prompt)]
    require_room(len(tokens), model.config.max_position_embeddings)
    return _pieces(model, tokenizer, tokens, sampling, written or Written(prompt))


def require_room(tokens: int, positions: int) -> None:
    """Raises UsageError where a prompt leaves a model no position to write at."""
    if tokens >= positions:
        raise UsageError(f"A prompt has {tokens:,} tokens, and the model has {positions:,} positions. Give a shorter one.")


def _pieces(model: CausalLM, tokenizer: Tokenizer, tokens: list[int], sampling: Sampling, written: Written) -> Iterator[str]:
    text = Text(tokenizer.decode, sampling.stop)
    written.prompt_tokens, start = len(tokens), time.perf_counter()
    for token in decode(
        model, tokens, max_tokens=sampling.max_tokens, temperature=sampling.temperature, top_k=sampling.top_k, top_p=sampling.top_p,
        min_p=sampling.min_p, repetition_penalty=sampling.repetition_penalty, seed=sampling.seed, end_id=tokenizer.end_id,
        vocab_size=tokenizer.vocab_size,
    ):  # fmt: skip
        now = time.perf_counter() - start
        written.prefill_s, written.decode_s = (written.prefill_s, now - written.prefill_s) if text.tokens else (now, 0.0)
        yield text.add(token)
        if text.is_over:
            break
    yield text.finish()
    written.text, written.tokens = text.text, text.tokens
    written.end = "stop" if text.is_over else "length" if text.tokens == sampling.max_tokens else "end"
    if len(tokens) + text.tokens > model.config.max_position_embeddings:
        written.note = f"The model has {model.config.max_position_embeddings:,} positions: whenever they were full it went on from the later half of its text."
