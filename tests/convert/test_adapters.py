"""Adapters: what is read, written and merged computes what PEFT computes; names and shapes are the formats'; the rest is refused."""

import json
from pathlib import Path

import pytest
import small_adapters
import small_models
import torch
from safetensors.torch import load_file, save_file

from torchane.convert import gguf_lora, hf, mlx, peft
from torchane.convert.adapter import Adapter, LowRank, require_fits
from torchane.convert.gguf_file import GgufFile
from torchane.convert.merge import merge
from torchane.convert.recognize import read_adapter
from torchane.errors import ParseError, UsageError

pytest.importorskip("peft", reason="peft is not installed (pip install 'torchane[finetune]')")
FORMS = [(name, dora) for name in small_adapters.FORMS for dora in (False, True)]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return small_models.save(tmp_path_factory.mktemp("base") / "m", head_dim=24, tokenizer=False)


@pytest.fixture(scope="module")
def adapters(base, tmp_path_factory):
    root = tmp_path_factory.mktemp("adapters")
    return {(name, dora): small_adapters.save(base, root / f"{name}-{dora}", use_dora=dora, **small_adapters.FORMS[name]) for name, dora in FORMS}


@pytest.fixture
def into(tmp_path):
    (tmp_path / "out").mkdir()
    return tmp_path / "out"


@pytest.mark.parametrize("form", FORMS)
def test_a_merge_is_pefts(base, adapters, form):
    merged = merge(hf.read(base), peft.read(adapters[form]))
    theirs = small_adapters.load(base, adapters[form]).merge_and_unload().state_dict()
    assert set(merged.weights) == set(theirs)
    for name in merged.weights:
        torch.testing.assert_close(merged.weights[name], theirs[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("form", FORMS)
def test_what_is_written_for_peft_is_the_same_adapter(base, adapters, into, form):
    one = peft.read(adapters[form])
    peft.write(one, into)
    two = peft.read(into)
    assert set(one.modules) == set(two.modules) and two.is_dora == form[1]
    for name, module in one.modules.items():
        assert torch.equal(module.a, two.modules[name].a) and torch.equal(module.b, two.modules[name].b)
        assert module.scale == pytest.approx(two.modules[name].scale, rel=1e-6)


@pytest.mark.parametrize("form", FORMS)
def test_an_adapter_goes_to_mlx_lm_and_comes_back(base, adapters, into, form):
    one, model = peft.read(adapters[form]), hf.read(base)
    mlx.write(one, into, model)
    two = merge(model, mlx.read(into, model))
    for name, weight in merge(model, one).weights.items():
        torch.testing.assert_close(two.weights[name], weight, rtol=1e-5, atol=1e-6)


def test_names_and_shapes_of_mlx_lm(base, adapters, into):
    mlx.write(peft.read(adapters["last_layers", True]), into, hf.read(base))
    shapes = {name: tuple(tensor.shape) for name, tensor in load_file(into / "adapters.safetensors").items()}
    assert shapes["model.layers.1.self_attn.q_proj.lora_a"] == (64, 4) and shapes["model.layers.1.self_attn.q_proj.lora_b"] == (4, 96)
    assert shapes["model.layers.2.mlp.gate_proj.m"] == (96,) and len(shapes) == 2 * 4 * 3
    config = json.loads((into / "adapter_config.json").read_text())
    assert config["num_layers"] == 2 and config["fine_tune_type"] == "dora"
    assert config["lora_parameters"] == {"rank": 4, "scale": 1.5, "dropout": 0.0, "keys": ["mlp.gate_proj", "self_attn.k_proj", "self_attn.o_proj", "self_attn.q_proj"]}


def test_layers_that_are_not_the_last_are_named_from_the_top(base, adapters, into):
    mlx.write(peft.read(adapters["first_layer", False]), into, hf.read(base))
    config = json.loads((into / "adapter_config.json").read_text())
    assert config["num_layers"] == 3 and config["lora_parameters"]["keys"] == ["model.layers.0.mlp.up_proj", "model.layers.0.self_attn.k_proj"]


def test_names_and_settings_of_peft(base, adapters, into):
    peft.write(peft.read(adapters["last_layers", True]), into)
    shapes = {name: tuple(tensor.shape) for name, tensor in load_file(into / "adapter_model.safetensors").items()}
    prefix = "base_model.model.model.layers.1.self_attn.q_proj."
    assert shapes[f"{prefix}lora_A.weight"] == (4, 64) and shapes[f"{prefix}lora_B.weight"] == (96, 4) and shapes[f"{prefix}lora_magnitude_vector"] == (96,)
    config = json.loads((into / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["use_dora"], config["layers_to_transform"]) == (4, 6, True, [1, 2])
    assert config["target_modules"] == ["gate_proj", "k_proj", "o_proj", "q_proj"]


@pytest.mark.parametrize("form", ["all_layers", "patterns", "rslora"])
def test_a_lora_goes_to_gguf_and_comes_back(base, adapters, tmp_path, form):
    one, model = peft.read(adapters[form, False]), hf.read(base)
    gguf_lora.write(one, tmp_path / "a.gguf", model)
    two = merge(model, gguf_lora.read(tmp_path / "a.gguf", model))
    for name, weight in merge(model, one).weights.items():
        torch.testing.assert_close(two.weights[name], weight, rtol=1e-5, atol=1e-6)


def test_names_shapes_and_rows_of_a_lora_in_gguf(base, adapters, tmp_path):
    one = peft.read(adapters["all_layers", False])
    gguf_lora.write(one, tmp_path / "a.gguf", hf.read(base))
    file = GgufFile(tmp_path / "a.gguf")
    assert {key: file.keys[key] for key in ("general.type", "adapter.type", "general.architecture", "adapter.lora.alpha")} == {
        "general.type": "adapter", "adapter.type": "lora", "general.architecture": "llama", "adapter.lora.alpha": 6.0,
    }  # fmt: skip
    assert file.tensors["blk.0.attn_q.weight.lora_a"].shape == (4, 64) and file.tensors["blk.0.attn_q.weight.lora_b"].shape == (96, 4)
    b, theirs = one.modules["model.layers.0.self_attn.q_proj"].b, file.read("blk.0.attn_q.weight.lora_b")
    assert torch.equal(theirs[:4], b[[0, 12, 1, 13]])  # of a head of 24: neighbours are 12 apart in Hugging Face's order


def test_dora_is_refused_by_llama_cpp(base, adapters, tmp_path):
    with pytest.raises(UsageError, match="is DoRA, and llama.cpp knows only LoRA. Merge it"):
        gguf_lora.write(peft.read(adapters["all_layers", True]), tmp_path / "a.gguf", hf.read(base))


@pytest.fixture(scope="module")
def tied(tmp_path_factory):
    return small_models.save(tmp_path_factory.mktemp("tied") / "m", tie_word_embeddings=True, tokenizer=False)


@pytest.mark.parametrize("target", ["lm_head", "embed_tokens"])
def test_an_adapter_on_a_tied_head_is_merged_as_peft_computes_it_and_otherwise_refused(tied, tmp_path, into, target):
    tokens = list(range(5, 30))
    folder = small_adapters.save(tied, tmp_path / "a", target_modules=[target, "q_proj"])
    model = hf.read(tied)
    adapter = read_adapter(folder, model)
    with pytest.raises(UsageError, match=f"LoRA on {target}, which in"):
        gguf_lora.write(adapter, tmp_path / "a.gguf", model)
    with pytest.raises(UsageError, match=f"LoRA on {target}, which in"):
        mlx.write(adapter, into, model)
    hf.write(merge(model, adapter), into)
    assert small_models.close(small_models.logits(into, tokens), small_adapters.logits(tied, folder, tokens)) < 1e-5


def test_modules_that_were_trained_entirely_are_merged_and_otherwise_refused(base, tmp_path, into):
    tokens = list(range(5, 30))
    folder = small_adapters.save(base, tmp_path / "a", target_modules=["q_proj"], modules_to_save=["lm_head"])
    model = hf.read(base)
    adapter = peft.read(folder)
    assert not read_adapter(folder, model).whole  # as PEFT saves it, it is still the base's
    changed = {name: tensor + 0.1 for name, tensor in adapter.whole.items()}
    with pytest.raises(UsageError, match="trained lm_head.weight entirely"):
        mlx.write(adapter, into, model)
    assert list(changed) == ["lm_head.weight"] and torch.equal(merge(model, Adapter({}, whole=changed)).weights["lm_head.weight"], changed["lm_head.weight"])
    hf.write(merge(model, adapter), into)
    assert small_models.close(small_models.logits(into, tokens), small_adapters.logits(base, folder, tokens)) < 1e-5


def test_an_adapter_of_another_base_is_refused(adapters, tmp_path):
    other = hf.read(small_models.save(tmp_path / "m", tokenizer=False))  # its heads are 16, not 24
    with pytest.raises(ParseError, match=r"belongs to another model: model.layers.0.self_attn.q_proj is for 64 inputs and 96 outputs, and .* has 64 and 64 there.*trained on"):
        require_fits(peft.read(adapters["all_layers", False]), other)
    with pytest.raises(ParseError, match="model.layers.7.mlp.up_proj is no part of"):
        require_fits(Adapter({"model.layers.7.mlp.up_proj": LowRank(torch.zeros(2, 64), torch.zeros(96, 2), 1.0)}), other)


def _changed(folder: Path, new: Path, **settings: object) -> Path:
    new.mkdir()
    config = json.loads((folder / "adapter_config.json").read_text()) | settings
    (new / "adapter_config.json").write_text(json.dumps(config))
    (new / "adapter_model.safetensors").write_bytes((folder / "adapter_model.safetensors").read_bytes())
    return new


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"peft_type": "IA3"}, "adapter of type 'IA3'"),
        ({"bias": "lora_only"}, "trained biases are not read"),
        ({"init_lora_weights": "pissa_niter_4"}, "'pissa_niter_4', which changes the base itself"),
        ({"layer_replication": [[0, 2]]}, "layer_replication is .*not known here"),
        ({"something_new": 3}, "something_new is 3, which is not known here"),
        ({"r": None}, "r is None, and it must be a number"),
        ({"use_dora": True}, "use_dora is True, and .* has no magnitude"),
    ],
)
def test_settings_that_change_what_an_adapter_computes_are_refused(adapters, tmp_path, settings, said):
    with pytest.raises((UsageError, ParseError), match=said):
        peft.read(_changed(adapters["all_layers", False], tmp_path / "a", **settings))


def test_damaged_adapters_are_errors(adapters, tmp_path):
    folder = _changed(adapters["all_layers", False], tmp_path / "a")
    tensors = load_file(folder / "adapter_model.safetensors")
    tensors.pop("base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight")
    save_file(tensors, folder / "adapter_model.safetensors")
    with pytest.raises(ParseError, match="model.layers.0.self_attn.q_proj has only one of lora_A and lora_B"):
        peft.read(folder)
    (folder / "adapter_model.safetensors").unlink()
    torch.save({}, folder / "adapter_model.bin")
    with pytest.raises(ParseError, match="adapter_model.bin is a pickle"):
        peft.read(folder)


def test_an_mlx_adapter_on_a_tied_embedding_is_refused(tied, tmp_path):
    (tmp_path / "adapter_config.json").write_text(json.dumps({"num_layers": 3, "lora_parameters": {"rank": 2, "scale": 20.0, "dropout": 0.0}}))
    save_file({"model.embed_tokens.lora_a": torch.zeros(320, 2), "model.embed_tokens.lora_b": torch.zeros(2, 64)}, tmp_path / "adapters.safetensors")
    with pytest.raises(UsageError, match="LoRA on embed_tokens, which mlx-lm adds to a tied head"):
        mlx.read(tmp_path, hf.read(tied))
