"""Tiny models made from configs, as transformers saves them, with tokenizers of the kinds that are exported."""

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

TEXT = ["The cat's hat, 1234 of them, sat on the mat; we'll see \u00e9t\u00e9 \u2014 \u4f60\u597d!\n\n  Two  spaces."] * 40
VOCAB = 320
#: Heads of keys fewer than of queries, and a head that is not hidden / heads.
SIZES: dict[str, Any] = {
    "vocab_size": VOCAB, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2,
    "max_position_embeddings": 128, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": None,
}  # fmt: skip


def save(folder: Path, kind: str = "llama", *, dtype: torch.dtype = torch.float32, tokenizer: bool = True, seed: int = 0, **changes: Any) -> Path:
    """A folder that transformers' save_pretrained wrote."""
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(seed)
    config = AutoConfig.for_model(kind, **{**SIZES, **changes})
    model = AutoModelForCausalLM.from_config(config).to(dtype)
    for name, weight in model.named_parameters():
        if weight.dim() == 1:  # norms of ones and biases of zeros would hide a wrong place
            weight.data += 0.1 * torch.randn_like(weight)
        else:
            weight.data *= 4 if "embed" not in name else 10
    model.save_pretrained(folder)
    if tokenizer:
        (folder / "tokenizer.json").write_text(byte_level())
        (folder / "tokenizer_config.json").write_text(json.dumps({
            "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>",
            "chat_template": "{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}",
        }))  # fmt: skip
    return folder


def byte_level(pre: Any = None, vocab: int = VOCAB) -> str:
    """A tokenizer.json as torchane trains them; pre: another rule that splits text."""
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre or pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab, special_tokens=["<|endoftext|>"], initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()), show_progress=False
    )
    inner.train_from_iterator(TEXT, trainer)
    return inner.to_str()


def logits(folder: Path, tokens: list[int], **options: Any) -> torch.Tensor:
    """transformers' logits (S, V) in float32."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager", **options).eval()
    with torch.no_grad():
        return model(torch.tensor([tokens])).logits[0]


def close(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """The relative error: the norm of the difference over the norm."""
    return float((ours - theirs).norm() / theirs.norm())


def with_weight(model: Any, name: str, tensor: torch.Tensor) -> Any:
    """The same Model with one weight in another's place."""
    from dataclasses import replace

    return replace(model, weights=model.weights.but({name: (tuple(tensor.shape), lambda: tensor)}))
