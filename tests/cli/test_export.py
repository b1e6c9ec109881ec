"""`torchane export`, `fuse`, `import`: what is written, what is said, and that nothing is written over."""

import json
import shutil
from pathlib import Path

import pytest
import torch

pytest.importorskip("gguf", reason="gguf is not installed (pip install 'torchane[finetune]')")
pytest.importorskip("transformers", reason="transformers is not installed (pip install 'torchane[finetune]')")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The files of a run that its readers look at: config, weights, tokenizer."""
    from torchane.data.tokenizer import Tokenizer
    from torchane.models.build import build_model
    from torchane.models.config import LlamaConfig
    from torchane.models.folder import save_config, save_weights

    folder = tmp_path_factory.mktemp("runs") / "run"
    folder.mkdir()
    tokenizer = Tokenizer.train(["Line 7: the 49th fox went over 3 hills.\n" * 50], 300)
    model = build_model(LlamaConfig(tokenizer.vocab_size, 64, 96, 2, 4, 2, 64))
    save_config(folder, model.config)
    save_weights(folder, model)
    (folder / "tokenizer.json").write_text(tokenizer.to_text())
    (folder / "run.json").write_text("{}")
    return folder


@pytest.fixture
def run(torchane_command, trained):
    shutil.copytree(trained, "run")
    return "run"


def test_a_run_is_exported_and_the_commands_that_use_it_are_said(torchane_command, run):
    done = torchane_command("export", run, "--to", "hf,mlx,gguf,llama2c", "--out", "out")
    assert done.code == 0, done.err
    assert {str(path) for path in Path("out").rglob("*") if path.is_file()} == {
        "out/hf/config.json", "out/hf/model.safetensors", "out/hf/tokenizer.json", "out/hf/tokenizer_config.json", "out/mlx/config.json",
        "out/mlx/model.safetensors", "out/mlx/tokenizer.json", "out/mlx/tokenizer_config.json", "out/gguf/run-f16.gguf", "out/gguf/Modelfile",
        "out/llama2c/model.bin", "out/llama2c/model-q80.bin",
    }  # fmt: skip
    assert Path("out/gguf/Modelfile").read_text() == "FROM ./run-f16.gguf\n"
    for command in ("ollama create run -f out/gguf/Modelfile", "lms import out/gguf/run-f16.gguf", "mlx_lm.generate --model out/mlx", "./run out/llama2c/model.bin"):
        assert command in done.out
    assert "There is no tokenizer.bin: run.c knows SentencePiece vocabularies only" in done.out


def test_transformers_reads_the_export_of_a_run_as_the_run_reads_itself(torchane_command, run):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from torchane.train.run_folder import load_run_model, load_tokenizer

    assert torchane_command("export", run, "--to", "hf", "--out", "out").code == 0
    own, tokenizer = load_run_model(Path(run)), load_tokenizer(Path(run))
    tokens = [tokenizer.end_id, *tokenizer.encode("Line 7: the fox")]
    assert AutoTokenizer.from_pretrained("out/hf")("Line 7: the fox").input_ids == tokens
    with torch.no_grad():
        theirs = AutoModelForCausalLM.from_pretrained("out/hf")(torch.tensor([tokens])).logits
        torch.testing.assert_close(own(torch.tensor([tokens])), theirs, rtol=1e-4, atol=1e-4)


def test_nothing_is_written_over_and_no_part_is_left(torchane_command, run):
    Path("out/gguf").mkdir(parents=True)
    Path("out/gguf/mine").write_text("mine")
    done = torchane_command("export", run, "--to", "gguf,hf", "--out", "out")
    assert done.code == 2 and "out/gguf is there already, and nothing is written over" in done.err
    assert Path("out/gguf/mine").read_text() == "mine" and sorted(path.name for path in Path("out").iterdir()) == ["gguf", "hf"]


def test_what_a_target_refuses_is_said_and_the_rest_is_written(torchane_command, run):
    done = torchane_command("export", run, "--to", "peft,hf", "--out", "out")
    assert done.code == 2 and "peft: run is a whole model, and peft holds what is added to one" in done.err
    assert sorted(path.name for path in Path("out").iterdir()) == ["hf"]


def test_what_was_written_before_the_disk_was_full_is_said(torchane_command, run, monkeypatch):
    from torchane.convert import hf
    from torchane.convert.files import OutputError

    def full(model, folder):
        raise OutputError("The disk is full.")

    monkeypatch.setattr(hf, "write", full)
    done = torchane_command("export", run, "--to", "gguf,hf", "--out", "out")
    assert done.code == 1 and "The disk is full" in done.err and "out/gguf" in done.out and sorted(path.name for path in Path("out").iterdir()) == ["gguf"]


def test_a_gguf_is_imported_and_fused_models_say_dequantize(torchane_command, run):
    assert torchane_command("export", run, "--to", "gguf", "--gguf-type", "q8_0", "--out", "out").code == 0
    done = torchane_command("import", "out/gguf/run-q8_0.gguf", "--out", "back", "--json")
    assert done.code == 0 and done.json["written"][0]["path"] == "back" and Path("back/model.safetensors").exists()
    assert json.loads(Path("back/config.json").read_text())["model_type"] == "llama"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("nowhere", "--to", "hf"), "nowhere does not exist. Give a folder of a model"),
        (("run",), "--to says in which formats: one or more of hf, peft, mlx, gguf, gguf-lora, llama2c"),
        (("run", "--to", "onnx"), "there is no format onnx"),
        (("run", "--to", "hf", "--model", "x"), "--model names the base of an adapter, and run is a whole model"),
        (("run", "--to", "hf", "--tokenizer", "t.bin"), "--tokenizer is for a .bin file of llama2.c, and run is run"),
    ],
)
def test_misuse_ends_with_2(torchane_command, run, arguments, said):
    done = torchane_command("export", *arguments)
    assert done.code == 2 and said in done.err


def test_a_pickle_ends_with_1(torchane_command):
    Path("other").mkdir()
    torch.save({}, "other/pytorch_model.bin")
    done = torchane_command("export", "other", "--to", "hf")
    assert done.code == 1 and "ParseError: other/pytorch_model.bin is a pickle" in done.err and "Traceback" not in done.err


@pytest.fixture
def adapter(tmp_path):
    """An adapter on a tiny base, both in the working folder."""
    import small_adapters
    import small_models

    small_models.save(tmp_path / "base")
    return small_adapters.save(tmp_path / "base", tmp_path / "adapters", target_modules=["q_proj", "v_proj"])


def test_an_adapter_goes_to_every_format(torchane_command, adapter):
    done = torchane_command("export", "adapters", "--to", "hf,peft,mlx,gguf,gguf-lora", "--out", "out", "--json")
    assert done.code == 0 and [one["format"] for one in done.json["written"]] == ["hf", "peft", "mlx", "gguf", "gguf-lora"]
    assert any("--adapter-path out/mlx" in command for command in done.json["written"][2]["commands"])
    assert "ADAPTER ./adapters-lora.gguf" in Path("out/gguf-lora/Modelfile").read_text()


def modelfile(path: Path) -> dict[str, str]:
    """A Modelfile's instructions by Ollama's grammar: lines that are comments, or an instruction, a space and its argument to the line's end. FROM
    and ADAPTER are files, looked for beside the Modelfile. Source: ollama, docs/modelfile.mdx."""
    lines = [line for line in path.read_text().splitlines() if line.strip() and not line.startswith("#")]
    found = dict(line.split(" ", 1) for line in lines)
    assert set(found) <= {"FROM", "ADAPTER"} and "FROM" in found and len(found) == len(lines)
    assert all((path.parent / argument).exists() for argument in found.values()), found
    return found


def test_the_files_that_a_modelfile_names_are_there_as_ollama_looks_for_them(torchane_command, adapter):
    assert torchane_command("export", "adapters", "--to", "gguf,gguf-lora", "--out", "a b", "--model", "base").code == 0
    assert modelfile(Path("a b/gguf/Modelfile")) == {"FROM": "./adapters-f16.gguf"}
    assert modelfile(Path("a b/gguf-lora/Modelfile")) == {"FROM": str(Path("base").resolve()), "ADAPTER": "./adapters-lora.gguf"}


def test_what_others_cannot_load_as_a_base_is_to_be_converted_first(torchane_command, adapter):
    assert torchane_command("export", "base", "--to", "gguf", "--out", "out").code == 0
    done = torchane_command("export", "adapters", "--to", "peft,mlx,gguf-lora", "--out", "other", "--model", "out/gguf/base-f16.gguf", "--json")
    peft, mlx, lora = done.json["written"]
    for one, command in ((peft, "from_pretrained('BASE')"), (mlx, "mlx_lm.generate --model BASE --adapter-path other/mlx")):
        assert command in one["commands"][0] and one["notes"] == ["BASE is the base as a folder: torchane import out/gguf/base-f16.gguf --out BASE"]
    assert lora["commands"][0].startswith("llama-cli -m out/gguf/base-f16.gguf --lora other/gguf-lora/") and not lora["notes"]
    assert torchane_command("export", "adapters", "--to", "gguf-lora", "--out", "third", "--json").json["written"][0]["notes"][0].endswith("base --to gguf")


def test_fuse_has_mlx_lms_flags_and_defaults(torchane_command, adapter):
    done = torchane_command("fuse", "--model", "base")
    assert done.code == 0 and Path("fused_model/model.safetensors").exists(), done.err
    assert torchane_command("export", "base", "--to", "gguf", "--gguf-type", "q8_0", "--out", "out").code == 0
    refused = torchane_command("fuse", "--model", "out/gguf/base-q8_0.gguf", "--save-path", "other")
    assert refused.code == 2 and "keeps its weights in Q8_0, and the merged model is written as floats: say --dequantize" in refused.err
    assert torchane_command("fuse", "--model", "out/gguf/base-q8_0.gguf", "--save-path", "other", "--dequantize").code == 0


def test_a_base_that_is_gone_is_asked_for(torchane_command, adapter):
    Path("base").rename("elsewhere")
    done = torchane_command("export", "adapters", "--to", "peft", "--out", "out")
    assert done.code == 2 and "says that it belongs to" in done.err and "name the base with --model" in done.err
    assert torchane_command("export", "adapters", "--to", "peft", "--out", "out", "--model", "elsewhere").code == 0
