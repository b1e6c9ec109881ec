"""Settings of `torchane lora`: mlx-lm's defaults, a YAML file below the flags, and a sentence for what is not taken."""

import json
from dataclasses import fields

import pytest

from torchane import options
from torchane.errors import UsageError
from torchane.finetune.settings import LoraParameters, LoraSettings, read_config, resolve

#: mlx-lm 0.32.2, lora.py, CONFIG_DEFAULTS.
OF_MLX = {
    "fine_tune_type": "lora", "optimizer": "adam", "seed": 0, "num_layers": 16, "batch_size": 4, "iters": 1000, "val_batches": 25,
    "learning_rate": 1e-5, "steps_per_report": 10, "steps_per_eval": 200, "save_every": 100, "test_batches": 500, "max_seq_length": 2048,
    "grad_checkpoint": False, "grad_accumulation_steps": 1, "lr_schedule": None, "mask_prompt": False,
}  # fmt: skip
FLAGS = (
    "--model --train --data --fine-tune-type --optimizer --mask-prompt --num-layers --batch-size --iters --val-batches --learning-rate "
    "--steps-per-report --steps-per-eval --grad-accumulation-steps --resume-adapter-file --adapter-path --save-every --test --test-batches "
    "--max-seq-length --config --grad-checkpoint --report-to --project-name --seed"
).split()


def written(path, text):
    (path / "c.yaml").write_text(text)
    return path / "c.yaml"


def test_the_defaults_are_mlx_lms():
    settings, places = resolve({}, None)
    assert {name: getattr(settings, name) for name in OF_MLX} == OF_MLX
    assert settings.lora_parameters == LoraParameters(rank=8, scale=20.0, dropout=0.0, keys=None)
    assert set(places.values()) == {None}


def test_every_flag_of_mlx_lm_is_there_and_its_help_names_the_default():
    known = {option.flag: option for option in options.of("lora")}
    assert not set(FLAGS) - set(known) and known["--config"].short == "-c"
    for name, value in OF_MLX.items():
        option = known.get(f"--{name.replace('_', '-')}")
        if option is not None and option.kind in ("number", "choice"):
            assert f"[default: {'1e-5' if value == 1e-5 else value}]" in option.help, name


def test_a_flag_wins_over_the_file_and_the_file_over_the_default(tmp_path):
    path = written(tmp_path, "batch_size: 3\niters: 7\nlearning_rate: 1e-4\nmodel: here\nlora_parameters: {rank: 4, scale: 2, keys: [mlp.up_proj]}\n")
    settings, places = resolve({"batch_size": 2, "iters": None}, path)
    assert (settings.batch_size, settings.iters, settings.learning_rate) == (2, 7, 1e-4)
    assert settings.lora_parameters == LoraParameters(4, 2.0, 0.0, ("mlp.up_proj",)) and places["model"] == "here"


def test_settings_come_back_from_json():
    settings, _ = resolve({"lora_parameters": {"keys": ["a"]}, "lr_schedule": {"name": "cosine_decay", "arguments": [1e-5, 10]}}, None)
    assert LoraSettings.from_dict(json.loads(json.dumps(settings.to_dict()))) == settings
    assert {each.name for each in fields(settings)} == set(settings.to_dict())


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("batch_sise: 3", "c.yaml: unknown key batch_sise .did you mean batch_size"),
        ("trust_remote_code: true", "trust_remote_code is not supported: code that comes with a model is never run"),
        ("hf_dataset: {path: x}", "hf_dataset is not supported"),
        ("batch_size: 0", "batch_size is 0, and it must be a whole number from 1"),
        ("iters: many", "iters is 'many', and it must be"),
        ("learning_rate: -1", "learning_rate is -1.0, and it must be"),
        ("optimizer: lion", "optimizer is 'lion'. Known: adam, adamw"),
        ("mask_prompt: 1", "mask_prompt is 1, and it is true or false"),
        ("num_layers: 0", "num_layers is 0, and then nothing is trained"),
        ("val_batches: 0", "val_batches is 0"),
        ("lora_parameters: {alpha: 16}", "unknown key alpha .scale is alpha / rank"),
        ("lora_parameters: {rank: 0}", "lora_parameters: rank is 0"),
        ("lora_parameters: {keys: q_proj}", "keys is 'q_proj', and it must be a list"),
        ("lora_parameters: 3", "lora_parameters is 3, and it must hold names"),
        ("fine_tune_type: dora\nlora_parameters: {dropout: 0.1}", "dropout is not there for dora"),
        ("fine_tune_type: full\noptimizer: muon", "muon updates matrices alone"),
        ("optimizer_config: {lion: {}}", "unknown optimizer lion"),
        ("- 1\n- 2", "holds .1, 2., and it must hold names and values"),
        ("a: [", "is no YAML"),
        ("text_feature: 3", "text_feature is 3"),
    ],
)
def test_what_is_not_taken_is_refused_by_name(tmp_path, text, said):
    with pytest.raises(UsageError, match=said):
        resolve({}, written(tmp_path, text))


def test_what_is_not_supported_may_be_said_to_be_off(tmp_path):
    resolve({}, written(tmp_path, "clear_cache_threshold: 0\ntrust_remote_code: false\nwandb: null\n"))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UsageError, match="no.yaml: there is no such file"):
        read_config(tmp_path / "no.yaml")
