"""Which layers are trained is mlx-lm's choice, what they are is PEFT's, and the folder reads back in PEFT with the same bits."""

import json

import peft
import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file

from torchane.errors import RunFolderError, UsageError
from torchane.finetune.adapters import ADAPTER, adapted, add_adapter, free_blocks, load_adapter_file, lora_config, targets_of, trained
from torchane.finetune.folder import AdapterFolder
from torchane.finetune.settings import LoraParameters, LoraSettings

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # what peft calls of transformers

TOKENS = torch.arange(24).reshape(2, 12) * 7 % tiny.VOCAB
LLAMA = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}


def settings(kind="lora", num_layers=16, **parameters):
    return LoraSettings(fine_tune_type=kind, num_layers=num_layers, lora_parameters=LoraParameters(rank=4, **parameters))


@pytest.mark.parametrize("kind", tiny.CONFIGS)
def test_without_keys_every_linear_layer_of_the_last_blocks_is_adapted(kind):
    model = tiny.model(kind)
    names = targets_of(model, 2, None)
    kinds = (torch.nn.Linear, tiny.transformers.pytorch_utils.Conv1D)
    every = [name for name, module in model.named_modules() if isinstance(module, kinds) and (".1." in name or ".2." in name)]
    assert names == every and names and not any("lm_head" in name for name in names)
    made = add_adapter(model, settings(num_layers=2), "base")
    wrapped = {name.removeprefix("base_model.model.") for name, module in made.named_modules() if isinstance(module, peft.tuners.lora.LoraLayer)}
    assert wrapped == set(every)


def test_keys_are_names_in_a_block_or_whole_names():
    model = tiny.model("llama")
    assert targets_of(model, 1, ["self_attn.q_proj"]) == ["model.layers.2.self_attn.q_proj"]
    assert targets_of(model, -1, ["lm_head", "mlp.up_proj"])[-1] == "lm_head" and len(targets_of(model, -1, ["lm_head", "mlp.up_proj"])) == 4
    with pytest.raises(UsageError, match="no layer is called self_attn.q_prj .did you mean self_attn.q_proj"):
        targets_of(model, 1, ["self_attn.q_prj"])


def test_the_config_says_no_more_than_is_needed():
    llama, gpt2 = tiny.model("llama"), tiny.model("gpt2")
    whole, last = lora_config(llama, settings(), "b"), lora_config(llama, settings(num_layers=1), "b")
    assert (set(whole.target_modules), whole.layers_to_transform) == (LLAMA, None)
    assert (set(last.target_modules), last.layers_to_transform) == (LLAMA, [2])
    head = lora_config(llama, settings(num_layers=1, keys=("lm_head", "mlp.up_proj")), "b")
    assert (set(head.target_modules), head.layers_to_transform) == ({"lm_head", "model.layers.2.mlp.up_proj"}, None)
    attention = lora_config(gpt2, settings(keys=("attn.c_proj",)), "b")
    assert set(attention.target_modules) == {"attn.c_proj"} and attention.fan_in_fan_out
    assert (whole.r, whole.lora_alpha, whole.use_dora) == (4, 80, False)


def test_the_adapter_is_float32_and_the_base_keeps_its_type():
    made = add_adapter(tiny.model("qwen3", dtype=torch.bfloat16), settings("dora"), "b")
    assert {param.dtype for param in trained(made).values()} == {torch.float32}
    assert {param.dtype for param in made.parameters() if not param.requires_grad} == {torch.bfloat16}


def test_the_same_seed_draws_the_same_numbers_and_leaves_torchs_generator():
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    one, two = (trained(add_adapter(tiny.model("llama", seed=1), settings(), "b")) for _ in range(2))
    torch.manual_seed(5)
    add_adapter(tiny.model("llama", seed=5), settings(), "b")
    assert all(torch.equal(one[name], two[name]) for name in one)
    torch.manual_seed(5)
    assert torch.equal(torch.rand(1), expected)


def saved(path, kind="llama", how="lora", **parameters):
    """An adapter whose numbers are drawn anew, in a folder; and the model with it."""
    made = add_adapter(tiny.model(kind), settings(how, **parameters), "base")
    torch.manual_seed(3)
    with torch.no_grad():
        for param in trained(made).values():
            param.add_(torch.randn_like(param) * 0.05)
    path.mkdir(exist_ok=True)
    AdapterFolder(path).publish(made, None)
    return made.eval()


@pytest.mark.parametrize(("kind", "how"), [("llama", "lora"), ("qwen3", "dora"), ("gpt2", "dora")])
def test_peft_loads_what_is_written_and_so_does_adapted(tmp_path, kind, how):
    made = saved(tmp_path, kind, how)
    with torch.no_grad():
        expected = made(TOKENS).logits
        theirs = peft.PeftModel.from_pretrained(tiny.model(kind), tmp_path).eval()
        assert torch.equal(theirs(TOKENS).logits, expected)
        assert torch.equal(adapted(tiny.model(kind), tmp_path).eval()(TOKENS).logits, expected)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter_config.json", ADAPTER]
    assert set(load_file(tmp_path / ADAPTER)) == set(trained(made))


def test_full_frees_the_last_blocks_alone_in_float32():
    model = free_blocks(tiny.model("llama", dtype=torch.bfloat16), 1)
    assert {name.split(".")[2] for name in trained(model)} == {"2"} and len(trained(model)) == 9
    assert {param.dtype for param in model.parameters()} == {torch.float32}


def _other_rank(path):
    weights = load_file(path / ADAPTER)
    save_file({name: value[:2].contiguous() if "lora_A" in name else value for name, value in weights.items()}, path / ADAPTER)


def _missing(path):
    weights = load_file(path / ADAPTER)
    weights.popitem()
    save_file(weights, path / ADAPTER)


def _of_mlx(path):
    save_file({"model.layers.0.self_attn.q_proj.lora_a": torch.zeros(64, 4)}, path / ADAPTER)


def _not_finite(path):
    save_file({name: value * float("nan") for name, value in load_file(path / ADAPTER).items()}, path / ADAPTER)


def _cut(path):
    (path / ADAPTER).write_bytes((path / ADAPTER).read_bytes()[:100])


def _gone(path):
    (path / ADAPTER).unlink()


def _other_type(path):
    config = json.loads((path / "adapter_config.json").read_text())
    (path / "adapter_config.json").write_text(json.dumps({"peft_type": "IA3", "task_type": "CAUSAL_LM", "target_modules": config["target_modules"]}))


def _other_names(path):
    config = json.loads((path / "adapter_config.json").read_text())
    (path / "adapter_config.json").write_text(json.dumps({**config, "target_modules": ["wq"]}))


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (_other_rank, "lora_A.weight is .2, 64. and the model needs .4, 64."), (_missing, "is missing"), (_of_mlx, "is an adapter of mlx-lm"),
        (_not_finite, "numbers that are not finite"), (_cut, "cannot be read"), (_gone, "There is no .*adapter_model.safetensors"),
        (_other_type, "adapter of type .*IA3"), (_other_names, "does not fit this model: .*wq"),
    ],
)  # fmt: skip
def test_an_adapter_that_does_not_fit_is_refused(tmp_path, spoil, said):
    saved(tmp_path)
    spoil(tmp_path)
    with pytest.raises(RunFolderError, match=said):
        adapted(tiny.model("llama"), tmp_path)


def test_an_adapter_of_another_base_is_refused_and_nothing_is_changed(tmp_path):
    saved(tmp_path, "qwen3")
    made = add_adapter(tiny.model("llama"), settings(), "b")
    before = {name: param.clone() for name, param in trained(made).items()}
    with pytest.raises(RunFolderError, match="It was trained on another base, or with another rank"):
        load_adapter_file(made, tmp_path / ADAPTER)
    assert all(torch.equal(before[name], param) for name, param in trained(made).items())


def test_a_pickle_is_never_loaded(tmp_path):
    torch.save({}, tmp_path / "adapter_model.bin")
    with pytest.raises(RunFolderError, match="is no safetensors file, and others .pickles. are never loaded"):
        load_adapter_file(add_adapter(tiny.model("llama"), settings(), "b"), tmp_path / "adapter_model.bin")


def test_a_whole_model_is_no_adapter(tmp_path):
    with pytest.raises(RunFolderError, match="holds no adapter.*It holds a whole model: give it as --model"):
        adapted(tiny.model("llama"), tiny.folder(tmp_path / "m", "llama"))
