"""`torchane lora`, whole command lines: every flag once, with what it changed; and every bad input, with one message and nothing overwritten."""

import json
import pickle
from functools import partial
from pathlib import Path

import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file

from torchane import options
from torchane.cli import tuning
from torchane.finetune import memory
from torchane.train.forward import HostModel

pytestmark = [pytest.mark.usefixtures("own_handlers"), pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")]


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    """A base in two shards, and an adapter of another one."""
    path = tmp_path_factory.mktemp("bases")
    tiny.folder(path / "llama", "llama", shard="300KB")
    tiny.folder(path / "qwen3", "qwen3")
    return path


@pytest.fixture
def lora(torchane_command, bases, tmp_path, monkeypatch):
    """lora("--iters", 3) -> Done, in an empty folder with base/ and data/."""
    monkeypatch.setattr(tuning, "tune", partial(tuning.tune, compile_model=lambda model, device, **options: HostModel(model, "twin")))
    for file in (bases / "llama").iterdir():
        target = tmp_path / "base" / file.name
        target.parent.mkdir(exist_ok=True)
        target.write_bytes(file.read_bytes())
    (tmp_path / "data").mkdir()
    for name, count in (("train", 8), ("valid", 2), ("test", 2)):
        lines = [json.dumps({"prompt": f"{i} and {i}?", "completion": f"{2 * i}. " * (1 + i % 3)}) for i in range(count)]
        (tmp_path / "data" / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    return lambda *arguments: torchane_command("lora", *(() if "--model" in arguments else ("--model", "base")), "--data", "data", *arguments)


# ---- bad input


def _shard_gone():
    sorted(Path("base").glob("model-*.safetensors"))[1].unlink()


def _shard_cut():
    path = sorted(Path("base").glob("model-*.safetensors"))[1]
    path.write_bytes(path.read_bytes()[:-100])


def _weight_gone():
    path = sorted(Path("base").glob("model-*.safetensors"))[0]
    weights = load_file(path)
    weights.popitem()
    save_file(weights, path, {"format": "pt"})


def _pickled():
    for path in Path("base").glob("model*"):
        path.unlink()
    Path("base/pytorch_model.bin").write_bytes(pickle.dumps(_Opened()))


class _Opened:
    """What unpickling would leave behind."""

    def __reduce__(self):
        return Path("unpickled").touch, ()


def _without_template():
    for path in Path("base").glob("chat_template*"):
        path.unlink()
    config = json.loads(Path("base/tokenizer_config.json").read_text())
    config.pop("chat_template", None)
    Path("base/tokenizer_config.json").write_text(json.dumps(config))


def _wrong_keys():
    with open("data/train.jsonl", "a") as file:
        file.write('{"question": "a", "answer": "b"}\n')


def _empty():
    Path("data/train.jsonl").write_text("\n\n")


def _vocabulary_too_small():
    config = json.loads(Path("base/config.json").read_text())
    Path("base/config.json").write_text(json.dumps({**config, "vocab_size": 40}))


@pytest.mark.parametrize(
    ("spoil", "arguments", "said"),
    [
        (_shard_gone, (), "of 2 files with weights missing, which model.safetensors.index.json names. Copy them from the model's origin"),
        (_shard_cut, (), "cut short or damaged: copy it from the model's origin again"),
        (_weight_gone, (), "is missing. Both must come from the same model"),
        (_pickled, (), "base/pytorch_model.bin is a pickle, which can run any code when it is read, and is never loaded. Convert it where you trust it"),
        (_without_template, (), "data/train.jsonl, line 1 is a conversation, and the model's tokenizer has no chat template"),
        (_wrong_keys, (), 'data/train.jsonl, line 9 has "question", "answer"; expected is "messages"'),
        (_empty, (), "data/train.jsonl holds no example, and --train needs one"),
        (_vocabulary_too_small, (), "Tokenizer and model do not belong together"),
        (lambda: Path("x.gguf").write_bytes(b"GGUF" + bytes(20)), ("--model", "x.gguf"), "x.gguf is GGUF of version 0; 2 and 3 are read"),
        (lambda: Path("x.bin").write_bytes(pickle.dumps(_Opened())), ("--model", "x.bin"), "is a pickle"),
        (lambda: Path("a.bin").write_bytes(pickle.dumps(_Opened())), ("--resume-adapter-file", "a.bin"), "a.bin is no safetensors file, and others (pickles) are never loaded"),
        (lambda: Path("a.safetensors").write_bytes(bytes(50)), ("--resume-adapter-file", "a.safetensors"), "a.safetensors cannot be read"),
    ],
    ids=lambda value: value.__name__.strip("_") if callable(value) else None,
)
def test_bad_input_ends_with_one_message_and_nothing_is_written(lora, spoil, arguments, said):
    spoil()
    before = {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()}
    done = lora("--train", "--iters", 1, *arguments)
    assert done.code in (1, 2) and said in done.err and "Traceback" not in done.err, done.err
    assert {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()} == before


def test_an_adapter_of_another_base_is_named_by_tensor_and_shape(lora, bases):
    done = lora("--train", "--iters", 1, "--model", bases / "qwen3", "--adapter-path", "other")
    assert done.code == 0, done.err
    before = Path("other/adapter_model.safetensors").read_bytes()
    for arguments in (("--train", "--resume-adapter-file", "other/adapter_model.safetensors"), ("--test", "--adapter-path", "other")):
        done = lora("--iters", 1, *arguments)
        assert done.code == 1 and "q_proj.lora_B.weight is (128, 8) and the model needs (64, 8)" in done.err and "another base" in done.err, done.err
    assert Path("other/adapter_model.safetensors").read_bytes() == before and not Path("adapters").exists()


def test_too_little_memory_is_said_with_an_estimate_before_a_weight_is_loaded(lora, monkeypatch):
    monkeypatch.setattr(memory, "free_bytes", lambda: (1 << 30) + (8 << 20))
    monkeypatch.setattr(tuning, "load_base", lambda path: pytest.fail("weights were loaded"))
    for path in Path("data").iterdir():
        path.write_text(json.dumps({"text": "0123456789" * 50}) + "\n")
    done = lora("--train", "--batch-size", 1)
    assert done.code == 2 and "A step needs about" in done.err and "1.01 GiB of memory are free. It would fit with --" in done.err, done.err
    assert not Path("adapters").exists()


# ---- every flag


CONFIG = "lora_parameters: {rank: 4, scale: 2.0, dropout: 0.0, keys: [self_attn.q_proj]}\nlr_schedule: {name: cosine_decay, arguments: [1e-3, 10, 1e-5], warmup: 2}\n"
#: Of each flag: what is given, and what the run's settings say then; None where something else is looked at below.
FLAGS = {
    "model": ("base", None), "train": (None, None), "data": ("data", None), "fine_tune_type": ("dora", "dora"), "optimizer": ("adamw", "adamw"),
    "mask_prompt": (None, True), "packing": (None, True), "num_layers": (2, 2), "batch_size": (2, 2), "iters": (3, 3), "val_batches": (1, 1),
    "learning_rate": (1e-3, 1e-3), "steps_per_report": (1, 1), "steps_per_eval": (1, 1), "grad_accumulation_steps": (2, 2),
    "resume_adapter_file": ("first/adapter_model.safetensors", None), "adapter_path": ("run", None), "save_every": (1, 1), "test": (None, None),
    "test_batches": (1, 1), "max_seq_length": (48, 48), "config": ("settings.yaml", None), "grad_checkpoint": (None, True), "quantize": (8, 8),
    "arithmetic": ("fast", "fast"), "report_to": ("wandb", None), "project_name": ("foxes", None), "seed": (7, 7), "resume": ("first", None),
    "device": ("twin", None), "threads": (1, None), "as_json": (None, None),
}  # fmt: skip


def flag(name, value):
    option = next(one for one in options.of("lora") if (one.dest or one.key) == name)
    return (option.flag,) if value is None else (option.flag, value)


def test_every_flag_is_in_the_table():
    assert {one.dest or one.key for one in options.of("lora")} == set(FLAGS)


@pytest.mark.long
@pytest.mark.parametrize("name", [name for name, (_, said) in FLAGS.items() if said is not None])
def test_a_flag_is_a_setting_of_the_run(lora, name):
    value, said = FLAGS[name]
    more = ("--batch-size", 1, "--max-seq-length", 48) if name == "packing" else ()
    done = lora("--train", *(() if name == "iters" else ("--iters", 1)), *more, *flag(name, value))
    assert done.code == 0, done.err
    settings = json.loads(Path("adapters/training.json").read_text())["settings"]
    assert settings[name] == said
    assert len([line for line in Path("adapters/metrics.jsonl").read_text().splitlines() if '"step"' in line and '"loss"' in line]) == settings["iters"]


@pytest.mark.long
def test_the_other_flags_do_what_they_say(lora, monkeypatch):
    Path("settings.yaml").write_text(CONFIG)
    done = lora("--train", "--iters", 2, "--save-every", 1, "-c", "settings.yaml", "--adapter-path", "first", "--device", "twin", "--threads", 1, "--test", "--json")
    assert done.code == 0 and done.json["adapter"] == "first" and done.json["test_loss"] > 0 and done.json["device"] == "twin"
    about = json.loads(Path("first/training.json").read_text())
    assert about["settings"]["lora_parameters"] == {"rank": 4, "scale": 2.0, "dropout": 0.0, "keys": ["self_attn.q_proj"]}
    assert about["settings"]["lr_schedule"]["name"] == "cosine_decay" and Path("first/0000001_adapter_model.safetensors").exists()
    written = load_file("first/adapter_model.safetensors")
    assert {tuple(value.shape) for value in written.values()} == {(4, 64), (64, 4)}
    again = lora("--train", "--iters", 1, "-c", "settings.yaml", "--adapter-path", "second", "--resume-adapter-file", "first/adapter_model.safetensors", "--learning-rate", 1e-9)
    assert again.code == 0, again.err
    begun = load_file("second/adapter_model.safetensors")
    assert all(torch.allclose(begun[name], value, atol=2e-2) and bool(begun[name].any()) for name, value in written.items())
    assert done.json["iters"] == 2
