"""`torchane eval`: what is printed, and what is refused before a model is loaded."""

import json
from pathlib import Path

import pytest
import torch

from torchane import native
from torchane.options import ARITHMETICS

pytest.importorskip("transformers", reason="transformers is not installed (pip install 'torchane[finetune]')")


@pytest.fixture
def folder(tmp_path):
    import small_models

    from torchane.finetune.extras import quiet_transformers

    with quiet_transformers():
        return small_models.save(tmp_path / "m")


def test_a_text_gives_perplexity_and_bits_per_byte(torchane_command, folder):
    Path("notes.txt").write_text("The cat's hat, 1234 of them, sat on the mat.")
    done = torchane_command("eval", "m", "--data", "notes.txt", "--json")
    assert done.code == 0 and done.json["kind"] == "perplexity" and done.json["results"]["bytes"] == 44
    assert "bits_per_byte: " in torchane_command("eval", "m", "--data", "notes.txt").out


def test_lines_with_choices_are_counted(torchane_command, folder):
    line = {"prompt": "The cat", "choices": ["sat", "hat"], "answer": "sat"}
    Path("d.jsonl").write_text(f"{json.dumps(line)}\n" * 3)
    done = torchane_command("eval", "m", "--data", "d.jsonl", "--limit", 2, "--json")
    assert done.code == 0 and done.json["kind"] == "choice" and done.json["results"]["count"] == 2


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("m",), "give one of the two"),
        (("m", "--data", "d.jsonl", "--tasks", "x"), "give one of the two"),
        (("m", "--data", "d.jsonl", "--num-shots", 2), "--num-shots is for --tasks"),
        (("m", "--data", "d.jsonl", "--apply-chat-template"), "--apply-chat-template is for --tasks"),
        (("m", "--data", "d.jsonl", "--device", "host", "--arithmetic", "fast"), "--arithmetic fast is the twin's, and --device is host. Add --device twin"),
        (("m", "--data", "d.jsonl", "--device", "ane", "--arithmetic", "engine"), "--arithmetic engine is the twin's, and --device is ane"),
        (("m", "--data", "nowhere.txt"), "nowhere.txt cannot be read"),
        (("nowhere", "--data", "d.jsonl"), "There is no model nowhere"),
    ],
)
def test_misuse_ends_with_2(torchane_command, arguments, said):
    Path("d.jsonl").write_text('{"text": "a b"}\n')
    done = torchane_command("eval", *arguments)
    assert done.code == 2 and said in done.err


@pytest.mark.long
@pytest.mark.skipif(not native.is_built(), reason="the extension is not built")
@pytest.mark.parametrize("arithmetic", ARITHMETICS)
def test_each_arithmetic_measures_what_pytorch_measures(torchane_command, folder, arithmetic):
    """Perplexity within the arithmetic's own error, exact match and multiple choice alike."""
    if arithmetic == "fast" and not native.has_fast():
        pytest.skip("this processor multiplies no bf16 numbers")
    prompt = "The cat's hat, 1234 of them, sat on the mat."
    Path("notes.txt").write_text(prompt * 3)
    Path("choice.jsonl").write_text(json.dumps({"prompt": "The cat", "choices": ["sat on the mat", "hat", "!"], "answer": 1}))
    Path("match.jsonl").write_text(json.dumps({"prompt": "The cat", "completion": "sat"}))
    for file in ("notes.txt", "choice.jsonl", "match.jsonl"):
        torch._dynamo.reset()
        options = ("eval", "m", "--data", file, "--batch-size", 2, "--max-tokens", 4, "--json")
        theirs, ours = torchane_command(*options), torchane_command(*options, "--device", "twin", "--arithmetic", arithmetic)
        assert theirs.code == ours.code == 0, ours.err
        assert ours.json["results"] == pytest.approx(theirs.json["results"], rel={"exact": 2e-3, "fast": 2e-2, "engine": 2e-2}[arithmetic])
        if file == "notes.txt":
            assert ours.json["results"]["nats_per_token"] != theirs.json["results"]["nats_per_token"]  # programs ran
    torch._dynamo.reset()
