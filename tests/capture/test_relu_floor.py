"""What fp16 leaves of the gradients of networks with ReLU and max-pooling, ours compared with PyTorch's own fp16.

A ReLU's gradient is a step: where a pre-activation lies within a rounding of zero, it takes the other side. Of n entries
that differ at random a share of 2^-12 or so does, and the gradient moves by the root of that share in every layer: with
fp32 arithmetic throughout and only the convolutions' weights rounded to fp16, a fresh ResNet-18 is 6 to 14 % off. No
program that keeps activations in fp16 can do better. So ours is measured against that floor, and against 2 % where the same
network is smooth.
"""

import copy
import statistics

import pytest
import torch
from capture_helpers import compile_for_twin, distance
from torch import nn
from zoo import Classifier

pytestmark = pytest.mark.long

#: Ours may be this much over torch's autocast to fp16, the mean of two seeds: which entries flip is chance.
OVER_AUTOCAST = 1.5


class Block(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int, act):
        super().__init__()
        self.act = act
        self.conv1, self.bn1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs)
        self.conv2, self.bn2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False), nn.BatchNorm2d(outputs)
        same = stride == 1 and inputs == outputs
        self.down = nn.Identity() if same else nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.act(self.bn2(self.conv2(self.act(self.bn1(self.conv1(x))))) + self.down(x))


def resnet18(act, pool: nn.Module, width: int = 16) -> nn.Module:
    """torchvision's resnet18, a quarter as wide."""
    layers = [nn.Conv2d(3, width, 7, 2, 3, bias=False), nn.BatchNorm2d(width), act, pool]
    inputs = width
    for stage in range(4):
        outputs = width << stage
        layers += [Block(inputs, outputs, 1 if stage == 0 else 2, act), Block(outputs, outputs, 1, act)]
        inputs = outputs
    return Classifier(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, 10))


def autocast(model: nn.Module, batch: dict[str, torch.Tensor]) -> None:
    with torch.autocast("cpu", torch.float16):
        loss = model(**batch)
    (loss * 1024).backward()
    for parameter in model.parameters():
        parameter.grad /= 1024


def only_rounded_weights(model: nn.Module, batch: dict[str, torch.Tensor]) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.half().float())
    model(**batch).backward()


def ours(model: nn.Module, batch: dict[str, torch.Tensor]) -> None:
    torch._dynamo.reset()
    compile_for_twin(model)(**batch).backward()


def errors(build, train, seed: int) -> list[float]:
    """The relative error of each parameter's gradient beside eager fp32."""
    torch.manual_seed(seed)
    wanted = build()
    model = copy.deepcopy(wanted)
    batch = {"pixel_values": torch.randn(8, 3, 64, 64), "labels": torch.randint(10, (8,))}
    wanted(**batch).backward()
    train(model, batch)
    return [distance(mine.grad, theirs.grad) for mine, theirs in zip(model.parameters(), wanted.parameters(), strict=True)]


def test_a_resnet18_with_relus_is_as_near_as_torchs_own_fp16(evidence):
    means = {}
    for train in (ours, autocast, only_rounded_weights):
        found = [errors(lambda: resnet18(nn.ReLU(), nn.MaxPool2d(3, 2, 1)), train, seed) for seed in range(2)]
        means[train] = statistics.mean(statistics.median(each) for each in found)
        evidence(f"{train.__name__}: median relative error of a gradient", means[train], "relative")
        evidence(f"{train.__name__}: worst", max(map(max, found)), "relative")
    assert means[only_rounded_weights] > 0.02  # the reason why no bar of 2 % stands here
    assert means[ours] < OVER_AUTOCAST * means[autocast]


def test_a_smooth_resnet18_is_within_two_percent(evidence):
    worst = max(max(errors(lambda: resnet18(nn.SiLU(), nn.AvgPool2d(2)), ours, seed)) for seed in range(2))
    evidence("worst relative error of a gradient", worst, "relative")
    assert worst < 0.02
