"""Fine-tuning through the twin's programs beside PEFT in PyTorch eager float32: the loss of every iteration, and every gradient.

Losses are of two runs side by side, each with its own weights. Gradients are of the same weights and batch: Adam's first steps have the
size of the rate whatever the gradient, so that two runs part where a gradient is all but 0.
"""

import copy

import numpy as np
import pytest
import tiny
import torch

from torchane.finetune.adapters import add_adapter, free_blocks, trained
from torchane.finetune.batches import TrainBatches
from torchane.finetune.data import Example
from torchane.finetune.loop import Logits, accumulate
from torchane.finetune.optimizers import make_optimizer
from torchane.finetune.settings import LoraParameters, LoraSettings
from torchane.train.engine import EngineModel

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
LOSS, GRADIENT = 0.01, 0.02  # of itself; of its norm


def batches(length):
    """Repeated phrases, which can be learned, of a few lengths."""
    rng = np.random.default_rng(0)
    phrases = [rng.integers(0, 256, 9) for _ in range(12)]
    made = [np.concatenate([phrases[rng.integers(12)] for _ in range(8)])[: int(rng.integers(length // 2, length))] for _ in range(64)]
    return TrainBatches([Example(ids.astype(np.int32), 3) for ids in made], batch_size=4, lengths=(length,), seed=0)


def wrapped(kind, how, dtype=torch.float32):
    model = tiny.model(kind, dtype=dtype)
    settings = LoraSettings(fine_tune_type=how, num_layers=-1, lora_parameters=LoraParameters(rank=8, scale=4.0))
    return free_blocks(model, -1) if how == "full" else add_adapter(model, settings, "base")


def gaps(kind, how, steps, dtype=torch.float32):
    """The largest gap of a loss and of a gradient over so many steps."""
    ours = wrapped(kind, how, dtype).train()
    theirs, judge = (copy.deepcopy(ours).float() for _ in range(2))
    # its blocks are no longer of their own class afterwards, so the copies come first
    compiled = EngineModel(Logits(ours), "twin")
    optimizers = [make_optimizer("adam", list(trained(model).values()), 1e-3, {}) for model in (ours, theirs)]
    data, largest_loss, largest_gradient = batches(64), 0.0, 0.0
    for step in range(steps):
        batch = data.batch(step)
        with torch.no_grad():
            for name, param in judge.named_parameters():
                param.copy_(ours.get_parameter(name))
        losses = [accumulate(model, batch, 1) for model in (compiled, Logits(theirs), Logits(judge))]
        largest_loss = max(largest_loss, abs(losses[0] - losses[1]) / losses[1])
        largest_gradient = max(largest_gradient, furthest(trained(ours), trained(judge)))
        judge.zero_grad()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    return largest_loss, largest_gradient


def furthest(ours, theirs):
    """The largest relative distance of a gradient; where float32 has 0 throughout, ours must."""
    largest = 0.0
    for name, param in theirs.items():
        size = float(param.grad.norm())
        distance = float((ours[name].grad - param.grad).norm())
        assert size or not distance, name
        largest = max(largest, distance / size if size else 0.0)
    return largest


def test_three_iterations_have_the_losses_and_gradients_of_peft():
    loss, gradient = gaps("qwen3", "lora", 3)
    assert loss < LOSS and gradient < GRADIENT, (loss, gradient)


@pytest.mark.long
@pytest.mark.parametrize("how", ["lora", "dora", "full"])
@pytest.mark.parametrize("kind", ["llama", "qwen3", "gpt2"])
def test_a_hundred_iterations_have_the_losses_and_gradients_of_peft(kind, how):
    loss, gradient = gaps(kind, how, 100)
    print(f"\n{kind} {how}: loss within {100 * loss:.3f} %, gradients within {100 * gradient:.3f} %")
    assert loss < LOSS and gradient < GRADIENT, (loss, gradient)


@pytest.mark.long
@pytest.mark.parametrize("kind", ["mistral", "phi3", "gemma2", "gemma3", "qwen2", "smollm"])
def test_other_architectures_have_the_losses_and_gradients_of_peft(kind):
    loss, gradient = gaps(kind, "lora", 10)
    print(f"\n{kind}: loss within {100 * loss:.3f} %, gradients within {100 * gradient:.3f} %")
    assert loss < LOSS and gradient < GRADIENT, (loss, gradient)


@pytest.mark.long
@pytest.mark.parametrize("kind", ["llama", "qwen3"])
def test_a_base_in_bfloat16_has_the_losses_of_its_weights_in_float32(kind):
    """Its activations are rounded to bf16 between programs, as PEFT's are: 8 binary digits."""
    loss, gradient = gaps(kind, "lora", 20, torch.bfloat16)
    print(f"\n{kind} bf16: loss within {100 * loss:.3f} %, gradients within {100 * gradient:.3f} %")
    assert loss < LOSS and gradient < 0.05, (loss, gradient)
