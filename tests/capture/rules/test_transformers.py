"""Untouched `transformers` models, a training step each, padded batch and dropout on: every node that a
rule takes against torch in float64, and no float op left to the host but those named here."""

import pytest
import torch
import transformers
from harness import check_model

pytestmark = [pytest.mark.long, pytest.mark.filterwarnings("ignore")]

SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
TEXT = {**SMALL, "vocab_size": 64, "num_key_value_heads": 2, "head_dim": 8, "use_cache": False}
GPT2 = {"vocab_size": 64, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "use_cache": False}
STAGES = {"hidden_sizes": [8, 16], "depths": [1, 1], "num_labels": 5}

LANGUAGE = {
    "Llama": ("LlamaForCausalLM", "LlamaConfig", TEXT),
    "Qwen3": ("Qwen3ForCausalLM", "Qwen3Config", TEXT),
    "Mistral, sliding window": ("MistralForCausalLM", "MistralConfig", {**TEXT, "sliding_window": 4}),
    "Gemma 2, softcap": ("Gemma2ForCausalLM", "Gemma2Config", {**TEXT, "sliding_window": 4}),
    "GPT-2": ("GPT2LMHeadModel", "GPT2Config", {**GPT2, "bos_token_id": 0, "eos_token_id": 0}),
    "GPT-NeoX": ("GPTNeoXForCausalLM", "GPTNeoXConfig", {**SMALL, "vocab_size": 64, "use_cache": False}),
    "BERT": ("BertForMaskedLM", "BertConfig", {**SMALL, "vocab_size": 64}),
}
VISION = {
    "ViT": ("ViTForImageClassification", "ViTConfig", {**SMALL, "image_size": 32, "patch_size": 8, "num_labels": 5}),
    "ConvNeXt": ("ConvNextForImageClassification", "ConvNextConfig", {**STAGES, "num_stages": 2}),
    "ResNet": ("ResNetForImageClassification", "ResNetConfig", {**STAGES, "embedding_size": 8, "layer_type": "basic"}),
}

#: What runs on the host: looking up, indices, the draw of a dropout mask, the loss, running statistics.
HOST = {"embedding", "embedding_dense_backward", "arange", "index", "gather", "nll_loss_forward", "nll_loss_backward",
        "empty", "bernoulli", "_foreach_mul", "_foreach_lerp"}  # fmt: skip


class Loss(torch.nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, **inputs):
        return self.model(**inputs).loss


def left_to_the_host(entry, inputs):
    model, config, options = entry
    torch.manual_seed(0)
    built = getattr(transformers, model)(getattr(transformers, config)(**options)).train()
    _, declined = check_model(Loss(built), **inputs)
    integers = ("int64", "bool", "int32")
    return {op.split(".")[1] for op, reason in declined.items() if not any(word in reason for word in integers)}


@pytest.mark.parametrize("name", LANGUAGE)
def test_language_model(name):
    tokens = torch.randint(64, (2, 16), generator=torch.Generator().manual_seed(0))
    mask = torch.ones(2, 16, dtype=torch.long)
    mask[1, 10:] = 0
    inputs = {"input_ids": tokens, "attention_mask": mask, "labels": tokens.masked_fill(mask == 0, -100)}
    assert left_to_the_host(LANGUAGE[name], inputs) <= HOST


@pytest.mark.parametrize("name", VISION)
def test_vision_model(name):
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert left_to_the_host(VISION[name], {"pixel_values": images, "labels": torch.tensor([1, 2])}) <= HOST
