"""Beside mlx-lm itself, on its CPU wheels: its flags, keys, defaults, schedules, tokens and masks, its losses, and its training with the same first numbers."""

import json
from types import SimpleNamespace

import click
import numpy as np
import pytest
import tiny

from torchane import options
from torchane.cli.lora import command
from torchane.convert import hf, mlx, peft
from torchane.errors import UsageError
from torchane.finetune.adapters import add_adapter, trained
from torchane.finetune.batches import TrainBatches, fixed_batches
from torchane.finetune.data import load_splits
from torchane.finetune.loop import Logits, accumulate, mean_loss
from torchane.finetune.models import load_base
from torchane.finetune.optimizers import make_optimizer, make_schedule
from torchane.finetune.settings import UNSUPPORTED, LoraParameters, LoraSettings, resolve
from torchane.train.engine import EngineModel

pytestmark = [pytest.mark.long, pytest.mark.filterwarnings("ignore"), pytest.mark.timeout(1800)]  # mlx-lm's own warnings
WHY = "mlx-lm is not installed (pip install 'mlx[cpu]' mlx-lm)"
CHAT = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"}, {"role": "user", "content": "so?"}, {"role": "assistant", "content": "no"}]
TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {}}}]


@pytest.fixture(scope="module")
def lora():
    pytest.importorskip("mlx.core", reason=WHY)
    return pytest.importorskip("mlx_lm.lora", reason=WHY)


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """Folders of two bases, by name, and of data: every example is longer than 33 tokens, so that none is padded where they are cut to so many."""
    path = tmp_path_factory.mktemp("places")
    for kind in ("llama", "qwen3"):
        tiny.folder(path / kind, kind)
    for name, count in (("train", 12), ("valid", 8)):
        lines = [{"prompt": f"{i} and {i}?", "completion": f"{2 * i} foxes. " * 6} for i in range(count)]
        (path / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


# ---- flags, keys, defaults


def test_every_flag_is_taken_or_answered(lora):
    flags = {flag for action in lora.build_parser()._actions for flag in action.option_strings}
    ours = {each for option in options.of("lora") for each in (option.flag, option.short) if each}
    assert flags - ours - {"-h", "--help"} == {"--clear-cache-threshold", "--trust-remote-code"}
    for name in ("clear_cache_threshold", "trust_remote_code"):
        with pytest.raises(click.UsageError, match=f"--{name.replace('_', '-')} is not supported: {UNSUPPORTED[name]}"):
            command.make_context("lora", [f"--{name.replace('_', '-')}"])


def test_every_default_of_a_setting_is_mlx_lms(lora):
    settings, places = resolve({}, None)
    for name, value in lora.CONFIG_DEFAULTS.items():
        if name == "lora_parameters":
            assert {key: getattr(settings.lora_parameters, key) for key in value} == value
        elif name != "optimizer_config" and hasattr(settings, name):
            assert getattr(settings, name) == value, name
        else:  # no model and no data is taken for granted
            assert name in {*places, *UNSUPPORTED, "optimizer_config", "config"}, name


def test_a_file_of_all_its_defaults_is_taken(lora, tmp_path):
    (tmp_path / "c.yaml").write_text(json.dumps(lora.CONFIG_DEFAULTS))
    settings, places = resolve({}, tmp_path / "c.yaml")
    assert settings == LoraSettings() and places["adapter_path"] == "adapters"


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_what_is_not_taken_is_refused_with_its_reason(name, tmp_path):
    (tmp_path / "c.yaml").write_text(f"{name}: 1\n")
    with pytest.raises(UsageError, match=f"{name} is not supported: "):
        resolve({}, tmp_path / "c.yaml")


@pytest.mark.parametrize("warmup", [{}, {"warmup": 7}, {"warmup": 5, "warmup_init": 1e-7}])
@pytest.mark.parametrize(
    ("name", "arguments"),
    [("cosine_decay", [1e-3, 20]), ("cosine_decay", [1e-3, 20, 1e-5]), ("linear_schedule", [1e-3, 1e-6, 15]), ("exponential_decay", [1e-3, 0.9]), ("step_decay", [1e-3, 0.5, 4])],
)
def test_a_schedule_is_mlxs_at_every_update(lora, name, arguments, warmup):
    config = {"name": name, "arguments": arguments, **warmup}
    theirs = lora.build_schedule(config)
    ours = make_schedule(config, 1.0)
    rates = [float(np.array(theirs(lora.mx.array(update)))) for update in range(40)]
    assert [ours(update) for update in range(40)] == pytest.approx(rates, rel=2e-5, abs=1e-9)  # theirs are float32


def test_the_rate_of_an_update_is_the_one_that_its_optimizer_takes(lora):
    """Of the first one, too: rates are counted from the same update."""
    config = {"name": "linear_schedule", "arguments": [1.0, 0.0, 8], "warmup": 2}
    weight, optimizer, ours = {"w": lora.mx.zeros(1)}, lora.optim.SGD(learning_rate=lora.build_schedule(config)), make_schedule(config, 1.0)
    for update in range(10):
        moved = optimizer.apply_gradients({"w": lora.mx.ones(1)}, weight)
        assert float(weight["w"].item() - moved["w"].item()) == pytest.approx(ours(update), abs=1e-6)
        weight = moved


# ---- data


@pytest.mark.parametrize("mask_prompt", [False, True])
@pytest.mark.parametrize(
    "line",
    [{"text": "abc"}, {"text": "d<|endoftext|>"}, {"messages": CHAT}, {"messages": CHAT, "tools": TOOLS}, {"messages": CHAT[:3]}, {"prompt": "hi", "completion": "yes"},
     {"prompt": "hi", "completion": "yes", "tools": TOOLS}],
)  # fmt: skip
def test_a_line_has_the_tokens_and_the_mask_of_mlx_lm(lora, tmp_path, line, mask_prompt):
    datasets = pytest.importorskip("mlx_lm.tuner.datasets")
    (tmp_path / "train.jsonl").write_text(json.dumps(line) + "\n")
    tokenizer, settings = tiny.tokenizer(), LoraSettings(mask_prompt=mask_prompt)
    if "text" in line and mask_prompt:
        with pytest.raises(ValueError, match="masking not supported"):
            datasets.create_dataset([line], tokenizer, settings)
        return
    tokens, offset = datasets.create_dataset([line], tokenizer, SimpleNamespace(mask_prompt=mask_prompt)).process(line)
    [ours] = load_splits(tmp_path, tokenizer, settings, ("train",), 512).train
    assert ours.ids.tolist() == list(tokens) and ours.offset == offset


# ---- losses


@pytest.mark.parametrize("mask_prompt", [False, True], ids=["whole", "masked"])
@pytest.mark.parametrize("kind", ["llama", "qwen3"])
def test_the_first_validation_is_that_of_mlx_lm(lora, places, kind, mask_prompt):
    """A mean over tokens, of the same ones; programs round to fp16."""
    theirs, tokenizer = lora.load(str(places / kind))
    _, valid, _ = lora.load_dataset(SimpleNamespace(data=str(places), train=True, test=False, mask_prompt=mask_prompt), tokenizer)
    measured = lora.evaluate(model=theirs, dataset=lora.CacheDataset(valid), batch_size=4, num_batches=25, max_seq_length=33)
    base, settings = load_base(places / kind), LoraSettings(max_seq_length=33, mask_prompt=mask_prompt)
    splits = load_splits(places, base.tokenizer, settings, ("train",), 512)
    compiled = EngineModel(Logits(base.model.requires_grad_(False)), "twin")
    ours, count = mean_loss(base.model, compiled, fixed_batches(splits.valid, batch_size=4, lengths=(32,), most=25))
    print(f"\n{kind}: {ours:.6f}, mlx-lm {measured:.6f}")
    assert ours == pytest.approx(measured, rel=1e-4) and count < 8 * 32 + 1


@pytest.mark.parametrize("how", ["lora", "dora"])
@pytest.mark.parametrize("kind", ["llama", "qwen3"])
def test_twenty_iterations_from_the_same_numbers_are_those_of_mlx_lm(lora, places, tmp_path, kind, how):
    """Its train(), with the adapter that ours begins with, our batches, and its Adam told to correct its bias."""
    base = load_base(places / kind)
    settings = LoraSettings(fine_tune_type=how, num_layers=-1, mask_prompt=True, lora_parameters=LoraParameters(rank=4, scale=4.0))
    model = add_adapter(base.model, settings, str(places / kind)).train()
    model.save_pretrained(tmp_path / "first", save_embedding_layers=False)
    (tmp_path / "mlx").mkdir()
    mlx.write(peft.read(tmp_path / "first"), tmp_path / "mlx", hf.read(places / kind))
    splits = load_splits(places, base.tokenizer, settings, ("train",), 512)
    batches = TrainBatches(splits.train, batch_size=4, lengths=(128,), seed=0)
    theirs = _losses_of_mlx(lora, places / kind, tmp_path / "mlx", splits.train, batches)
    compiled, optimizer = EngineModel(Logits(model), "twin"), make_optimizer("adam", list(trained(model).values()), 1e-3, {})
    ours = []
    for step in range(20):
        ours.append(accumulate(compiled, batches.batch(step), 1))
        optimizer.step()
        optimizer.zero_grad()
    print(f"\n{kind} {how}: losses within {100 * max(abs(a / b - 1) for a, b in zip(ours, theirs, strict=True)):.3f} %")
    assert ours == pytest.approx(theirs, rel=1e-3) and ours[-1] < ours[0] - 0.1


def _losses_of_mlx(lora, base, adapter, examples, batches):
    """Of each iteration of mlx-lm's own loop."""
    trainer = pytest.importorskip("mlx_lm.tuner.trainer")
    model, _ = lora.load(str(base))
    model.freeze()
    lora.load_adapters(model, str(adapter))
    by_ids = {tuple(example.ids[:-1].tolist()): example for example in examples}

    def iterate(**given):
        for step in range(20):
            tokens = batches.batch(step).tokens.numpy()
            found = [next(example for ids, example in by_ids.items() if tuple(row[: len(ids)]) == ids and not row[len(ids) :].any()) for row in tokens]
            rows = np.zeros((len(found), tokens.shape[1] + 1), np.int32)
            for row, example in zip(rows, found, strict=True):
                row[: len(example.ids)] = example.ids
            # the token behind the last one, padding, is not asked for
            yield lora.mx.array(rows), lora.mx.array([(example.offset, len(example.ids) - 1) for example in found])

    losses = []

    class Heard(lora.TrainingCallback):
        def on_train_loss_report(self, train_info):
            losses.append(train_info["train_loss"])

    trainer.train(
        model, lora.optim.Adam(learning_rate=1e-3, bias_correction=True), examples, None,
        trainer.TrainingArgs(batch_size=4, iters=20, steps_per_report=1, adapter_file=str(adapter / "out.safetensors")),
        iterate_batches=iterate, training_callback=Heard(),
    )  # fmt: skip
    return losses
