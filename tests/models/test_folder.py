"""Model folders pass between transformers and us, and damaged ones are named."""

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import GPT2LMHeadModel as TheirGPT2
from transformers import LlamaForCausalLM as TheirLlama

from torchane.errors import RunFolderError
from torchane.models.build import build_model
from torchane.models.config import GPT2Config, LlamaConfig
from torchane.models.folder import load_model, save_config, save_weights

CONFIG = LlamaConfig(vocab_size=96, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
                     num_key_value_heads=2, max_position_embeddings=32, initializer_range=0.2)  # fmt: skip
UNTIED = LlamaConfig(**{**CONFIG.__dict__, "tie_word_embeddings": False})
GPT2 = GPT2Config(vocab_size=96, n_positions=32, n_embd=64, n_layer=2, n_head=4, initializer_range=0.2)
EVERY = pytest.mark.parametrize(
    ("config", "their_model"), [(CONFIG, TheirLlama), (UNTIED, TheirLlama), (GPT2, TheirGPT2)], ids=["tied", "untied", "gpt2"]
)
TOKENS = torch.randint(0, 96, (2, 12), generator=torch.Generator().manual_seed(0))


def save(folder, config=CONFIG):
    model = build_model(config, seed=4).eval()
    save_config(folder, config)
    save_weights(folder, model)
    return model


@EVERY
def test_transformers_loads_ours_and_gives_equal_logits(tmp_path, config, their_model):
    model = save(tmp_path, config)
    theirs, loading = their_model.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(loading.values())
    torch.testing.assert_close(model(TOKENS), theirs(TOKENS).logits, rtol=1e-5, atol=1e-5)


@EVERY
def test_we_load_what_transformers_writes(tmp_path, config, their_model):
    (tmp_path / "ours").mkdir()
    save(tmp_path / "ours", config)
    theirs = their_model.from_pretrained(tmp_path / "ours")
    theirs.save_pretrained(tmp_path / "theirs")
    model = load_model(tmp_path / "theirs")
    assert model.config == config
    torch.testing.assert_close(model(TOKENS), theirs(TOKENS).logits, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("config", [CONFIG, GPT2], ids=["llama", "gpt2"])
def test_saving_and_loading_changes_no_bit(tmp_path, config):
    model = save(tmp_path, config)
    again = load_model(tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))


def test_a_tied_head_is_stored_once_and_may_be_stored_twice(tmp_path):
    model = save(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    assert "lm_head.weight" not in weights
    save_file(
        {**weights, "lm_head.weight": weights["model.embed_tokens.weight"].clone()}, tmp_path / "model.safetensors"
    )
    assert torch.equal(load_model(tmp_path)(TOKENS), model(TOKENS))


@pytest.mark.parametrize("keep", [0, 7, 100, -1], ids=["empty", "cut length", "cut header", "cut data"])
def test_a_cut_weight_file_is_named(tmp_path, keep):
    save(tmp_path)
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(RunFolderError, match="model.safetensors cannot be read"):
        load_model(tmp_path)


def test_weights_of_another_model_are_named(tmp_path):
    save(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    weights["model.norm.weight"] = torch.ones(3)
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(
        RunFolderError, match=r"model.layers.1.mlp.up_proj.weight is missing; model.norm.weight is \(3,\)"
    ):
        load_model(tmp_path)


def test_a_folder_without_a_model_is_named(tmp_path):
    with pytest.raises(RunFolderError, match="config.json does not exist"):
        load_model(tmp_path)


def test_a_config_of_another_architecture_is_named(tmp_path):
    save(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(path.read_text().replace('"silu"', '"gelu"'))
    with pytest.raises(RunFolderError, match="config.json: hidden_act is 'gelu'"):
        load_model(tmp_path)


@pytest.mark.parametrize(("name", "reason"), [("model.safetensors.index.json", "in several files"), ("pytorch_model.bin", "pickled")])
def test_weights_that_lie_elsewhere_are_told_how_to_become_one_file(tmp_path, name, reason):
    save(tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / name)
    with pytest.raises(RunFolderError, match=f"{reason}.*save_pretrained"):
        load_model(tmp_path)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e30, -70000.0])
def test_weights_that_no_model_has_are_named(tmp_path, value):
    save(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    weights["model.norm.weight"][3] = value
    save_file(weights, tmp_path / "model.safetensors")  # as another program would, without our digest
    with pytest.raises(RunFolderError, match="'model.norm.weight' holds numbers from"):
        load_model(tmp_path)


def test_a_config_far_larger_than_its_weights_takes_no_memory(tmp_path):
    save(tmp_path)
    save_config(tmp_path, LlamaConfig(**{**CONFIG.__dict__, "num_hidden_layers": 4000, "intermediate_size": 1 << 20}))
    (tmp_path / "model.safetensors").write_bytes((tmp_path / "model.safetensors").read_bytes())
    with pytest.raises(RunFolderError, match="config.json"):
        load_model(tmp_path)
