"""Networks for images whose size changes at every step, beside eager."""

import copy
import re
import warnings
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from torchane.capture import backend
from torchane.errors import TorchaneWarning

pytestmark = pytest.mark.long

#: Of a gradient of all parameters.
GRADIENT_BAR = 0.02
LOSS_BAR = 0.001
#: Of outputs of about 1, in fp16.
ROUNDING = 2**-11


@pytest.fixture(autouse=True)
def nothing_compiled_before():
    torch._dynamo.reset()
    torch.manual_seed(0)
    yield
    torch._dynamo.reset()


def gap(model: nn.Module, eager: nn.Module) -> float:
    """Of the gradients of all parameters together."""
    pairs = [(p.grad, q.grad) for p, q in zip(model.parameters(), eager.parameters(), strict=True) if q.grad is not None]
    return float(sum((p - q).pow(2).sum() for p, q in pairs).sqrt() / sum(q.pow(2).sum() for _, q in pairs).sqrt())


def train(model: nn.Module, steps: int, batch: Callable[[int], tuple[torch.Tensor, ...]], loss_of: Callable[..., torch.Tensor]) -> int:
    """Trains with the backend, each step beside eager with the same weights; gives how many graphs were compiled."""
    eager, before = copy.deepcopy(model), len(backend.COMPILED)
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    model.compile(backend="ane")
    for step in range(steps):
        given = batch(step)
        eager.load_state_dict(model.state_dict())
        losses = []
        for current in (model, eager):
            current.zero_grad()
            losses.append(loss_of(current, *given))
            losses[-1].backward()
        ours, theirs = (float(loss.detach()) for loss in losses)
        assert ours == pytest.approx(theirs, rel=LOSS_BAR, abs=ROUNDING), step
        assert gap(model, eager) < GRADIENT_BAR, (step, [tuple(one.shape) for one in given])
        optimizer.step()
    return len(backend.COMPILED) - before


class Convolutional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.body, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1), nn.Linear(8, 5)
        self.norm = nn.GroupNorm(2, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.silu(self.stem(x))
        return self.head(F.silu(self.body(x)).mean((2, 3)))


class Strided(Convolutional):
    """With what ResNets have: strides, norms and pooling over the image."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.avg_pool2d(F.silu(self.norm(self.stem(x))), 2)
        return self.head(F.silu(self.body(x)).mean((2, 3)))


class Patches(nn.Module):
    """A ViT whose positions are computed for the image's size."""

    def __init__(self) -> None:
        super().__init__()
        self.cut, self.block, self.head = nn.Conv2d(3, 16, 8, 8), nn.TransformerEncoderLayer(16, 2, 32, 0.0, F.gelu, batch_first=True), nn.Linear(16, 5)
        self.position = nn.Parameter(torch.randn(1, 16, 4, 4) * 0.02)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.cut(x)
        x = x + F.interpolate(self.position, x.shape[-2:], mode="bilinear", align_corners=False)
        return self.head(self.block(x.flatten(2).mT).mean(1))


class UNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 16, 3, padding=1), nn.Conv2d(24, 3, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        high = F.silu(self.a(x))
        low = F.silu(self.b(F.avg_pool2d(high, 2)))
        up = F.interpolate(low, high.shape[-2:], mode="nearest")
        return self.c(torch.cat([up, high], 1))


#: A model, and what is said of its sizes; where nothing is, buckets serve them.
IMAGES: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "a CNN": (Convolutional, ""),
    "a CNN with pooling": (Strided, r"a norm over an axis whose size varies in norm, test_images.py:\d+"),
    "a ViT": (Patches, r"a convolution with a stride along an axis whose size varies in cut, test_images.py:\d+"),
    "a U-Net": (UNet, r"avg_pool2d.* along an axis whose size varies in test_images.py:\d+"),
}


@pytest.mark.parametrize("name", IMAGES)
def test_images_of_any_size_are_right_and_what_is_exact_is_named(name: str) -> None:
    build, reason = IMAGES[name]
    sizes = [(33, 47), (48, 32), (57, 71), (40, 64), (35, 35), (61, 33), (64, 64), (47, 59), (39, 41), (50, 62)]
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        count = train(build(), len(sizes), lambda step: (torch.randn(2, 3, *sizes[step]),), lambda net, x: (net(x) - 1).pow(2).mean())
    texts = [str(one.message) for one in said if issubclass(one.category, TorchaneWarning) and "was compiled 8 times" in str(one.message)]
    assert len(texts) == bool(reason), texts
    assert re.search(reason, texts[0]) if reason else count <= 5, texts
