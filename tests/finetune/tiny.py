"""Small models of several architectures with random weights, as folders in Hugging Face's layout, with a tokenizer of bytes."""

from pathlib import Path

import tokenizers
import torch
import transformers
from tokenizers import decoders, models, pre_tokenizers

VOCAB = 288
TEMPLATE = (
    "{% if tools %}<tools>{{ tools | tojson }}</tools>{% endif %}"
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}</{{ m.role }}>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
_COMMON = dict(vocab_size=VOCAB, max_position_embeddings=512, bos_token_id=256, eos_token_id=256, pad_token_id=None)
_SIZES = dict(hidden_size=64, intermediate_size=96, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2)
CONFIGS = {
    "llama": lambda: transformers.LlamaConfig(**_COMMON, **_SIZES, tie_word_embeddings=False),
    "smollm": lambda: transformers.LlamaConfig(**_COMMON, **{**_SIZES, "hidden_size": 48, "num_attention_heads": 3, "num_key_value_heads": 1}, tie_word_embeddings=True),
    "qwen2": lambda: transformers.Qwen2Config(**_COMMON, **_SIZES, tie_word_embeddings=True),
    "qwen3": lambda: transformers.Qwen3Config(**_COMMON, **_SIZES, head_dim=32, tie_word_embeddings=True),
    "mistral": lambda: transformers.MistralConfig(**_COMMON, **_SIZES, head_dim=32, sliding_window=64),
    "phi3": lambda: transformers.Phi3Config(**_COMMON, **_SIZES),
    "gemma2": lambda: transformers.Gemma2Config(**_COMMON, **_SIZES, head_dim=32, query_pre_attn_scalar=32, sliding_window=64),
    "gemma3": lambda: transformers.Gemma3TextConfig(
        **_COMMON, **_SIZES, head_dim=32, query_pre_attn_scalar=32, sliding_window=64, layer_types=["sliding_attention", "sliding_attention", "full_attention"]
    ),
    "gpt2": lambda: transformers.GPT2Config(
        vocab_size=VOCAB, n_positions=512, n_embd=64, n_layer=3, n_head=4, bos_token_id=256, eos_token_id=256, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0
    ),
}


def tokenizer(*, template: str | None = TEMPLATE) -> transformers.PreTrainedTokenizerFast:
    """A token for each byte, and 256 for the end of a text."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    inner = tokenizers.Tokenizer(models.BPE({letter: number for number, letter in enumerate(letters)}, []))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    made = transformers.PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<|endoftext|>", bos_token="<|endoftext|>")
    made.chat_template = template
    return made


def model(kind: str, *, dtype: torch.dtype = torch.float32, seed: int = 0, **changes: object) -> transformers.PreTrainedModel:
    """changes: of its config."""
    config = CONFIGS[kind]()
    config.update(changes)
    torch.manual_seed(seed)
    return transformers.AutoModelForCausalLM.from_config(config, dtype=dtype)


def folder(path: Path, kind: str, *, dtype: torch.dtype = torch.float32, shard: str = "1GB", template: str | None = TEMPLATE, **changes: object) -> Path:
    """The model `kind` with its tokenizer, saved in `path`, which is given back."""
    made = model(kind, dtype=dtype, **changes)
    made.save_pretrained(path, max_shard_size=shard)
    tokenizer(template=template).save_pretrained(path)
    return path
