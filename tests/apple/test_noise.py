"""An engine whose every result is up to 4 steps of fp16 off: how far its training leaves the twin's, and how far PyTorch's float32 leaves itself
when its ops are as noisy.

A training loss is that of one batch. On 32 tokens it is a noisy statistic: with noise of this size PyTorch, too, is 2 % from itself within
100 steps, as it is under autocast to bf16. On 256 tokens both keep within 1 % (0.98 % and 0.77 % measured), losses of ten steps together within 0.2 %.
"""

from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from small_run import CommandListener
from test_training import a_hundred_steps, gaps, losses
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode

from torchane.cli.training import Request
from torchane.cli.training import train as run_command
from torchane.train import loop
from torchane.train.engine import EngineModel
from torchane.train.forward import HostModel

pytestmark = pytest.mark.long

STEPS_OFF = 4
aten = torch.ops.aten
#: The ops of a Llama's step, as standin.py has them of MIL.
ROUNDED = (
    aten.mm, aten.bmm, aten.add, aten.sub, aten.mul, aten.div, aten.exp, aten.sigmoid, aten.silu, aten.silu_backward, aten.pow, aten.rsqrt, aten.sum,
    aten.mean, aten._softmax, aten._softmax_backward_data,
)  # fmt: skip


class Noise(TorchDispatchMode):
    """Inside, results of ops are up to STEPS_OFF steps of fp16 off; not while `is_on` is False."""

    def __init__(self, seed: int):
        super().__init__()
        self.rng = torch.Generator().manual_seed(seed)
        self.is_on = True
        self.met = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if not self.is_on or func.overloadpacket not in ROUNDED or func._schema.is_mutable:
            return result
        self.met += 1
        return result * (1 + STEPS_OFF * 2.0**-10 * (2 * torch.rand(result.shape, generator=self.rng) - 1))

    @contextmanager
    def paused(self, name: str):
        """While the loss, the norm and the optimizer are computed, which no program holds."""
        self.is_on = False
        yield
        self.is_on = True


def trained(path: Path, batch_size: int, compile_model=EngineModel, device: str = "twin") -> dict[int, float]:
    """The training losses of 100 steps of `tiny`, on windows of 32 tokens."""
    torch.compiler.reset()
    size = {"steps": 100, "batch_size": batch_size, "seq_len": 32, "eval_interval": 100, "threads": 1}
    run_command(Request(device=device, ranges="on", out=path, **size), CommandListener(), compile_model)
    return losses(path)


def in_pytorch(model: torch.nn.Module, **_) -> HostModel:
    return HostModel(model)


@pytest.mark.parametrize(("batch_size", "least", "most"), [(1, 0.01, 0.04), (8, 0.0, 0.01)])
def test_pytorch_with_as_much_noise_leaves_itself_on_32_tokens_and_not_on_256(tmp_path, monkeypatch, evidence, batch_size, least, most):
    clean = trained(tmp_path / "clean", batch_size, in_pytorch)
    noise, plain = Noise(seed=1), loop.train_step

    def noisy_step(forward, optimizer, batch, grad_clip):
        with noise, sdpa_kernel(SDPBackend.MATH):
            return plain(forward, optimizer, batch, grad_clip, noise.paused)

    monkeypatch.setattr(loop, "train_step", noisy_step)
    found = gaps(trained(tmp_path / "noisy", batch_size, in_pytorch), clean)
    assert noise.met > 100 * 100
    evidence(f"PyTorch with noise, {32 * batch_size} tokens: largest gap of a step's loss, mean", [max(found), sum(found) / len(found)])
    assert least < max(found) < most


def by_tens(found: dict[int, float]) -> dict[int, float]:
    """The mean loss of each ten steps."""
    return {step: sum(found[other] for other in range(step - 9, step + 1)) / 10 for step in found if step % 10 == 0}


def test_a_hundred_steps_of_256_tokens_are_the_twins_within_one_percent(standin_library, tmp_path, evidence):
    """Through bridge and stand-in, products added in another order too; a quarter of an hour, for NumPy computes in the engine's arithmetic. Which step is
    furthest off is chance; ten together have little of it."""
    noisy, twin = a_hundred_steps(standin_library, tmp_path, "noisy", batch_size=8), trained(tmp_path / "twin", 8)
    found, tens, want = gaps(noisy, twin), by_tens(noisy), by_tens(twin)
    apart = [abs(tens[step] / loss - 1) for step, loss in want.items()]
    evidence("noisy engine, 256 tokens: largest gap of a step's loss, mean, largest of ten steps together", [max(found), sum(found) / len(found), max(apart)])
    assert max(apart) < 0.005 and max(found) < 0.015


def test_on_32_tokens_it_keeps_to_the_twin_as_long_as_pytorch_keeps_to_itself(standin_library, tmp_path, evidence):
    found = gaps(a_hundred_steps(standin_library, tmp_path, "noisy"), trained(tmp_path / "twin", 1))
    evidence("largest gap of a step's loss, noisy engine, 32 tokens: 30 steps, 100 steps, and mean", [max(found[:30]), max(found), sum(found) / len(found)])
    assert max(found[:30]) < 0.01 and sum(found) / len(found) < 0.01
