"""The models that `torchane train --preset` knows, each with the settings that train it well.

`tiny` is for the first two minutes on any machine. The others are the shapes of karpathy/llama2.c
(README and train.py there), of OpenAI's GPT-2 and of a Qwen3 config.json, so that results meet published ones; their
batches are small enough for a laptop, and `--batch-size` or `--grad-accum` raises them.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from torchane.errors import UsageError, nearest
from torchane.models.config import Config, GPT2Config, LlamaConfig, Qwen3Config


@dataclass(frozen=True)
class TrainingDefaults:
    """How a preset is trained where the user says nothing else. One batch is batch_size x seq_len tokens."""

    batch_size: int
    seq_len: int
    steps: int
    lr: float
    warmup_steps: int
    weight_decay: float = 0.1
    eval_interval: int = 100
    checkpoint_interval: int = 100


@dataclass(frozen=True)
class Preset:
    """A named model. Its vocab_size is what a tokenizer may use at most."""

    name: str
    summary: str
    config: Config
    training: TrainingDefaults


def _llama2c(name: str, summary: str, training: TrainingDefaults, *, dim: int, layers: int, heads: int,
             kv_heads: int, hidden: int, vocab: int, positions: int, std: float = 0.02) -> Preset:  # fmt: skip
    """llama2.c's own words for the sizes, so that they can be checked against its table at a glance."""
    config = LlamaConfig(
        vocab_size=vocab,
        hidden_size=dim,
        intermediate_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        max_position_embeddings=positions,
        initializer_range=std,
    )
    return Preset(name, summary, config, training)


PRESETS: Mapping[str, Preset] = MappingProxyType({
    preset.name: preset
    for preset in (
        _llama2c(
            "tiny", "1.1 M parameters: learns in two minutes on two cores",
            TrainingDefaults(batch_size=16, seq_len=64, steps=1200, lr=3e-3, warmup_steps=50, eval_interval=200),
            # A narrow model learns to copy names far sooner from weights of 0.08 than from 0.02.
            dim=128, layers=4, heads=4, kv_heads=4, hidden=352, vocab=2048, positions=256, std=0.08,
        ),
        _llama2c(
            "stories260k", "0.26 M parameters, llama2.c's smallest",
            TrainingDefaults(batch_size=4, seq_len=512, steps=1000, lr=1e-3, warmup_steps=100, weight_decay=0.01),
            dim=64, layers=5, heads=8, kv_heads=4, hidden=172, vocab=512, positions=512,
        ),
        _llama2c(
            "stories15m", "15 M parameters, llama2.c's first",
            TrainingDefaults(batch_size=4, seq_len=256, steps=1000, lr=5e-4, warmup_steps=100),
            dim=288, layers=6, heads=6, kv_heads=6, hidden=768, vocab=32000, positions=256,
        ),
        _llama2c(
            "stories42m", "42 M parameters, llama2.c's second",
            TrainingDefaults(batch_size=2, seq_len=256, steps=1000, lr=5e-4, warmup_steps=100),
            dim=512, layers=8, heads=8, kv_heads=8, hidden=1376, vocab=32000, positions=1024,
        ),
        _llama2c(
            "stories110m", "110 M parameters, llama2.c's largest",
            TrainingDefaults(batch_size=1, seq_len=256, steps=1000, lr=4e-4, warmup_steps=100),
            dim=768, layers=12, heads=12, kv_heads=12, hidden=2048, vocab=32000, positions=1024,
        ),
        Preset(
            "gpt2", "124 M parameters, the smallest GPT-2, its dropout of 0.1 included",
            GPT2Config(),
            TrainingDefaults(batch_size=1, seq_len=256, steps=1000, lr=4e-4, warmup_steps=100),
        ),
        Preset(
            "qwen3-0.6b", "596 M parameters, the shape of Qwen3's smallest",
            Qwen3Config(
                vocab_size=151936, hidden_size=1024, intermediate_size=3072, num_hidden_layers=28,
                num_attention_heads=16, num_key_value_heads=8, head_dim=128, max_position_embeddings=40960,
            ),
            TrainingDefaults(batch_size=1, seq_len=128, steps=1000, lr=3e-4, warmup_steps=100),
        ),
    )
})  # fmt: skip


def preset(name: str) -> Preset:
    """The preset of that name. Raises UsageError that lists the names there are."""
    if name not in PRESETS:
        raise UsageError(f"There is no preset {name!r}{nearest(name, PRESETS)}. The presets are {', '.join(PRESETS)}.")
    return PRESETS[name]
