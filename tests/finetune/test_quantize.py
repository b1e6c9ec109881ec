"""A base in few bits: its numbers are mlx's, everybody computes with the same ones, and what lasts of a weight is its bits."""

import copy
import warnings
from dataclasses import replace

import numpy as np
import pytest
import tiny
import torch
from test_evidence import GRADIENT, LOSS, batches, furthest

from torchane.capture.compiled import COMPILED
from torchane.capture.few_bits import GROUP, dequantise
from torchane.errors import RunFolderError, UsageError
from torchane.finetune.adapters import add_adapter, trained
from torchane.finetune.folder import AdapterFolder
from torchane.finetune.loop import Logits, accumulate
from torchane.finetune.memory import measure
from torchane.finetune.optimizers import make_optimizer
from torchane.finetune.quantize import Rounded, quantised, quantize, recorded, round_module, rounded
from torchane.finetune.settings import LoraParameters, LoraSettings, resolve
from torchane.train.engine import EngineModel

SETTINGS = LoraSettings(num_layers=-1, lora_parameters=LoraParameters(rank=8, scale=4.0))


def weights(dtype=torch.float32):
    torch.manual_seed(0)
    made = torch.randn(40, 3 * GROUP) * torch.rand(40, 1) * 2
    made[0], made[1, :GROUP], made[2] = 0, 0.25, made[2].abs()
    return made.to(dtype)


@pytest.mark.parametrize("bits", [4, 8])
def test_a_number_is_at_most_half_a_step_from_its_own(bits):
    weight = weights()
    found = rounded(weight, bits)
    groups = weight.unflatten(1, (-1, GROUP))
    steps = (groups.amax(2) - groups.amin(2)) / (2**bits - 1)
    # the scale is stretched so that the farthest number is met: by half a step in 2 ^ (bits - 1) at most
    assert bool(((found - weight).unflatten(1, (-1, GROUP)).abs().amax(2) <= steps * (0.5 + 1.0) + 1e-6).all())
    far = groups.abs().argmax(2, keepdim=True)
    assert torch.allclose(found.unflatten(1, (-1, GROUP)).gather(2, far), groups.gather(2, far), rtol=1e-6)
    assert not found[0].any() and torch.equal(found[1, :GROUP], weight[1, :GROUP])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("bits", [4, 8])
def test_the_numbers_are_whole_number_times_scale_plus_bias_rounded_once(bits, dtype):
    packed, scales, biases = quantised(weights(dtype), bits)
    bytes_ = packed.numpy().reshape(40, 3, -1)
    numbers = np.concatenate([bytes_ & 15, bytes_ >> 4], 2) if bits == 4 else bytes_
    wide = numbers * scales.double().numpy()[..., None] + biases.double().numpy()[..., None]
    exact = torch.from_numpy(wide.astype(np.float32)).to(dtype).flatten(1)
    assert torch.allclose(dequantise(packed, scales, biases).float(), exact.float(), rtol=1e-6, atol=1e-7)
    assert packed.numel() == 40 * 3 * GROUP * bits // 8


@pytest.mark.long
@pytest.mark.parametrize("bits", [4, 8])
def test_the_numbers_are_those_of_mlx(bits):
    mx = pytest.importorskip("mlx.core", reason='mlx is not installed: pip install "mlx[cpu]"')
    weight = weights()
    theirs = mx.dequantize(*mx.quantize(mx.array(weight.numpy()), group_size=GROUP, bits=bits), group_size=GROUP, bits=bits)
    np.testing.assert_allclose(rounded(weight, bits).numpy(), np.array(theirs), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_a_model_in_few_bits_computes_with_its_rounded_weights(kind):
    kept, plain = tiny.model(kind), tiny.model(kind)
    found = quantize(kept, 4)
    round_module(plain, found)
    tokens = torch.arange(24).view(2, 12)
    with torch.no_grad():
        assert torch.equal(kept(tokens).logits, plain(tokens).logits)
    assert not torch.equal(plain(tokens).logits, tiny.model(kind)(tokens).logits)


def test_rows_that_are_no_multiple_of_a_group_stay_and_are_named():
    found = quantize(tiny.model("llama"), 4)
    assert len(found.modules) == 18 and found.left[0] == "model.layers.0.mlp.down_proj"  # 96 numbers a row
    assert "3 stay as they are, model.layers.0.mlp.down_proj and others" in str(found)


def pair(kind, how="lora", bits=4):
    """A model in few bits, and the same with those numbers as plain float32 weights; both with equal adapters."""
    kept, plain = tiny.model(kind), tiny.model(kind)
    round_module(plain, quantize(kept, bits))
    settings = replace(SETTINGS, fine_tune_type=how)
    return tuple(add_adapter(model, settings, "base").train() for model in (kept, plain))


def gaps(kind, how, bits, steps):
    """As in test_evidence.py: the largest gap of a loss of two runs, and of a gradient at equal weights."""
    ours, theirs = pair(kind, how, bits)
    judge = copy.deepcopy(theirs)
    compiled = EngineModel(Logits(ours), "twin", frozen="reused")
    optimizers = [make_optimizer("adam", list(trained(model).values()), 1e-3, {}) for model in (ours, theirs)]
    loss, gradient = 0.0, 0.0
    for step in range(steps):
        batch = batches(64).batch(step)
        with torch.no_grad():
            for name, param in trained(judge).items():
                param.copy_(trained(ours)[name])
        losses = [accumulate(model, batch, 1) for model in (compiled, Logits(theirs), Logits(judge))]
        loss, gradient = max(loss, abs(losses[0] - losses[1]) / losses[1]), max(gradient, furthest(trained(ours), trained(judge)))
        judge.zero_grad()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    return loss, gradient


@pytest.mark.long
@pytest.mark.parametrize("how", ["lora", "dora"])
@pytest.mark.parametrize("kind", ["llama", "qwen3", "gpt2"])
@pytest.mark.parametrize("bits", [4, 8])
def test_thirty_iterations_are_those_of_peft_on_the_same_base_dequantised(kind, how, bits):
    loss, gradient = gaps(kind, how, bits, 30)
    print(f"\n{kind} {how}, {bits} bits: loss within {100 * loss:.3f} %, gradients within {100 * gradient:.3f} %")
    assert loss < LOSS and gradient < GRADIENT, (loss, gradient)


@pytest.fixture(scope="module")
def step():
    """One step beside PEFT's on the same base dequantised: both losses, both models with their gradients, and our graph."""
    ours, theirs = pair("llama")
    before = len(COMPILED)
    compiled = EngineModel(Logits(ours), "twin", frozen="reused")
    batch = batches(32).batch(0)
    losses = [accumulate(model, batch, 1) for model in (compiled, Logits(theirs))]
    (graph,) = COMPILED[before:]
    return losses, ours, theirs, graph


def test_loss_and_gradients_are_those_of_peft_on_the_same_base_dequantised(step):
    losses, ours, theirs, _ = step
    assert abs(losses[0] - losses[1]) < LOSS * losses[1] and furthest(trained(ours), trained(theirs)) < GRADIENT


def test_what_lasts_of_a_weight_is_its_bits(step):
    """No surface, no saved tensor and no host value has its numbers from one program to the next; and layers share programs."""
    _, ours, _, graph = step
    names = {name for plan in graph.plans.values() for step in plan.steps for name in getattr(step, "outputs", ()) if name.startswith("dequantise")}
    assert names
    assert graph.weights.held.keys().isdisjoint(names) and len(graph.weights.held) == len(trained(ours))
    for plan in graph.plans.values():
        assert not names & {*plan.outputs, *plan.inputs} and len(plan.programs) < len(plan.dispatches)
        lives = {}
        for index, step in enumerate(plan.steps):
            lives |= {name: index for name in getattr(step, "outputs", ()) if name in names}
            for name in names & {*plan.last_reads()[index]}:
                assert index - lives[name] == 1  # the staging behind it


def test_the_memory_that_is_asked_for_is_that_of_the_bits():
    model = tiny.model("llama", dtype=torch.bfloat16)
    size = sum(param.numel() * param.element_size() for param in model.parameters())
    sizes = measure(model, SETTINGS, size)
    quantize(model, 4)
    kept = sum(param.numel() * param.element_size() for param in model.parameters())
    assert abs(sizes.estimate(replace(SETTINGS, quantize=4), 64).weights - kept) <= 1
    assert sizes.estimate(SETTINGS, 64).weights == size


@pytest.mark.parametrize(("given", "match"), [
    ({"quantize": 3}, "quantize is 3. Known: 4, 8"), ({"quantize": "4", "fine_tune_type": "full"}, "Choose lora or dora"),
    ({"arithmetic": "quick"}, "arithmetic is 'quick'. Known: exact, fast, engine"),
])  # fmt: skip
def test_what_cannot_be_is_refused(given, match):
    with pytest.raises(UsageError, match=match):
        resolve(given, None)


def test_an_adapter_says_what_its_base_was_kept_in(tmp_path):
    found = Rounded(4, {"model.layers.0.self_attn.q_proj": False})
    AdapterFolder(tmp_path).create({"base": {"quantized": found.to_dict()}})
    assert recorded(tmp_path) == found
    assert recorded(tmp_path / "state") is None
    text = (tmp_path / "training.json").read_text()
    (tmp_path / "training.json").write_text(text.replace(": 4", ": 8"))
    with pytest.raises(RunFolderError, match="edited or damaged"):
        recorded(tmp_path)


def test_the_layers_of_another_model_are_refused():
    with pytest.raises(UsageError, match=r"beside a layer model\.layers\.0\.self_attn\.q_proj in 4 bits, and this model has none"), warnings.catch_warnings():
        round_module(tiny.model("gpt2"), quantize(tiny.model("llama"), 4))
