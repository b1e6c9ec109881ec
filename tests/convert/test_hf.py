"""Folders in Hugging Face's layout: shards, what is missing or damaged, and pickles, which are refused."""

import json

import pytest
import small_models
import torch

from torchane.convert import hf, recognize
from torchane.errors import ParseError


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return small_models.save(tmp_path_factory.mktemp("m") / "m", dtype=torch.bfloat16)


@pytest.fixture
def shards(folder, tmp_path):
    (tmp_path / "s").mkdir()
    hf.write(hf.read(folder), tmp_path / "s", shard_bytes=60_000)
    return tmp_path / "s"


def test_shards_hold_the_same_weights_in_their_own_type(folder, shards):
    one, two = hf.read(folder), hf.read(shards)
    assert len(list(shards.glob("*.safetensors"))) > 2 and list(one.weights) and two.files == one.files
    assert all(torch.equal(one.weights[name], two.weights[name]) and two.weights[name].dtype == torch.bfloat16 for name in one.weights)


def test_transformers_loads_the_shards(folder, shards):
    assert torch.equal(small_models.logits(folder, [5, 6, 7]), small_models.logits(shards, [5, 6, 7]))


def test_a_missing_shard_is_named(shards):
    name = sorted(shards.glob("*.safetensors"))[1]
    name.unlink()
    with pytest.raises(ParseError, match=f"lacks {name.name} of the"):
        hf.read(shards)


def test_a_shard_that_is_cut_short_is_named(shards):
    name = sorted(shards.glob("*.safetensors"))[1]
    name.write_bytes(name.read_bytes()[:-10])
    with pytest.raises(ParseError, match=f"{name.name} is no whole safetensors file"):
        hf.read(shards)


def test_an_index_that_leads_out_of_the_folder_is_refused(shards):
    (shards / hf.INDEX).write_text(json.dumps({"weight_map": {"a": "../m/model.safetensors"}}))
    with pytest.raises(ParseError, match="no weight_map of file names"):
        hf.read(shards)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "weights.pth"])
def test_pickles_are_refused_and_not_loaded(folder, tmp_path, name):
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    torch.save({}, tmp_path / name)
    with pytest.raises(ParseError, match=f"{name} is a pickle, which can run any code"):
        hf.read(tmp_path)


def test_quantised_weights_are_refused(folder, tmp_path):
    from safetensors.torch import save_file

    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    save_file({"a": torch.zeros(3, dtype=torch.uint8)}, tmp_path / "model.safetensors")
    with pytest.raises(ParseError, match="'a' is U8; .*Quantised models are not"):
        hf.read(tmp_path)


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({}, "has neither config.json nor adapter_config.json"),
        ({"m.gguf": b"GGUF"}, "is a folder with m.gguf: give that file"),
        ({"x.pth": b"PK\x03\x04"}, "x.pth is a pickle"),
        ({"config.json": b"[1]"}, "config.json holds a list"),
        ({"config.json": b"{"}, "config.json is no JSON"),
        ({"config.json": b"{}"}, "it holds no model, or its weights were not copied"),
    ],
)
def test_a_folder_that_is_none_says_what_it_is(tmp_path, files, said):
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ParseError, match=said):
        recognize.read_model(tmp_path)


def test_a_head_that_is_missing_is_not_taken_for_a_tied_one(folder, tmp_path):
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    tensors.pop("lm_head.weight")
    save_file(tensors, tmp_path / "model.safetensors")
    config = json.loads((folder / "config.json").read_text()) | {"tie_word_embeddings": False}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ParseError, match="has no lm_head.weight, and its config.json says that the head is not the embedding"):
        hf.read(tmp_path)
