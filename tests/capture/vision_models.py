"""Networks for images at full size, random weights: those that transformers has, and the others written out from their papers.

Each maps (B, 3, 224, 224) to logits, or to an image of logits (U-Net).
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
import transformers
from torch import nn
from torch.nn import functional as F


class Logits(nn.Module):
    """A classifier of transformers as a function of an image."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.model(x).logits


def hugging_face(family: str, **config: Any) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        made = getattr(transformers, f"{family}Config")(num_labels=1000, **config)
        return Logits(getattr(transformers, f"{family}ForImageClassification")(made))

    return build


def conv(inputs: int, outputs: int, size: int = 3, stride: int = 1, groups: int = 1, act: type[nn.Module] | None = nn.ReLU) -> nn.Sequential:
    layers: list[nn.Module] = [nn.Conv2d(inputs, outputs, size, stride, size // 2, groups=groups, bias=False), nn.BatchNorm2d(outputs)]
    return nn.Sequential(*layers, *([] if act is None else [act()]))


class DenseLayer(nn.Module):
    def __init__(self, inputs: int, growth: int):
        super().__init__()
        self.norm1, self.conv1 = nn.BatchNorm2d(inputs), nn.Conv2d(inputs, 4 * growth, 1, bias=False)
        self.norm2, self.conv2 = nn.BatchNorm2d(4 * growth), nn.Conv2d(4 * growth, growth, 3, padding=1, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv1(F.relu(self.norm1(x)))
        return torch.cat((x, self.conv2(F.relu(self.norm2(y)))), 1)


class DenseNet121(nn.Module):
    """Huang et al. 2017, arXiv 1608.06993, table 1: growth 32, blocks of 6, 12, 24, 16 layers; layers by name, as torchvision has them."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(*conv(3, 64, 7, 2), nn.MaxPool2d(3, 2, 1))
        self.features = nn.Sequential()
        channels = 64
        for number, depth in enumerate((6, 12, 24, 16), 1):
            for layer in range(1, depth + 1):
                self.features.add_module(f"block{number}_layer{layer}", DenseLayer(channels, 32))
                channels += 32
            if number < 4:
                halved = [nn.BatchNorm2d(channels), nn.ReLU(), nn.Conv2d(channels, channels // 2, 1, bias=False), nn.AvgPool2d(2)]
                self.features.add_module(f"transition{number}", nn.Sequential(*halved))
                channels //= 2
        self.norm, self.head = nn.BatchNorm2d(channels), nn.Linear(channels, 1000)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(F.relu(self.norm(self.features(self.stem(x)))).mean((2, 3)))


class Squeeze(nn.Module):
    """Squeeze and excitation: channels scaled by a gate of their means. Source: Hu et al. 2018, arXiv 1709.01507."""

    def __init__(self, channels: int, inner: int, act: type[nn.Module], gate: type[nn.Module]):
        super().__init__()
        self.fc1, self.fc2 = nn.Conv2d(channels, inner, 1), nn.Conv2d(inner, channels, 1)
        self.act, self.gate = act(), gate()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.gate(self.fc2(self.act(self.fc1(x.mean((2, 3), keepdim=True)))))


class Inverted(nn.Module):
    """Expand, depthwise, squeeze, project; added to its input where shapes allow."""

    def __init__(self, inputs: int, size: int, inner: int, outputs: int, squeezes: bool, act: type[nn.Module], stride: int):
        super().__init__()
        layers = [] if inner == inputs else [conv(inputs, inner, 1, act=act)]
        layers.append(conv(inner, inner, size, stride, inner, act))
        if squeezes:
            layers.append(Squeeze(inner, max(8, round(inner / 32) * 8), nn.ReLU, nn.Hardsigmoid))
        self.layers = nn.Sequential(*layers, conv(inner, outputs, 1, act=None))
        self.adds = stride == 1 and inputs == outputs

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.layers(x) if self.adds else self.layers(x)


class MobileNetV3Small(nn.Module):
    """Howard et al. 2019, arXiv 1905.02244, table 2."""

    def __init__(self) -> None:
        super().__init__()
        relu, hard = nn.ReLU, nn.Hardswish
        rows = [
            (3, 16, 16, True, relu, 2), (3, 72, 24, False, relu, 2), (3, 88, 24, False, relu, 1), (5, 96, 40, True, hard, 2),
            (5, 240, 40, True, hard, 1), (5, 240, 40, True, hard, 1), (5, 120, 48, True, hard, 1), (5, 144, 48, True, hard, 1),
            (5, 288, 96, True, hard, 2), (5, 576, 96, True, hard, 1), (5, 576, 96, True, hard, 1),
        ]  # fmt: skip
        blocks, channels = [], 16
        for size, inner, outputs, squeezes, act, stride in rows:
            blocks.append(Inverted(channels, size, inner, outputs, squeezes, act, stride))
            channels = outputs
        self.stem, self.blocks, self.last = conv(3, 16, 3, 2, act=hard), nn.Sequential(*blocks), conv(96, 576, 1, act=hard)
        self.head = nn.Sequential(nn.Linear(576, 1024), nn.Hardswish(), nn.Linear(1024, 1000))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.last(self.blocks(self.stem(x))).mean((2, 3)))


class Attention(nn.Module):
    """Attention within windows of 7 x 7 neighbours, or of 7 x 7 pixels spread over a grid, with a bias per relative place."""

    def __init__(self, channels: int, spread: bool, window: int = 7):
        super().__init__()
        self.norm, self.qkv, self.proj = nn.LayerNorm(channels), nn.Linear(channels, 3 * channels), nn.Linear(channels, channels)
        self.norm2, self.up, self.down = nn.LayerNorm(channels), nn.Linear(channels, 4 * channels), nn.Linear(4 * channels, channels)
        self.heads, self.spread, self.window = channels // 32, spread, window
        self.table = nn.Parameter(0.02 * torch.randn((2 * window - 1) ** 2, self.heads))
        place = torch.stack(torch.meshgrid(torch.arange(window), torch.arange(window), indexing="ij")).flatten(1)
        apart = place[:, :, None] - place[:, None, :] + window - 1
        self.register_buffer("places", apart[0] * (2 * window - 1) + apart[1], persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        B, C, H, W = x.shape
        w = self.window
        if self.spread:
            x = x.view(B, C, w, H // w, w, W // w).permute(0, 3, 5, 2, 4, 1)
        else:
            x = x.view(B, C, H // w, w, W // w, w).permute(0, 2, 4, 3, 5, 1)
        x = self.mixed(x.reshape(-1, w * w, C))
        x = x + self.down(F.gelu(self.up(self.norm2(x))))
        x = x.view(B, H // w, W // w, w, w, C)
        return x.permute((0, 5, 3, 1, 4, 2) if self.spread else (0, 5, 1, 3, 2, 4)).reshape(B, C, H, W)

    def mixed(self, x: torch.Tensor) -> torch.Tensor:
        N, S, C = x.shape
        q, k, v = self.qkv(self.norm(x)).view(N, S, 3, self.heads, 32).permute(2, 0, 3, 1, 4)
        bias = self.table[self.places.flatten()].view(S, S, self.heads).permute(2, 0, 1)
        weights = (q @ k.transpose(-2, -1) * 32**-0.5 + bias).softmax(-1)
        return x + self.proj((weights @ v).transpose(1, 2).reshape(N, S, C))


class MaxViTBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        inner = 4 * outputs
        self.norm = nn.BatchNorm2d(inputs)
        self.layers = nn.Sequential(
            conv(inputs, inner, 1, act=nn.GELU), conv(inner, inner, 3, stride, inner, nn.GELU),
            Squeeze(inner, outputs // 4, nn.SiLU, nn.Sigmoid), nn.Conv2d(inner, outputs, 1),
        )  # fmt: skip
        self.short = nn.Identity() if stride == 1 else nn.Sequential(nn.AvgPool2d(3, stride, 1), nn.Conv2d(inputs, outputs, 1))
        self.near, self.far = Attention(outputs, spread=False), Attention(outputs, spread=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.far(self.near(self.short(x) + self.layers(self.norm(x))))


class MaxViTTiny(nn.Module):
    """Tu et al. 2022, arXiv 2204.01697, table 10: stages of 2, 2, 5, 2 blocks of 64 to 512 channels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(*conv(3, 64, 3, 2, act=nn.GELU), nn.Conv2d(64, 64, 3, padding=1))
        self.blocks = nn.Sequential(*self._blocks())
        self.norm, self.head = nn.LayerNorm(512), nn.Linear(512, 1000)

    @staticmethod
    def _blocks() -> Iterator[nn.Module]:
        channels = 64
        for depth, outputs in ((2, 64), (2, 128), (5, 256), (2, 512)):
            for i in range(depth):
                yield MaxViTBlock(channels, outputs, 2 if i == 0 else 1)
                channels = outputs

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.norm(self.blocks(self.stem(x)).mean((2, 3))))


class UNet(nn.Module):
    """Ronneberger et al. 2015, arXiv 1505.04597, padded, with batch norms and a quarter of the channels; 2 classes a pixel."""

    def __init__(self, channels: tuple[int, ...] = (16, 32, 64, 128, 256)):
        super().__init__()
        pairs = list(zip((3, *channels), channels, strict=False))
        self.down = nn.ModuleList(nn.Sequential(conv(a, b), conv(b, b)) for a, b in pairs)
        back = list(zip(channels[:0:-1], channels[-2::-1], strict=True))
        self.grow = nn.ModuleList(nn.ConvTranspose2d(a, b, 2, 2) for a, b in back)
        self.up = nn.ModuleList(nn.Sequential(conv(2 * b, b), conv(b, b)) for _, b in back)
        self.head = nn.Conv2d(channels[0], 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        kept: list[torch.Tensor] = []
        for i, down in enumerate(self.down):
            x = down(x if i == 0 else F.max_pool2d(x, 2))
            kept.append(x)
        for grow, up, beside in zip(self.grow, self.up, kept[-2::-1], strict=True):
            x = up(torch.cat((beside, grow(x)), 1))
        return self.head(x)


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "resnet18": hugging_face("ResNet", layer_type="basic", hidden_sizes=[64, 128, 256, 512], depths=[2, 2, 2, 2]),
    "resnet50": hugging_face("ResNet"),
    "densenet121": DenseNet121,
    "mobilenet_v2": hugging_face("MobileNetV2"),
    "mobilenet_v3_small": MobileNetV3Small,
    "efficientnet_b0": hugging_face("EfficientNet", image_size=224, width_coefficient=1.0, depth_coefficient=1.0, hidden_dim=1280, dropout_rate=0.0, drop_connect_rate=0.0),
    "convnext_tiny": hugging_face("ConvNext", layer_scale_init_value=0.5),  # 1e-6 puts gradients below fp16 (docs/limits.md)
    "regnetx_400mf": hugging_face("RegNet", layer_type="x", hidden_sizes=[32, 64, 160, 384], depths=[1, 2, 7, 12], groups_width=16),
    "maxvit_tiny": MaxViTTiny,
    "swin_tiny": hugging_face("Swin", drop_path_rate=0.0),
    "unet": UNet,
}  # fmt: skip
