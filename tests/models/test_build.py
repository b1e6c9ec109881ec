"""GPT-2 and Qwen3 against transformers: same names, same logits, configs both ways."""

from contextlib import nullcontext

import pytest
import torch
import transformers
from torch._subclasses.fake_tensor import FakeTensorMode

from torchane.errors import ParseError
from torchane.models.build import build_model
from torchane.models.config import GPT2Config, Qwen3Config, read_config
from torchane.models.presets import preset
from torchane.native import pages

QWEN3 = Qwen3Config(
    vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, head_dim=16, max_position_embeddings=64,
)  # fmt: skip
GPT2 = GPT2Config(vocab_size=64, n_positions=64, n_embd=32, n_layer=2, n_head=4)
THEIRS = {"qwen3": transformers.Qwen3ForCausalLM, "gpt2": transformers.GPT2LMHeadModel}
CONFIGS = {"qwen3": transformers.Qwen3Config, "gpt2": transformers.GPT2Config}


@pytest.mark.parametrize("config", [QWEN3, GPT2], ids=["qwen3", "gpt2"])
@pytest.mark.filterwarnings("ignore")
def test_weights_pass_to_transformers_and_logits_agree(config) -> None:
    values = config.to_dict()
    ours = build_model(config).eval()
    theirs = THEIRS[values["model_type"]](CONFIGS[values["model_type"]](**values)).eval()
    theirs.load_state_dict({k: v for k, v in ours.state_dict().items() if k in theirs.state_dict()}, strict=True)
    tokens = torch.randint(64, (2, 12), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(ours(tokens), theirs(tokens).logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("config", [QWEN3, GPT2], ids=["qwen3", "gpt2"])
def test_a_config_comes_back_from_its_json(config) -> None:
    assert read_config(config.to_dict()) == config


def test_published_sizes() -> None:
    with torch.device("meta"):
        sizes = {name: sum(p.numel() for p in _unfilled(name).parameters()) for name in ("gpt2", "stories42m")}
    assert sizes == {"gpt2": 124439808, "stories42m": 41689600}  # Hugging Face says 124 M, llama2.c 42 M


def _unfilled(name: str) -> torch.nn.Module:
    return build_model(preset(name).config)


def test_an_unknown_architecture_is_named() -> None:
    with pytest.raises(ParseError, match="model_type is 'mamba'; built here are llama, qwen3, gpt2"):
        read_config({"model_type": "mamba"})


@pytest.mark.parametrize("config", [QWEN3, preset("stories260k").config, GPT2], ids=["qwen3", "llama", "gpt2"])
def test_building_leaves_torchs_generator_and_layers_alone(config):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first, second = build_model(config, seed=1), build_model(config, seed=1)
    assert torch.equal(torch.rand(3), expected)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(first.parameters(), second.parameters(), strict=True))
    assert torch.nn.Linear(4, 4).weight.abs().sum() > 0


def test_memory_of_weights_is_fetched_from_the_last_on_and_none_of_weights_without_memory(monkeypatch):
    fetched = []
    monkeypatch.setattr(pages, "Fetching", lambda arrays: fetched.append(arrays) or nullcontext())
    model = build_model(preset("tiny").config)
    assert [array.__array_interface__["data"][0] for array in fetched[0]] == [param.data_ptr() for param in reversed(list(model.parameters()))]
    with torch.device("meta"):
        build_model(preset("tiny").config)
    with FakeTensorMode():
        build_model(preset("tiny").config, is_fake=True)
    assert fetched[1:] == [[], []]
