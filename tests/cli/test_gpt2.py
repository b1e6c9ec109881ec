"""`torchane train --preset gpt2` and what follows, at a size that a test can train."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import GPT2LMHeadModel

from torchane.cli import training
from torchane.data.tokenizer import Tokenizer
from torchane.models.config import GPT2Config
from torchane.models.presets import preset


@pytest.fixture(autouse=True)
def small_gpt2(monkeypatch):
    config = GPT2Config(vocab_size=300, n_positions=16, n_embd=32, n_layer=2, n_head=4, initializer_range=0.2)
    monkeypatch.setattr(training, "preset", lambda name: replace(preset(name), config=config))


@pytest.fixture
def run(torchane_command, small):
    done = torchane_command(*small, "--preset", "gpt2")
    assert done.code == 0 and done.json["preset"] == "gpt2"
    return Path("run")


def test_windows_longer_than_its_positions_give_it_more(run):
    assert json.loads((run / "config.json").read_text())["n_positions"] == 32


def test_its_tokenizer_keeps_to_the_vocabulary(run):
    assert Tokenizer.load(run / "tokenizer.json").vocab_size == 300


def test_transformers_writes_the_same_from_the_run_folder(torchane_command, run):
    tokenizer = Tokenizer.load(run / "tokenizer.json")
    prompt = torch.tensor([[tokenizer.end_id, *tokenizer.encode("Line 7")]])
    model = GPT2LMHeadModel.from_pretrained(run)
    options = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": tokenizer.end_id, "eos_token_id": tokenizer.end_id}
    want = model.generate(prompt, attention_mask=torch.ones_like(prompt), **options)[0, prompt.shape[1] :].tolist()
    want = want[: want.index(tokenizer.end_id)] if tokenizer.end_id in want else want
    assert len(want) > 3
    done = torchane_command("generate", run, "--prompt", "Line 7", "--max-tokens", 12, "--temperature", 0, "--json")
    assert done.code == 0 and done.json["text"] == tokenizer.decode(want)


def test_the_seed_alone_fixes_a_run_and_its_continuation(torchane_command, small_elsewhere, run):
    torch.manual_seed(1)  # another process's generator stands elsewhere
    assert torchane_command(*small_elsewhere, "--preset", "gpt2", "--out", "other").code == 0
    assert (run / "training.safetensors").read_bytes() == Path("other/training.safetensors").read_bytes()
    for seed, folder in enumerate(("run", "other")):
        torch.manual_seed(seed)
        assert torchane_command("train", "--resume", folder, "--steps", 8).code == 0
    assert (run / "training.safetensors").read_bytes() == Path("other/training.safetensors").read_bytes()
