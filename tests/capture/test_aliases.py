"""Results have the strides, offsets and shared memory that PyTorch promises, and so have gradients."""

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from torchane.capture import backend

pytestmark = pytest.mark.filterwarnings("ignore::torchane.errors.TorchaneWarning")  # where it runs is not the question here

Tensors = tuple[torch.Tensor, ...]
Function = Callable[..., Tensors]


def alike(tensor: torch.Tensor, wants_gradient: bool) -> torch.Tensor:
    """A leaf with memory of its own, laid out the same."""
    memory = tensor.untyped_storage().clone()
    placed = torch.empty(0).set_(memory, tensor.storage_offset(), tensor.shape, tensor.stride())
    return placed.requires_grad_(wants_gradient)


def layouts(results: Tensors) -> list[Any]:
    """Shape, strides, offset, and which results share memory."""
    storages = [result.untyped_storage()._cdata for result in results]
    return [(tuple(r.shape), strides_of(r), r.storage_offset(), storages.index(storages[i])) for i, r in enumerate(results)]


def strides_of(tensor: torch.Tensor) -> list[int | None]:
    """None for an axis of one entry, whose stride leads nowhere."""
    return [stride if size > 1 else None for size, stride in zip(tensor.shape, tensor.stride())]


def is_writable(tensor: torch.Tensor) -> bool:
    """Not two entries in one place, which PyTorch refuses to write to."""
    return all(stride > 0 or size <= 1 for size, stride in zip(tensor.shape, tensor.stride()))


def run(function: Function, inputs: Tensors, wants_gradient: bool) -> tuple[list[Any], list[Any], list[torch.Tensor]]:
    """Layouts of results; of gradients; and values: of results, of gradients, and of all after each result was written to."""
    given = tuple(alike(x, wants_gradient) for x in inputs)
    results = function(*given)
    values, gradients = [result.detach().clone() for result in results], []
    if wants_gradient:
        weighed = [(r * torch.linspace(0.5, 1.5, r.numel()).reshape(r.shape)).sum() for r in results if r.requires_grad]
        if weighed:
            torch.stack(weighed).sum().backward()
            gradients = [x.grad for x in given if x.grad is not None]
    else:
        for result in results:
            if is_writable(result):
                try:
                    result.add_(1)
                except RuntimeError as error:  # overlaps in a way that strides alone do not show
                    assert "single memory location" in str(error)
        values += [tensor.detach().clone() for tensor in (*results, *given)]
    return layouts(results), [strides_of(gradient) for gradient in gradients], values + gradients


def assert_as_promised(function: Function, inputs: Tensors, wants_gradient: bool = False) -> None:
    """The promise is what AOTAutograd gives with PyTorch's own kernels."""
    found = []
    for compiler in ("aot_eager", backend.ane):
        torch._dynamo.reset()
        found.append(run(torch.compile(function, backend=compiler), inputs, wants_gradient))
    (layout, strides, values), (our_layout, our_strides, our_values) = found
    assert our_layout == layout
    assert our_strides == strides
    for ours, theirs in zip(our_values, values, strict=True):
        assert (ours - theirs).norm() <= 0.03 * theirs.norm() + 2e-3


def last(image: torch.Tensor) -> torch.Tensor:
    return image.to(memory_format=torch.channels_last)


CASES: dict[str, tuple[Function, tuple[int, ...]]] = {
    "two views of one result": (lambda x: (y := x * 2, y[:, 0], y[1:]), (4, 3, 8, 8)),
    "a view alone keeps its offset": (lambda x: ((x * 2)[1:, 2],), (4, 3, 8, 8)),
    "views of a view": (lambda x: (y := (x * 2)[1:], y[0], y.flatten(1)[:, 3]), (4, 3, 8, 8)),
    "halves": (lambda x: torch.tanh(x).split(2), (4, 3, 8, 8)),
    "all rows": (lambda x: torch.tanh(x).unbind(1), (4, 3, 8, 8)),
    "heads": (lambda x: (x @ x.mT).unflatten(-1, (2, 4)).movedim(-2, 1).split([1, 2], 2), (4, 3, 8, 8)),
    "a diagonal": (lambda x: (y := x * 2, y.diagonal(0, -2, -1)), (4, 3, 8, 8)),
    "windows": (lambda x: (y := x * 2, y.unfold(-1, 3, 2)), (4, 3, 8, 8)),
    "as_strided of a result": (lambda x: ((x.permute(0, 2, 3, 1) * 2).as_strided((3, 5), (7, 2), 1),), (4, 3, 8, 8)),
    "transposed": (lambda x: ((x @ x.mT).mT, torch.tanh(x).mT), (4, 3, 8, 8)),
    "expanded": (lambda x: (x.sum(1, keepdim=True).expand(4, 5, 8, 8),), (4, 3, 8, 8)),
    "channels last and back": (lambda x: ((x.permute(0, 2, 3, 1) * 2).permute(0, 3, 1, 2).flatten(1),), (4, 3, 8, 8)),
    "an image in channels last": (lambda x: (torch.tanh(last(x)), F.avg_pool2d(last(x), 2)), (4, 3, 8, 8)),
    "like an image": (lambda x: (torch.zeros_like(last(x)) + 1, torch.empty_like(last(x)).copy_(x)), (4, 3, 8, 8)),
    "like an image, contiguous": (lambda x: (torch.empty_like(last(x), memory_format=torch.contiguous_format).copy_(x),), (4, 3, 8, 8)),
    "a clone and its part": (lambda x: (y := x.clone(), y[1]), (4, 3, 8, 8)),
    "a view of an input": (lambda x: (x[1:], x.mT, x * 2), (4, 3, 8, 8)),
    "one result twice": (lambda x: (y := x * 2, y, y.view(-1)), (4, 3, 8, 8)),
    "written in parts": (lambda x: (y := x * 2, y[0].add_(5), y[:, 1].mul_(2)), (4, 3, 8, 8)),
    "heads turned": (lambda x: (q := x.transpose(1, 2) * 1.5, q + q.flip(-1)), (4, 3, 8, 8)),
    "einsum": (lambda x: (torch.einsum("abcd->dacb", x) * 2,), (4, 3, 8, 8)),
    "a slice that a product reads too": (lambda x: (y := torch.tanh(x), y[:, 0], y[:, 0] @ y[:, 1]), (4, 3, 8, 8)),
}
QUICK = ("two views of one result", "views of a view", "as_strided of a result", "a clone and its part", "channels last and back")


@pytest.mark.parametrize("name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.long) for name in CASES])
@pytest.mark.parametrize("wants_gradient", [False, True], ids=["inference", "training"])
def test_layouts_and_shared_memory(name: str, wants_gradient: bool) -> None:
    function, shape = CASES[name]
    assert_as_promised(function, (torch.randn(shape, generator=torch.Generator().manual_seed(0)),), wants_gradient)


# ---- programs drawn at random

def drawn_input(draw: random.Random) -> torch.Tensor:
    shape = [draw.choice([1, 2, 3, 4]) for _ in range(draw.choice([2, 3, 4]))]
    kind = draw.choice(["dense", "permuted", "every second", "expanded", "channels last", "offset"])
    if kind == "permuted":
        order = draw.sample(range(len(shape)), len(shape))
        return torch.randn([shape[axis] for axis in order]).permute([order.index(axis) for axis in range(len(shape))])
    if kind == "every second":
        return torch.randn([2 * size for size in shape])[tuple(slice(None, None, 2) for _ in shape)]
    if kind == "expanded":
        return torch.randn([1 if axis == 0 else size for axis, size in enumerate(shape)]).expand(shape)
    if kind == "channels last" and len(shape) == 4:
        return last(torch.randn(shape))
    return torch.randn([shape[0] + 2, *shape[1:]])[1:-1] if kind == "offset" else torch.randn(shape)


#: What a step makes of a value x, an axis i of it, and a number n.
STEPS: tuple[Callable[[torch.Tensor, int, int], torch.Tensor], ...] = (
    lambda x, i, n: x * 1.5,
    lambda x, i, n: torch.tanh(x),
    lambda x, i, n: x + x.sum(i, keepdim=True),
    lambda x, i, n: x.permute([(axis + n) % x.dim() for axis in range(x.dim())][:: 1 if i else -1]),
    lambda x, i, n: x.select(i, n % x.shape[i]) if x.dim() > 1 else x,
    lambda x, i, n: x.narrow(i, n % x.shape[i], x.shape[i] - n % x.shape[i]),
    lambda x, i, n: x[(slice(None),) * i + (slice(None, None, 2),)],
    lambda x, i, n: x.flatten(i),
    lambda x, i, n: x.unsqueeze(i) if x.dim() < 4 else x,
    lambda x, i, n: x @ x.mT if x.dim() > 1 else x,
    lambda x, i, n: x.split(max(1, x.shape[i] // 2), i)[-1],
    lambda x, i, n: x.unsqueeze(0).expand(2, *x.shape) if x.dim() < 4 else x,
    lambda x, i, n: x.contiguous(),
    lambda x, i, n: x.mT if x.dim() > 1 else x,
    lambda x, i, n: x.diagonal(0, -2, -1) if x.dim() > 1 else x,
    lambda x, i, n: x.unfold(-1, min(2, x.shape[-1]), 1) if x.dim() < 4 else x,
    lambda x, i, n: last(x) if x.dim() == 4 else x,
    lambda x, i, n: x.reshape(-1, x.shape[-1]),
    lambda x, i, n: x.clone(),
    lambda x, i, n: torch.empty_like(x).copy_(x),
    lambda x, i, n: torch.cat([x, 2 * x], i),
    lambda x, i, n: (x * 1).as_strided((2,), (1,)) if x.numel() > 1 else x,
    lambda x, i, n: F.layer_norm(x, x.shape[-1:]),
)


def drawn(seed: int) -> tuple[Function, Tensors]:
    draw = random.Random(seed)
    torch.manual_seed(seed)
    inputs = tuple(drawn_input(draw) for _ in range(draw.choice([1, 2])))
    steps = [(draw.choice(STEPS), draw.randrange(12), draw.randrange(12), draw.randrange(12)) for _ in range(draw.choice([3, 5, 8]))]
    chosen = [draw.randrange(12) for _ in range(draw.choice([1, 2, 3]))]

    def function(*given: torch.Tensor) -> Tensors:
        values = list(given)
        for step, which, axis, number in steps:
            x = values[which % len(values)]
            values.append(step(x, axis % x.dim(), number))
        made = values[len(given) :]
        return (made[-1], *(made[i % len(made)] for i in chosen))

    return function, inputs


@pytest.mark.parametrize("seed", [*range(4), *(pytest.param(seed, marks=pytest.mark.long) for seed in range(4, 120))])
def test_random_views(seed: int) -> None:
    function, inputs = drawn(seed)
    for wants_gradient in (False, True):
        try:
            run(function, inputs, wants_gradient)
        except RuntimeError as error:
            pytest.skip(f"eager refuses: {error}")
        assert_as_promised(function, inputs, wants_gradient)
