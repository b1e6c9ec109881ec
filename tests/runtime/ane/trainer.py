"""A small model that trains on a device, over and over from the same start: for tests of faults in the middle of a step."""

from collections.abc import Callable, Sequence

import torch
from torch import nn

from torchane.capture import backend
from torchane.runtime.device import Device
from torchane.runtime.loss_scale import LossScale
from torchane.runtime.observers import Observer

WIDTH, ROWS = 32, 32


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.up = nn.Linear(WIDTH, 2 * WIDTH)
        self.down = nn.Linear(2 * WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.down(nn.functional.silu(self.up(self.norm(x))))


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = Block(), Block()
        self.head = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.second(self.first(x)))


class Layers(nn.Module):
    """Three layers, each with a program of its own, forward and backward."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Sequential(nn.Linear(WIDTH, 2 * WIDTH), nn.Tanh(), nn.Linear(2 * WIDTH, WIDTH)) for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = x + layer(x)
        return x


class SmallRun:
    """Compiled once for a device. `losses` starts from the same weights and loss scale each time, so its bits are the
    same as long as the device's are."""

    def __init__(self, device: Device, ranges: str = "off", observers: Sequence[Observer] = (), network: Callable[[], nn.Module] = Network):
        torch.manual_seed(0)
        self.device = device
        self.model = network()
        self.start = {name: value.clone() for name, value in self.model.state_dict().items()}
        self.batches = [(torch.randn(ROWS, WIDTH), torch.randn(ROWS, WIDTH)) for _ in range(3)]
        self.options = {"device": device, "ranges": ranges, "observers": observers}
        known = len(backend.COMPILED)
        self.forward = torch.compile(self.model, backend=lambda graph, inputs: backend.ane(graph, inputs, options=self.options))
        self.losses(1)
        self.compiled = backend.COMPILED[known:]

    def losses(self, steps: int) -> list[float]:
        self.model.load_state_dict(self.start)
        for compiled in getattr(self, "compiled", ()):
            compiled.loss_scale = LossScale()
        return [self.step(step) for step in range(steps)]

    def step(self, step: int) -> float:
        """One step of plain SGD, on the weights as they are; its loss."""
        optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1)
        x, y = self.batches[step % len(self.batches)]
        optimizer.zero_grad()
        loss = ((self.forward(x) - y) ** 2).mean()
        loss.backward()
        optimizer.step()
        return loss.item()
