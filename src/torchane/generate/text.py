"""Continue a prompt: text in, pieces of text out as soon as they are certain."""

from collections.abc import Iterator

from torchane.data.tokenizer import Tokenizer
from torchane.errors import UsageError
from torchane.generate.decode import decode
from torchane.models.build import CausalLM

UNFINISHED = "\ufffd"  # how bytes look that do not make a character, perhaps because the rest is yet to come


def continue_text(
    model: CausalLM,
    tokenizer: Tokenizer,
    prompt: str,
    *,
    max_tokens: int,
    temperature: float = 0.8,
    top_k: int | None = None,
    seed: int = 0,
) -> Iterator[str]:
    """Yields what follows the prompt, one piece a token; "" where a character is still incomplete.

    The prompt stands at the beginning of a document, as in training; it ends where the model ends the
    document, or after max_tokens. Raises UsageError where model and tokenizer do not belong together, or where the
    prompt is no text.
    """
    try:
        prompt.encode()
    except UnicodeEncodeError as error:
        raise UsageError(f"The prompt is not UTF-8 text: {prompt!a}. Give it in UTF-8.") from error
    if tokenizer.vocab_size > model.config.vocab_size:
        raise UsageError(
            f"The tokenizer has {tokenizer.vocab_size} tokens and the model {model.config.vocab_size}: "
            "they are not of the same run."
        )
    return _pieces(model, tokenizer, prompt, max_tokens, temperature, top_k, seed)


def _pieces(
    model: CausalLM, tokenizer: Tokenizer, prompt: str, max_tokens: int, temperature: float, top_k: int | None, seed: int
) -> Iterator[str]:
    tokens = [tokenizer.end_id, *tokenizer.encode(prompt)]
    new: list[int] = []
    said = ""
    for token in decode(
        model,
        tokens,
        max_tokens=max_tokens,
        temperature=temperature,
        top_k=top_k,
        seed=seed,
        end_id=tokenizer.end_id,
        vocab_size=tokenizer.vocab_size,
    ):
        new.append(token)
        text = tokenizer.decode(new)
        whole = text.rstrip(UNFINISHED)
        yield whole[len(said) :]
        said = whole
    yield tokenizer.decode(new)[len(said) :]
