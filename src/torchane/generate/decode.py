"""Continue a sequence of tokens, one at a time.

    tokens ─► model with a key-value cache ─► logits of the last ─► what sampling.py says ─► token

It runs in PyTorch on the host, in float32. The draws come from the seed alone; a temperature of 0
takes the likeliest token.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from torchane.errors import UsageError
from torchane.generate.sampling import Sampling, kept, penalised, require_finite
from torchane.models.build import CausalLM
from torchane.models.common import KeyValueCache


def decode(
    model: CausalLM,
    tokens: Sequence[int],
    *,
    max_tokens: int,
    temperature: float = 0.8,
    top_k: int | None = None,
    top_p: float = 1.0,
    min_p: float = 0.0,
    repetition_penalty: float = 1.0,
    seed: int = 0,
    end_id: int | None = None,
    vocab_size: int | None = None,
) -> Iterator[int]:
    """Yields up to max_tokens further tokens, ending before end_id. tokens: at least one.

    Only the first vocab_size tokens are drawn: a model may have more rows than its tokenizer has tokens.
    Where the model's positions run out, it goes on from the later half of what it has seen.
    Raises UsageError where an argument is out of range.
    """
    if not tokens:
        raise UsageError("There is nothing to continue: give at least one token.")
    Sampling(max_tokens, temperature, top_p, top_k, min_p, repetition_penalty, seed)
    generator = torch.Generator().manual_seed(seed)
    positions = model.config.max_position_embeddings
    seen = list(tokens)[-positions:]
    cache = KeyValueCache(model.config)
    fed = 0
    for _ in range(max_tokens):
        if len(seen) > positions:
            seen = seen[-max(1, positions // 2) :]
            cache, fed = KeyValueCache(model.config), 0
        with torch.no_grad():
            logits = model(torch.tensor([seen[fed:]]), cache)[0, -1, :vocab_size]
        fed = len(seen)
        token = draw(penalised(logits, seen, repetition_penalty), temperature, top_k, generator, top_p, min_p)
        if token == end_id:
            return
        seen.append(token)
        yield token


def draw(logits: Tensor, temperature: float, top_k: int | None, generator: torch.Generator, top_p: float = 1.0, min_p: float = 0.0) -> int:
    """logits (V,) -> a token, drawn from softmax(logits / temperature) over the top_k largest, of these over what top_p and min_p keep.
    Raises NumericsError where a logit is not a finite number.
    """
    require_finite(logits)
    if temperature == 0:
        return int(logits.argmax())
    if top_k and top_k < logits.numel():
        values, tokens = logits.topk(top_k)
        return int(tokens[draw(values, temperature, None, generator, top_p, min_p)])
    probabilities = torch.softmax((logits.double() - logits.max()) / temperature, dim=-1)
    return int(torch.multinomial(kept(probabilities, top_p, min_p), 1, generator=generator))
