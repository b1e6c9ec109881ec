"""Real clients compute from our files what transformers and PEFT compute: mlx-lm on its CPU wheels, llama.cpp through llama-cpp-python."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small_adapters
import small_models
import torch

from torchane.convert import gguf, gguf_lora, hf, merge, mlx, peft, recognize

pytestmark = pytest.mark.long
TOKENS = list(range(5, 60))
#: The relative error of logits. Weights in fp16 and bf16, and what llama.cpp itself rounds (its caches are fp16), on tiny models.
CLOSE = {"f16": 2e-3, "bf16": 1.5e-2, "q8_0": 4e-2}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}), "tied": ("llama", {"tie_word_embeddings": True}), "head_dim": ("llama", {"head_dim": 24}),
    "llama3": ("llama", {"head_dim": 32, "rope_theta": 5e5, "rope_scaling": LLAMA3, "max_position_embeddings": 131072}),
    "qwen3": ("qwen3", {"head_dim": 32}), "qwen3_tied": ("qwen3", {"head_dim": 32, "tie_word_embeddings": True}),
    "qwen2": ("qwen2", {}), "mistral": ("mistral", {"sliding_window": None}),
}  # fmt: skip
BASES = ("llama", "head_dim", "qwen3_tied")


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    return {name: small_models.save(root / name, kind, **{k: dict(v) if isinstance(v, dict) else v for k, v in changes.items()}) for name, (kind, changes) in MODELS.items()}


@pytest.fixture(scope="module")
def adapters(models, tmp_path_factory):
    root = tmp_path_factory.mktemp("adapters")
    return {
        (base, form, dora): small_adapters.save(models[base], root / f"{base}-{form}-{dora}", use_dora=dora, **settings)
        for base in BASES for form, settings in small_adapters.FORMS.items() for dora in (False, True)
    }  # fmt: skip


ADAPTERS = [(base, form, dora) for base in BASES for form in small_adapters.FORMS for dora in (False, True)]


def llama_cpp(path: Path, lora: Path | None = None) -> Any:
    client = pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed (it is built from source: pip install llama-cpp-python)")
    return client.Llama(str(path), lora_path=str(lora) if lora else None, logits_all=True, n_ctx=128, n_threads=2, verbose=False)


def llama_cpp_logits(model: Any) -> torch.Tensor:
    model.eval(TOKENS)
    return torch.tensor(np.array(model.scores[: len(TOKENS)]))


def mlx_logits(base: Path, adapter: Path | None = None) -> torch.Tensor:
    core = pytest.importorskip("mlx.core", reason="mlx is not installed (pip install 'mlx[cpu]' mlx-lm)")
    utils = pytest.importorskip("mlx_lm.utils", reason="mlx-lm is not installed (pip install mlx-lm)")
    model, _ = utils.load(str(base), adapter_path=str(adapter) if adapter else None)
    model.eval()
    return torch.tensor(np.array(model(core.array([TOKENS]))[0].astype(core.float32)))


@pytest.mark.parametrize("kind", CLOSE)
@pytest.mark.parametrize("name", MODELS)
def test_llama_cpp_computes_from_our_gguf_what_transformers_computes(models, tmp_path, name, kind):
    gguf.write(hf.read(models[name]), tmp_path / "m.gguf", kind)
    error = small_models.close(llama_cpp_logits(llama_cpp(tmp_path / "m.gguf")), small_models.logits(models[name], TOKENS))
    assert 0 < error < CLOSE[kind]


@pytest.mark.parametrize("name", ["llama", "qwen3"])
def test_llama_cpp_cuts_text_into_our_tokens(models, tmp_path, name):
    from tokenizers import Tokenizer

    gguf.write(hf.read(models[name]), tmp_path / "m.gguf")
    model, tokenizer = llama_cpp(tmp_path / "m.gguf"), Tokenizer.from_file(str(models[name] / "tokenizer.json"))
    for text in ("The cat's hat, 1234 of them!", "  Two\n\n  spaces\t. ", "\u00e9t\u00e9 \u2014 \u4f60\u597d"):
        assert model.tokenize(text.encode(), add_bos=False) == tokenizer.encode(text).ids
        assert model.detokenize(tokenizer.encode(text).ids).decode() == text


def test_llama_cpp_cuts_text_into_sentencepieces_tokens(tmp_path, shared_data):
    sentencepiece = pytest.importorskip("sentencepiece", reason="sentencepiece is not installed")
    from torchane.convert.llama2c_tokenizer import files_for

    folder = small_models.save(tmp_path / "m", vocab_size=32000, hidden_size=32, num_hidden_layers=1, tokenizer=False, bos_token_id=1, eos_token_id=2)
    for name, content in files_for(shared_data / "llama2c" / "model.bin", None, 32000).items():
        (folder / name).write_bytes(content)
    gguf.write(hf.read(folder), tmp_path / "m.gguf")
    theirs = sentencepiece.SentencePieceProcessor(model_file=str(shared_data / "llama2c" / "tokenizer.model"))
    for text in ("Once upon a time, there was a little girl.", "  Two\n\n  spaces\t. ", "\u00e9t\u00e9 \u2014 \u4f60\u597d \U0001f600"):
        assert llama_cpp(tmp_path / "m.gguf").tokenize(text.encode(), add_bos=True) == [1, *theirs.encode(text)]


@pytest.mark.parametrize(("base", "form", "dora"), [each for each in ADAPTERS if not each[2]])
def test_llama_cpp_computes_with_our_lora_what_peft_computes(models, adapters, tmp_path, base, form, dora):
    model = hf.read(models[base])
    gguf.write(model, tmp_path / "m.gguf")
    gguf_lora.write(peft.read(adapters[base, form, dora]), tmp_path / "a.gguf", model)
    ours = llama_cpp_logits(llama_cpp(tmp_path / "m.gguf", tmp_path / "a.gguf"))
    assert small_models.close(ours, small_adapters.logits(models[base], adapters[base, form, dora], TOKENS)) < CLOSE["f16"]


@pytest.mark.parametrize(("base", "form", "dora"), ADAPTERS)
def test_mlx_lm_computes_with_our_adapter_what_peft_computes(models, adapters, tmp_path, base, form, dora):
    """Its loader refuses a tensor that no wrapped module has."""
    folder = tmp_path / "a"
    folder.mkdir()
    mlx.write(peft.read(adapters[base, form, dora]), folder, hf.read(models[base]))
    assert small_models.close(mlx_logits(models[base], folder), small_adapters.logits(models[base], adapters[base, form, dora], TOKENS)) < 1e-4


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("dora", [False, True])
def test_peft_computes_with_an_adapter_of_mlx_lm_what_mlx_lm_computes(models, tmp_path, base, dora):
    """The adapter is made by mlx-lm's own layers and saved as its trainer saves it."""
    core = pytest.importorskip("mlx.core", reason="mlx is not installed (pip install 'mlx[cpu]' mlx-lm)")
    tuner = pytest.importorskip("mlx_lm.tuner.utils", reason="mlx-lm is not installed (pip install mlx-lm)")
    from mlx.utils import tree_flatten
    from mlx_lm.utils import load

    model, _ = load(str(models[base]))
    parameters = {"rank": 8, "scale": 20.0, "dropout": 0.0}
    model.freeze()
    tuner.linear_to_lora_layers(model, 2, parameters, use_dora=dora)
    core.random.seed(0)
    changed = [(name, core.random.normal(value.shape) * 0.02 if name.endswith("lora_b") else value) for name, value in tree_flatten(model.trainable_parameters())]
    folder = tmp_path / "mlx"
    folder.mkdir()
    core.save_safetensors(str(folder / "adapters.safetensors"), dict(changed))
    config = {"fine_tune_type": "dora" if dora else "lora", "num_layers": 2, "lora_parameters": parameters, "model": str(models[base])}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    (tmp_path / "peft").mkdir()
    adapter = recognize.read_adapter(folder, hf.read(models[base]))
    peft.write(adapter, tmp_path / "peft")
    theirs = mlx_logits(models[base], folder)
    assert small_models.close(small_adapters.logits(models[base], tmp_path / "peft", TOKENS), theirs) < 1e-4
    assert small_models.close(small_models.logits(models[base], TOKENS), theirs) > 1e-2  # it does something
    (tmp_path / "merged").mkdir()
    hf.write(merge.merge(hf.read(models[base]), adapter), tmp_path / "merged")
    assert small_models.close(mlx_logits(tmp_path / "merged"), theirs) < 1e-4


@pytest.mark.parametrize("name", MODELS)
def test_mlx_lm_computes_from_our_folder_what_transformers_computes(models, tmp_path, name):
    (tmp_path / "m").mkdir()
    hf.write(hf.read(models[name]), tmp_path / "m")
    assert small_models.close(mlx_logits(tmp_path / "m"), small_models.logits(models[name], TOKENS)) < 1e-4
