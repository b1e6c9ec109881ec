"""What a chip's file takes is used in programs: a logarithm, on the chips that are known to have one. (precision="auto" keeps
logarithms in float32 on the host, whatever a chip takes.)"""

import copy

import pytest
import torch
from capture_helpers import compile_for_twin, distance
from torch import nn

from torchane.capture import backend

aten = torch.ops.aten


class Entropy(nn.Module):
    """Its logarithm is surrounded by products, so that the planner has every reason to keep it in a program."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(32, 64), nn.Linear(64, 32)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.b(torch.log(1.5 + torch.sigmoid(self.a(x))))


def host_ops(compiled: backend.Compiled) -> set[str]:
    return {row.op for row in compiled.rows if row.place == "host"}


@pytest.mark.parametrize("chip", ["portable", "m1", "m3", "m4", "m5"])
def test_a_logarithm_is_in_a_program_where_the_chip_takes_it(chip):
    torch._dynamo.reset()
    torch.manual_seed(0)
    model = Entropy()
    eager, x = copy.deepcopy(model), torch.randn(8, 32)
    takes = chip in ("m1", "m4", "m5")
    if takes:
        compile_for_twin(model, chip=chip, precision="fp16")(x).square().mean().backward()
    else:
        with pytest.warns(UserWarning, match="it needs log"):
            compile_for_twin(model, chip=chip, precision="fp16")(x).square().mean().backward()
    eager(x).square().mean().backward()
    assert ("aten.log.default" in host_ops(backend.COMPILED[-1])) is not takes
    for name, parameter in model.named_parameters():
        assert distance(parameter.grad, eager.get_parameter(name).grad) < 4e-3, name


class SharedHeads(nn.Module):
    """Two queries to a key, as Llama, Qwen3 and Mistral have them."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.kv, self.o = nn.Linear(64, 256), nn.Linear(64, 256), nn.Linear(256, 64)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, length, _ = x.shape
        q = self.q(x).view(batch, length, 4, 64).transpose(1, 2)
        k, v = (part.view(batch, length, 2, 64).transpose(1, 2).repeat_interleave(2, 1) for part in self.kv(x).chunk(2, -1))
        y = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.o(y.transpose(1, 2).reshape(batch, length, 256))


@pytest.mark.parametrize("chip", ["m1", "m4"])
def test_heads_that_share_keys_are_in_programs_however_many_tokens(chip):
    """64 numbers of 2,048 tokens are more than an axis of any of these chips has entries."""
    torch._dynamo.reset()
    torch.manual_seed(0)
    model = SharedHeads()
    eager, x = copy.deepcopy(model), torch.randn(32, 64, 64)
    compile_for_twin(model, chip=chip)(x).square().mean().backward()
    eager(x).square().mean().backward()
    assert not host_ops(backend.COMPILED[-1])
    for name, parameter in model.named_parameters():
        assert distance(parameter.grad, eager.get_parameter(name).grad) < 4e-3, name


def test_a_log_softmax_over_more_than_an_engine_sums_stays_on_the_host():
    def run(size: int) -> set[str]:
        torch._dynamo.reset()
        layer = nn.Linear(8, size)
        compiled = compile_for_twin(nn.Sequential(layer, nn.LogSoftmax(-1)), chip="m4", precision="fp16")
        compiled(torch.randn(4, 8)).mean().backward()
        return host_ops(backend.COMPILED[-1])

    assert "aten._log_softmax.default" not in run(512)
    assert "aten._log_softmax.default" in run(32768)
    reasons = [row.why for row in backend.COMPILED[-1].rows if row.op == "aten._log_softmax.default"]
    assert reasons == ["its sum of 32,768 exponentials may pass 32,752, the largest of a program"]
