"""`torchane eval`: what is printed, and what is refused before a model is loaded."""

import json
from pathlib import Path

import pytest

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
        (("m", "--tasks", "x", "--device", "twin"), "--tasks are computed by PyTorch"),
        (("m", "--data", "nowhere.txt"), "nowhere.txt cannot be read"),
        (("nowhere", "--data", "d.jsonl"), "There is no model nowhere"),
    ],
)
def test_misuse_ends_with_2(torchane_command, arguments, said):
    Path("d.jsonl").write_text('{"text": "a b"}\n')
    done = torchane_command("eval", *arguments)
    assert done.code == 2 and said in done.err
