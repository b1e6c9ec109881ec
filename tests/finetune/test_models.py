"""load_base: the same logits as transformers' own loading, and a sentence for each folder that cannot be loaded."""

import json
import pickle
import shutil
import sys

import numpy as np
import pytest
import tiny
import torch
import transformers
from safetensors.torch import load_file, save_file

from torchane.data.tokenizer import Tokenizer
from torchane.errors import RunFolderError, TorchaneError, UsageError
from torchane.finetune.extras import require
from torchane.finetune.models import load_base
from torchane.models.build import build_model
from torchane.models.config import LlamaConfig, Qwen3Config
from torchane.models.folder import save_weights
from torchane.train.run_folder import RunFolder

TOKENS = torch.arange(24).reshape(2, 12) * 7 % tiny.VOCAB


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return tiny.folder(tmp_path_factory.mktemp("models") / "llama", "llama")


@pytest.fixture
def copied(llama, tmp_path):
    return shutil.copytree(llama, tmp_path / "copied")


@pytest.mark.parametrize("kind", tiny.CONFIGS)
def test_every_architecture_gives_the_logits_of_the_model_that_was_saved(kind, tmp_path):
    base = load_base(tiny.folder(tmp_path / kind, kind))
    with torch.no_grad():
        assert torch.equal(base.model(TOKENS).logits, tiny.model(kind).eval()(TOKENS).logits)
    assert base.kind == "folder" and base.tokenizer.decode(base.tokenizer("Mira").input_ids) == "Mira"


def test_weights_keep_their_type_and_shards_are_read(tmp_path):
    path = tiny.folder(tmp_path / "m", "qwen3", dtype=torch.bfloat16, shard="100KB")
    assert len(list(path.glob("*.safetensors"))) > 2
    base = load_base(path)
    assert {weight.dtype for weight in base.model.parameters()} == {torch.bfloat16}
    assert torch.equal(base.model.lm_head.weight, tiny.model("qwen3", dtype=torch.bfloat16).lm_head.weight)
    assert {weight.dtype for weight in load_base(path, dtype=torch.float32).model.parameters()} == {torch.float32}


def test_a_run_folder_is_a_base(tmp_path):
    text = "a fox and a hen and a fox " * 50
    own = Tokenizer.train([text], 300)
    model = build_model(LlamaConfig(300, 64, 96, 2, 4, 2, 64))
    run = RunFolder.create(tmp_path / "run", {}, model, own.to_text())
    save_weights(run.path, model)
    base = load_base(run.path)
    assert base.kind == "run" and base.tokenizer("a fox").input_ids == own.encode("a fox")
    assert base.tokenizer.eos_token_id == own.end_id
    with torch.no_grad():
        assert torch.allclose(base.model(TOKENS).logits, model.eval()(TOKENS), atol=1e-5)


@pytest.mark.parametrize("config", [LlamaConfig(300, 64, 96, 2, 4, 2, 64), Qwen3Config(300, 64, 96, 2, 4, 2, 64, head_dim=32)], ids=["llama", "qwen3"])
def test_transformers_and_an_export_split_text_as_a_run_does(tmp_path, config):
    from torchane.cli.converting import read_model
    from torchane.convert.export import export

    text = "a fox's hen, 1234 of them\n\n  and DON'T you'll see"
    own = Tokenizer.train([text * 20, "12 fox's " * 50], 300)
    run = RunFolder.create(tmp_path / "run", {}, build_model(config), own.to_text())
    save_weights(run.path, build_model(config))
    assert transformers.AutoTokenizer.from_pretrained(run.path)(text).input_ids == own.encode(text)
    described = read_model(run.path)
    assert load_base(export("hf", tmp_path / "out", "m", described).path).tokenizer(text).input_ids == [own.end_id, *own.encode(text)]
    export("gguf", tmp_path / "out", "m", described)
    assert load_base(tmp_path / "out" / "gguf" / "m-f16.gguf").tokenizer(text).input_ids == [own.end_id, *own.encode(text)]


def test_a_gguf_gives_the_logits_of_its_weights(llama, tmp_path):
    path = _gguf(tmp_path / "m.gguf", tiny.model("llama"))
    base = load_base(path)
    with torch.no_grad():
        assert torch.allclose(base.model(TOKENS).logits, tiny.model("llama").eval()(TOKENS).logits, atol=1e-5)
    assert base.kind == "gguf"


@pytest.mark.parametrize("kind", ["llama", "qwen3"])
def test_a_gguf_with_a_head_of_its_own_width_gives_the_logits_and_the_tokens(llama, tmp_path, kind):
    from torchane.convert import gguf, hf

    tiny.folder(tmp_path / "m", kind)
    gguf.write(hf.read(tmp_path / "m"), tmp_path / "m.gguf", "f16")
    base = load_base(tmp_path / "m.gguf", dtype=torch.float32)
    theirs = load_base(tmp_path / "m", dtype=torch.float32)
    with torch.no_grad():
        assert torch.allclose(base.model(TOKENS).logits, theirs.model(TOKENS).logits, atol=1e-3)
    assert base.tokenizer("a fox").input_ids == theirs.tokenizer("a fox").input_ids


def test_a_model_of_llama2c_gives_the_logits_of_its_weights(tmp_path):
    from torchane.convert import hf, llama2c

    made = tiny.model("llama")
    made.config.rms_norm_eps = 1e-5
    made.save_pretrained(tmp_path / "m")
    llama2c.write(hf.read(tmp_path / "m"), tmp_path / "m.bin")
    base = load_base(tmp_path / "m.bin")
    with torch.no_grad():
        assert torch.allclose(base.model(TOKENS).logits, load_base(tmp_path / "m").model(TOKENS).logits, atol=1e-5)
    assert base.kind == "llama2c" and base.tokenizer is None


def test_a_model_without_tokenizer_says_so_where_text_is_wanted(copied):
    for each in copied.glob("token*"):
        each.unlink()
    base = load_base(copied)
    assert base.tokenizer is None
    with pytest.raises(UsageError, match="has no tokenizer .tokenizer.json"):
        base.require_tokenizer()


def _no_config(path):
    (path / "config.json").unlink()


def _adapter(path):
    (path / "config.json").rename(path / "adapter_config.json")


def _cut(path):
    whole = (path / "model.safetensors").read_bytes()
    (path / "model.safetensors").write_bytes(whole[: len(whole) // 2])


def _without_a_weight(path):
    weights = load_file(path / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, path / "model.safetensors", {"format": "pt"})


def _with_another(path):
    weights = load_file(path / "model.safetensors")
    save_file({**weights, "model.layers.7.mlp.up_proj.weight": torch.zeros(96, 64)}, path / "model.safetensors", {"format": "pt"})


def _other_size(path):
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**config, "intermediate_size": 128}))


def _pickled(path):
    (path / "model.safetensors").unlink()
    (path / "pytorch_model.bin").write_bytes(pickle.dumps({}))


def _quantised(path):
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**config, "quantization": {"group_size": 64, "bits": 4}}))


def _own_code(path):
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**config, "auto_map": {"AutoModelForCausalLM": "x.Y"}}))


def _unknown(path):
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**config, "model_type": "lamma"}))


def _packed(path):
    weights = load_file(path / "model.safetensors")
    weights["lm_head.weight"] = torch.zeros(288, 8, dtype=torch.int32)
    save_file(weights, path / "model.safetensors", {"format": "pt"})


def _shard_gone(path):
    (path / "model.safetensors").rename(path / "model-00001-of-00002.safetensors")
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (path / "model.safetensors.index.json").write_text(json.dumps(index))


def _torn_tokenizer(path):
    text = (path / "tokenizer.json").read_text()
    (path / "tokenizer.json").write_text(text[:200])


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (_no_config, "config.json does not exist, and without it nobody knows"),
        (_adapter, "holds an adapter, and not a model. Give the model that it was trained on"),
        (_cut, "model.safetensors cannot be read: .* cut short or damaged"),
        (_without_a_weight, "do not fit: model.layers.1.mlp.up_proj.weight is missing"),
        (_with_another, "model.layers.7.mlp.up_proj.weight belongs to no part of the model"),
        (_other_size, "model.layers.0.mlp.*proj.weight.* has another shape than config.json says"),
        (_pickled, "pytorch_model.bin is a pickle, which can run any code"),
        (_quantised, "quantised .quantization in config.json.* Use the unquantised base"),
        (_own_code, "wants Python code of its own"),
        (_unknown, "transformers cannot load it: .*lamma"),
        (_packed, "holds weights of type I32, which are quantised"),
        (_shard_gone, "model-00002-of-00002.safetensors of 2 files with weights missing"),
        (_torn_tokenizer, "its tokenizer cannot be loaded"),
    ],
)
def test_a_folder_that_cannot_be_loaded_is_refused_with_its_reason(copied, spoil, said):
    spoil(copied)
    with pytest.raises(RunFolderError, match=said):
        load_base(copied)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("./nowhere", "There is no model ./nowhere. Give a folder with a config.json"),
        ("nobody/no-model-of-that-name", "There is no folder nobody/no-model-of-that-name here, and the hub did not give .*copy the model's folder"),
    ],
)
def test_a_name_that_leads_nowhere_says_how_to_place_the_folder(name, said, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(UsageError, match=said):
        load_base(name)


def test_a_file_that_is_no_model_is_refused(tmp_path):
    (tmp_path / "x.txt").write_text("x")
    (tmp_path / "x.gguf").write_bytes(b"GGUF" + bytes(20))
    torch.save({"a": torch.zeros(2)}, tmp_path / "x.bin")
    for name, said in (("x.txt", "is a file, and a model is"), ("x.gguf", "x.gguf is GGUF of version 0; 2 and 3 are read"), ("x.bin", "is a pickle")):
        with pytest.raises(TorchaneError, match=said):
            load_base(tmp_path / name)


def test_a_gguf_of_few_bits_is_refused(tmp_path):
    path = _gguf(tmp_path / "m.gguf", tiny.model("llama"), quantised=True)
    with pytest.raises(RunFolderError, match="is Q4_0; F32, F16, BF16 and Q8_0 are read"):
        load_base(path)


def test_a_missing_package_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(UsageError, match=r'pip install "torchane\[finetune\]"'):
        require("peft")


def _gguf(path, model, *, quantised=False):
    """A Llama as llama.cpp's own writer lays it out, with a tokenizer of bytes."""
    gguf = pytest.importorskip("gguf")
    config, own = model.config, tiny.tokenizer()
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(config.vocab_size)
    tokens = own.convert_ids_to_tokens(range(257)) + ["ab", *(f"<unused{i}>" for i in range(config.vocab_size - 258))]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([1] * 256 + [3, 1] + [5] * (config.vocab_size - 258))
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(256)
    writer.add_eos_token_id(256)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for name, weight in model.state_dict().items():
        if name.endswith(("q_proj.weight", "k_proj.weight")):
            heads = config.num_attention_heads if "q_proj" in name else config.num_key_value_heads
            weight = weight.reshape(heads, 2, -1, weight.shape[1]).transpose(1, 2).reshape(weight.shape)
        array = weight.numpy().astype(np.float32)
        kind = gguf.GGMLQuantizationType.Q4_0 if quantised and name.endswith("up_proj.weight") else None
        if kind is not None:
            array = gguf.quants.quantize(array, kind)
        writer.add_tensor(names.get_name(name, (".weight",)), np.ascontiguousarray(array), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
