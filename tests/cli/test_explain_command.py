"""`torchane explain MODEL`: presets, folders, and what is neither."""

import json

import pytest
import torch

from torchane.cli import run
from torchane.models.folder import save_config
from torchane.models.presets import PRESETS


@pytest.fixture(autouse=True)
def nothing_compiled_before():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def test_a_folder_with_a_config_is_explained_as_json(tmp_path, capsys) -> None:
    save_config(tmp_path, PRESETS["stories260k"].config)
    assert run(["explain", str(tmp_path), "--seq-len", "32", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {graph["name"] for graph in found["graphs"]} == {"forward", "backward"}
    assert found["macs_share"]["program"] > 0.99
    assert found["memory_bytes"]["total"] > 16 * 260_000


def test_an_unknown_name_is_a_misuse_that_lists_the_models(capsys) -> None:
    assert run(["explain", "gpt5"]) == 2
    assert "those are tiny" in capsys.readouterr().err


def test_another_architecture_is_named(tmp_path, capsys) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "mamba"}')
    assert run(["explain", str(tmp_path)]) == 1
    assert "model_type is 'mamba'; built here are llama, qwen3, gpt2" in capsys.readouterr().err


def test_an_unknown_chip_is_misuse(capsys) -> None:
    assert run(["explain", "tiny", "--chip", "m99"]) == 2
    assert "no chip is called 'm99'" in capsys.readouterr().err
