"""A model of torchane's own as others read it: a run folder's weights, and its tokenizer with what `torchane generate` does around it.

Every text of a run begins with END, which the run's tokenizer.json leaves to its caller. In the files that are written from it the
tokenizer itself puts END there, so that transformers, mlx-lm and llama.cpp hand the model what it was trained on.
"""

import json
from typing import Any

from torchane.convert import spm
from torchane.convert.model import Model, Weights
from torchane.data.tokenizer import END, FOR_TRANSFORMERS, Tokenizer
from torchane.models.build import CausalLM


def model_of(own: CausalLM, tokenizer: Tokenizer | None, source: str) -> Model:
    """tokenizer: None for a run on bare tokens."""
    named = {name: weight.detach() for name, weight in own.named_parameters()}
    config: dict[str, Any] = own.config.to_dict()
    files: dict[str, bytes] = {}
    if tokenizer is not None:
        config |= {"bos_token_id": tokenizer.end_id, "eos_token_id": tokenizer.end_id}
        described = json.loads(tokenizer.to_text())
        described["post_processor"] = spm.begins_with(END, tokenizer.end_id)
        files = {"tokenizer.json": json.dumps(described, ensure_ascii=False).encode(), "tokenizer_config.json": json.dumps(FOR_TRANSFORMERS, indent=2).encode()}
    shapes = {name: tuple(weight.shape) for name, weight in named.items()}
    return Model(config, Weights(shapes, named.__getitem__, source), files, source)
