"""`torchane generate`: text, JSON, and the mistakes one can make."""

import io
import os
import signal
from pathlib import Path

import pytest
import torch

from torchane import native


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
    assert done.code == 2 and "There is no model nowhere. Give a folder" in done.err


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


@pytest.mark.parametrize("arguments", [(), ("run", "--temperature", "-1"), ("run", "--top-k", "-1"), ("run", "--model", "run")])
def test_misuse_ends_with_2(torchane_command, arguments):
    assert torchane_command("generate", *arguments).code == 2


def test_several_prompts_a_stop_and_filters_on_a_run(torchane_command, run):
    done = torchane_command("generate", run, "--prompt", "Line 7", "--prompt", "Line 8", "--max-tokens", 30, "--stop", "fox", "--top-p", 0.9, "--min-p", 0.05,
                            "--repetition-penalty", 1.1, "--json")  # fmt: skip
    assert done.code == 0 and [one["prompt"] for one in done.json["results"]] == ["Line 7", "Line 8"]
    assert all("fox" not in one["text"] and one["end"] in ("stop", "length", "end") for one in done.json["results"])
    assert done.json["prefill_tokens_per_s"] > 0


@pytest.fixture
def folder(tmp_path):
    pytest.importorskip("transformers", reason="transformers is not installed (pip install 'torchane[finetune]')")
    import small_models

    from torchane.finetune.extras import quiet_transformers

    with quiet_transformers():
        return small_models.save(tmp_path / "m")


def test_a_prompt_is_a_message_where_there_is_a_template(torchane_command, folder):
    done = torchane_command("generate", "m", "--prompt", "The cat", "--max-tokens", 5, "--temperature", 0, "--system-prompt", "Be brief", "--json")
    plain = torchane_command("generate", "m", "--prompt", "[system] Be brief\n[user] The cat\n", "--ignore-chat-template", "--max-tokens", 5, "--temperature", 0, "--json")
    assert done.code == 0 and done.json["prompt"] == "The cat" and done.json["text"] == plain.json["text"] and done.json["tokens"] == 5


def test_text_comes_on_standard_output_and_speed_on_standard_error(torchane_command, folder):
    done = torchane_command("generate", "m", "--prompt", "The cat", "--ignore-chat-template", "--max-tokens", 5, "--temperature", 0)
    assert done.code == 0 and done.out.startswith("The cat") and "tokens/s read" in done.err and "5 written" in done.err and "; on host)" in done.err


def test_a_chat_goes_on_from_what_was_said(torchane_command, folder, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("hello\n\n/reset\nhello\n/exit\nnever\n"))
    done = torchane_command("chat", "m", "--temperature", 0, "--max-tokens", 4)
    lines = done.out.splitlines()
    assert done.code == 0 and len(lines) >= 2 and lines[0] == lines[len(lines) // 2], done.err
    assert done.err.count("tokens read") == 2


def test_a_chat_without_a_template_is_refused_before_anything_is_typed(torchane_command, folder):
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|endoftext|>"}')
    done = torchane_command("chat", "m")
    assert done.code == 2 and "has no chat template" in done.err


def test_the_flags_of_mlx_lm_give_the_same_text(torchane_command, folder, monkeypatch):
    ours = torchane_command("generate", "m", "--prompt", "The cat", "--max-tokens", 5, "--temperature", 0, "--json")
    monkeypatch.setattr("sys.stdin", io.StringIO("The cat"))
    theirs = torchane_command("generate", "--model", "m", "-p", "-", "-m", 5, "--temp", 0.0, "--top-p", 1.0, "--min-p", 0.0, "--top-k", 0, "--seed", 3, "--json")
    assert ours.json["text"] == theirs.json["text"] and theirs.json["tokens"] == 5


def test_an_answer_begins_as_it_is_told_and_ends_at_a_token_more(torchane_command, folder):
    told = torchane_command("generate", "m", "--prompt", "The", "--prefill-response", "cat", "--max-tokens", 5, "--temp", 0, "--json")
    plain = torchane_command("generate", "m", "--prompt", "[user] The\ncat", "--ignore-chat-template", "--max-tokens", 5, "--temp", 0, "--json")
    assert told.json["text"] == plain.json["text"]
    unknown = torchane_command("generate", "m", "--prompt", "The", "--extra-eos-token", "<nothing>")
    assert unknown.code == 2 and "'<nothing>' is no token of m" in unknown.err


@pytest.mark.parametrize("arguments", [("--device", "host", "--arithmetic", "fast"), ("--device", "ane", "--arithmetic", "engine")])
@pytest.mark.parametrize("command", ["generate", "chat"])
def test_an_arithmetic_without_the_twin_ends_with_2(torchane_command, folder, command, arguments):
    done = torchane_command(command, "m", *arguments)
    assert done.code == 2 and f"--arithmetic {arguments[3]} is the twin's, and --device is {arguments[1]}" in done.err


@pytest.mark.long
@pytest.mark.skipif(not native.is_built(), reason="the extension is not built")
def test_the_arithmetic_of_a_text_is_that_of_its_programs(torchane_command, folder, monkeypatch):
    """What a program multiplies in bf16 gives other scores than in fp16; the host's own are nearer to the exact ones."""
    if not native.has_fast():
        pytest.skip("this processor multiplies no bf16 numbers")
    from torchane.generate import pretrained

    found = []
    monkeypatch.setattr(pretrained._Scores, "__call__", lambda self, ids, scores: found.append(scores[0]) or scores)
    for options in ((), ("--device", "twin"), ("--device", "twin", "--arithmetic", "fast"), ("--device", "twin", "--arithmetic", "engine")):
        torch._dynamo.reset()
        done = torchane_command("generate", "m", "--prompt", "The cat", "--ignore-chat-template", "--max-tokens", 1, "--temperature", 0, *options)
        assert done.code == 0, done.err
    torch._dynamo.reset()
    host, exact, fast, engine = (one.double() for one in found)
    far = [float((one - host).norm() / host.norm()) for one in (exact, fast, engine)]
    assert 0 < far[0] < 2e-3 < far[1] < 2e-2 and far[0] != far[2] < 2e-2


@pytest.fixture
def stopped_at_the_third_token(monkeypatch):
    """By Ctrl-C."""
    from torchane.generate.sampling import Text

    add = Text.add

    def once_more(self, token):
        if self.tokens == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return add(self, token)

    monkeypatch.setattr(Text, "add", once_more)


def test_ctrl_c_while_a_run_writes_ends_its_line_and_exits_with_130(torchane_command, run, stopped_at_the_third_token):
    done = torchane_command("generate", run, "--prompt", "Line 7", "--max-tokens", 12)
    assert done.code == 130 and done.out.startswith("Line 7") and done.out.endswith("\n") and done.err.endswith("Stopped.\n")


@pytest.mark.parametrize("command", ["generate", "chat"])
def test_ctrl_c_while_a_folder_writes_ends_its_line_and_exits_with_130(torchane_command, folder, stopped_at_the_third_token, monkeypatch, command):
    monkeypatch.setattr("sys.stdin", io.StringIO("The cat\n"))
    done = torchane_command(command, "m", *(("--prompt", "-") if command == "generate" else ()), "--max-tokens", 12, "--temperature", 0)
    assert done.code == 130 and done.out.endswith("\n") and done.err.endswith("Stopped.\n") and "Traceback" not in done.err


@pytest.mark.parametrize(("text", "said"), [("{", "no JSON"), ("[1]", "must be a JSON object")])
def test_settings_of_a_template_that_are_none_end_with_2(torchane_command, text, said):
    done = torchane_command("generate", "m", "--prompt", "The", "--chat-template-config", text)
    assert done.code == 2 and said in done.err
