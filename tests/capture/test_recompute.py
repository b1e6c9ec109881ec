"""What a layer computes again in its backward gives the gradients that it gives when it is kept, for less memory."""

import copy

import pytest
import torch
import transformers
from capture_helpers import distance, gradients
from torch import nn

from torchane.capture import backend
from torchane.errors import TorchaneWarning
from torchane.models.build import build_model
from torchane.models.presets import preset
from torchane.plan.memory import forecast

#: Relative norm of a gradient's difference: the same roundings in another program.
BAR = 2e-3


class Encoder(nn.Module):
    """Three layers of torch's own, with heads and dropout."""

    def __init__(self, dropout: float):
        super().__init__()
        self.layers = nn.ModuleList(nn.TransformerEncoderLayer(32, 4, 64, dropout=dropout, batch_first=True, activation="gelu") for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(32, 96), nn.Linear(32, 32)

    def forward(self, x: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
        q, k, v = (part.unflatten(-1, (4, 8)).transpose(1, 2) for part in self.qkv(x).chunk(3, -1))
        return x + self.out(nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=kept).transpose(1, 2).flatten(-2))


class Masked(nn.Module):
    """Attention whose mask leaves nothing of one row."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Attention() for _ in range(3))

    def forward(self, x: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x, kept)
        return x


class Stack(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Sequential(nn.Linear(32, 128), nn.Tanh(), nn.Linear(128, 32)) for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = x + layer(x)
        return x


def gpt2() -> tuple[nn.Module, dict[str, torch.Tensor]]:
    config = transformers.GPT2Config(vocab_size=97, n_positions=16, n_embd=32, n_layer=3, n_head=2, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0,
                                     bos_token_id=0, eos_token_id=0)  # fmt: skip
    mask = torch.ones(2, 16, dtype=torch.long)
    mask[1, 10:] = 0
    tokens = torch.randint(0, 97, (2, 16))
    return transformers.GPT2LMHeadModel(config), {"input_ids": tokens, "attention_mask": mask}


def kept() -> torch.Tensor:
    found = torch.ones(2, 1, 16, 16, dtype=torch.bool).tril()
    found[1, :, :, 10:] = False
    found[1, :, 3] = False
    return found


MODELS = {
    "stack": lambda: (Stack(), {"x": torch.randn(16, 32)}),
    "encoder": lambda: (Encoder(0.0), {"x": torch.randn(2, 16, 32)}),
    "a row that is masked everywhere": lambda: (Masked(), {"x": torch.randn(2, 16, 32), "kept": kept()}),
    "gpt2": gpt2,
    "tiny": lambda: (build_model(preset("tiny").config), {"tokens": torch.randint(0, 100, (2, 32))}),
}


def loss_of(found: torch.Tensor) -> torch.Tensor:
    """Of a norm's output, too, which has squares of one sum."""
    return (found * torch.linspace(-1, 2, found.numel()).view_as(found)).mean()


def trained(model: nn.Module, inputs: dict[str, torch.Tensor], **options) -> tuple[dict[str, torch.Tensor], int, int]:
    """Gradients of one step; bytes that the forward keeps; multiply-adds."""
    torch._dynamo.reset()
    torch.manual_seed(1)
    model = copy.deepcopy(model).train()
    found = torch.compile(model, backend=backend.ane, options={"device": "twin", **options})(**inputs)
    loss_of(getattr(found, "logits", found)).backward()
    plans = list(backend.COMPILED[-1].plans.values())
    return gradients(model), forecast(plans, 0).saved, sum(plan.macs for plan in plans)


@pytest.mark.filterwarnings("ignore:.*runs? in PyTorch on the CPU:torchane.errors.TorchaneWarning")
@pytest.mark.parametrize("name", ["stack", *(pytest.param(name, marks=pytest.mark.long) for name in MODELS if name != "stack")])
def test_gradients_are_those_of_what_is_kept(name) -> None:
    torch.manual_seed(0)
    model, inputs = MODELS[name]()
    kept, bytes_kept, macs = trained(model, inputs)
    half, bytes_half, _ = trained(model, inputs, recompute="half")
    made, bytes_made, macs_made = trained(model, inputs, recompute="all")
    assert bytes_made <= bytes_half <= bytes_kept and bytes_made < bytes_kept
    assert macs_made > macs
    for key, gradient in kept.items():
        assert distance(half[key], gradient) < BAR and distance(made[key], gradient) < BAR, key


@pytest.mark.long
@pytest.mark.filterwarnings("ignore:.*runs? in PyTorch on the CPU:torchane.errors.TorchaneWarning")
def test_layers_that_draw_keep_all_and_say_so() -> None:
    torch.manual_seed(0)
    model, x = Encoder(0.3), torch.randn(2, 16, 32)
    with pytest.warns(TorchaneWarning, match="not for layers that draw random numbers"):
        ours, _, _ = trained(model, {"x": x}, recompute="all")
    torch.manual_seed(1)
    eager = copy.deepcopy(model).train()
    loss_of(eager(x)).backward()
    for name, gradient in gradients(eager).items():
        assert distance(ours[name], gradient) < 0.02, name  # other masks: about 1


def test_a_model_without_equal_layers_keeps_all_and_says_so() -> None:
    model = nn.Sequential(nn.Linear(16, 32), nn.Tanh(), nn.Linear(32, 8))

    def call(x: torch.Tensor) -> torch.Tensor:
        return model(x)

    torch._dynamo.reset()
    with pytest.warns(TorchaneWarning, match="is for layers of equal structure"):
        torch.compile(call, backend=backend.ane, options={"device": "twin", "recompute": "all"})(torch.randn(4, 16))


@pytest.mark.long
@pytest.mark.filterwarnings("ignore:.*runs? in PyTorch on the CPU:torchane.errors.TorchaneWarning")
def test_layers_that_read_an_additive_mask_keep_all_and_say_so() -> None:
    torch.manual_seed(0)
    model = Masked()
    inputs = {"x": torch.randn(2, 16, 32), "kept": torch.zeros(2, 1, 16, 16).masked_fill(~kept(), -torch.inf)}
    theirs, _, _ = trained(model, inputs)
    with pytest.warns(TorchaneWarning, match="layers read l_kept_, a float that wants no gradient"):
        ours, _, _ = trained(model, inputs, recompute="all")
    assert max(distance(ours[name], theirs[name]) for name in theirs) < BAR
