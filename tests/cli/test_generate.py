"""`torchane generate`: text, JSON, and the mistakes one can make."""

from pathlib import Path

import pytest


@pytest.fixture
def run(torchane_command, small):
    assert torchane_command(*small).code == 0
    return "run"


def test_it_continues_the_prompt(torchane_command, run):
    done = torchane_command("generate", run, "--prompt", "Line 7", "--max-tokens", 12)
    assert done.code == 0 and done.out.startswith("Line 7") and len(done.out) > len("Line 7\n")


def test_json_holds_the_same_text(torchane_command, run):
    plain = torchane_command("generate", run, "--prompt", "Line 7", "--max-tokens", 12)
    done = torchane_command("generate", run, "--prompt", "Line 7", "--max-tokens", 12, "--json")
    assert done.json["prompt"] + done.json["text"] + "\n" == plain.out
    assert done.json["tokens"] == 12 and done.json["tokens_per_s"] > 0


def test_the_seed_fixes_the_text(torchane_command, run):
    texts = [torchane_command("generate", run, "--seed", seed, "--max-tokens", 20).out for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]


def test_a_folder_that_is_not_there_ends_with_2(torchane_command):
    done = torchane_command("generate", "nowhere")
    assert done.code == 2 and "Directory 'nowhere' does not exist" in done.err


def test_a_folder_that_is_no_run_ends_with_1(torchane_command):
    Path("other").mkdir()
    done = torchane_command("generate", "other")
    assert done.code == 1 and "RunFolderError: other/config.json does not exist" in done.err


def test_a_prompt_that_is_not_utf8_ends_with_2(torchane_command, run):
    done = torchane_command("generate", run, "--prompt", b"caf\xe9".decode(errors="surrogateescape"))
    assert done.code == 2 and "UsageError: The prompt is not UTF-8 text: 'caf\\udce9'." in done.err


def test_damaged_weights_end_with_1(torchane_command, run):
    Path(run, "model.safetensors").write_bytes(b"\0" * 100)
    done = torchane_command("generate", run)
    assert done.code == 1 and "run/model.safetensors cannot be read" in done.err and "Traceback" not in done.err


@pytest.mark.parametrize("arguments", [(), ("run", "--temperature", "-1"), ("run", "--top-k", "0")])
def test_misuse_ends_with_2(torchane_command, arguments):
    assert torchane_command("generate", *arguments).code == 2
