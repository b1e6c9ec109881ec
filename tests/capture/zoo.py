"""Small configurations of model families, each with a training batch; dropout on, text padded."""

from collections.abc import Callable
from typing import Any

import torch
import transformers
from torch import nn

from torchane.models.build import build_model
from torchane.models.config import GPT2Config, LlamaConfig, Qwen3Config

SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
TEXT = {**SMALL, "vocab_size": 64, "num_key_value_heads": 2, "head_dim": 8, "use_cache": False, "attention_dropout": 0.1}
STAGES = {"hidden_sizes": [8, 16], "depths": [1, 1], "num_labels": 5}
PATCHES = {"image_size": 16, "patch_size": 8, "num_labels": 5, "hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1}
OWN = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 32,
}  # fmt: skip

Build = Callable[[], nn.Module]


class LossOf(nn.Module):
    """Our own models end in logits; this is what trains them."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        logits = self.model(input_ids)
        return nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())


class Classifier(nn.Module):
    """Any stack of layers with a classification loss."""

    def __init__(self, *layers: nn.Module):
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, pixel_values: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return nn.functional.cross_entropy(self.layers(pixel_values), labels)


class Residual(nn.Module):
    """ResNet's basic block with a stride."""

    def __init__(self, inputs: int, outputs: int, act: nn.Module):
        super().__init__()
        self.act = act
        self.conv1, self.bn1 = nn.Conv2d(inputs, outputs, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(outputs)
        self.conv2, self.bn2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs)
        self.down = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride=2, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.bn2(self.conv2(self.act(self.bn1(self.conv1(x)))))
        return self.act(y + self.down(x))


def resnet(act: nn.Module, pool: nn.Module) -> nn.Module:
    stem = nn.Conv2d(3, 8, 7, stride=2, padding=3, bias=False), nn.BatchNorm2d(8), act, pool
    return Classifier(*stem, Residual(8, 16, act), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 5))


def mlp() -> nn.Module:
    return Classifier(nn.Flatten(), nn.Linear(3 * 16 * 16, 64), nn.GELU(), nn.Dropout(0.2), nn.Linear(64, 5))


def hugging_face(model: str, config: str, **values: Any) -> Build:
    return lambda: getattr(transformers, model)(getattr(transformers, config)(**values))


def gpt2() -> nn.Module:
    model = hugging_face(
        "GPT2LMHeadModel", "GPT2Config", vocab_size=64, n_embd=32, n_layer=2, n_head=4, n_positions=64,
        use_cache=False, bos_token_id=0, eos_token_id=0,
    )()  # fmt: skip
    model.loss_type = "ForCausalLM"  # else transformers logs that it guesses this, and a log line breaks the graph
    return model


FAMILIES: dict[str, Build] = {
    "our Llama": lambda: LossOf(build_model(LlamaConfig(**OWN))),
    "our GPT-2": lambda: LossOf(build_model(GPT2Config(vocab_size=64, n_positions=32, n_embd=32, n_layer=2, n_head=4))),
    "our Qwen3": lambda: LossOf(build_model(Qwen3Config(**OWN))),
    "Llama": hugging_face("LlamaForCausalLM", "LlamaConfig", **TEXT),
    "Qwen3": hugging_face("Qwen3ForCausalLM", "Qwen3Config", **TEXT),
    "Mistral": hugging_face("MistralForCausalLM", "MistralConfig", **TEXT, sliding_window=4),
    # Gemma norms what a branch gives. At 32 channels and the default 0.02 that is 1e-3, whose squares fp16 barely holds.
    "Gemma 2": hugging_face("Gemma2ForCausalLM", "Gemma2Config", **TEXT, sliding_window=4, initializer_range=0.06),
    "GPT-2": gpt2,
    "GPT-NeoX": hugging_face(
        "GPTNeoXForCausalLM", "GPTNeoXConfig", **SMALL, vocab_size=64, use_cache=False, attention_dropout=0.1, hidden_dropout=0.1
    ),
    "BERT": hugging_face("BertForMaskedLM", "BertConfig", **SMALL, vocab_size=64),
    "MLP": mlp,
    "ResNet": lambda: resnet(nn.ReLU(), nn.MaxPool2d(3, 2, 1)),
    "smooth ResNet": lambda: resnet(nn.SiLU(), nn.AvgPool2d(2)),
    "Hugging Face ResNet": hugging_face(
        "ResNetForImageClassification", "ResNetConfig", **STAGES, embedding_size=8, layer_type="basic"
    ),
    # A fresh ConvNeXt scales its branches by 1e-6, and their gradients then lie below fp16's range (docs/limits.md).
    "ConvNeXt": hugging_face(
        "ConvNextForImageClassification", "ConvNextConfig", **STAGES, num_stages=2, layer_scale_init_value=0.5
    ),
    "ViT": hugging_face("ViTForImageClassification", "ViTConfig", **SMALL, **PATCHES),
}  # fmt: skip

IMAGES = {"MLP": 16, "ResNet": 32, "smooth ResNet": 32, "Hugging Face ResNet": 32, "ConvNeXt": 32, "ViT": 16}


def batch_for(name: str, seed: int = 0, padding: str = "right") -> dict[str, torch.Tensor]:
    """Keyword arguments of one training call; the second text is padded at its end, or at its beginning."""
    generator = torch.Generator().manual_seed(seed)
    if name in IMAGES:
        return image_batch(IMAGES[name], generator)
    return text_batch(generator, padding, masked=not name.startswith("our"))


def image_batch(size: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
    return {"pixel_values": torch.randn(4, 3, size, size, generator=generator), "labels": torch.tensor([1, 2, 3, 4])}


def text_batch(generator: torch.Generator, padding: str, masked: bool = True) -> dict[str, torch.Tensor]:
    """16 tokens each; the second text has six of padding."""
    tokens = torch.randint(64, (2, 16), generator=generator)
    mask = torch.ones(2, 16, dtype=torch.long)
    mask[1, slice(10, 16) if padding == "right" else slice(0, 6)] = 0
    batch = {"input_ids": tokens, "labels": tokens.masked_fill(mask == 0, -100)}
    return {**batch, "attention_mask": mask} if masked else batch
