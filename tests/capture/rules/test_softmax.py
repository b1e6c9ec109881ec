"""A softmax's gradient of a product keeps its digits where all rows have much in common."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from torchane.capture import backend

#: Values that are 30 times as large as what distinguishes one token's from another's.
COMMON = 30.0


#: softmax(scores (2, 3, 24, 40)) times values (2, 3, 40, 16), as models write it; scores are a product's.
WAYS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "product": lambda s, v: s.softmax(-1) @ v,
    "columns that sum to 1": lambda s, v: s.mT.softmax(-2).mT @ v,
    "values turned": lambda s, v: (v.mT @ s.softmax(-1).mT).mT,
    "in float32": lambda s, v: s.softmax(-1, dtype=torch.float32).to(s.dtype) @ v,
    "batches joined": lambda s, v: torch.bmm(s.softmax(-1).flatten(0, 1), v.flatten(0, 1)).view(2, 3, 24, 16),
    "einsum": lambda s, v: torch.einsum("bhqk,bhkd->bhqd", s.softmax(-1), v),
}


def gradients(f: Callable[[Tensor, Tensor, Tensor], Tensor], q: Tensor, k: Tensor, v: Tensor, weights: Tensor) -> list[Tensor]:
    given = [one.detach().requires_grad_() for one in (q, k, v)]
    return list(torch.autograd.grad((f(*given) * weights).sum(), given))


def inputs() -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(1)
    q, k, values, common, weights = (torch.randn(2, 3, *sizes, generator=generator) for sizes in ((24, 16), (40, 16), (40, 16), (1, 16), (24, 16)))
    return tuple(one.half().float() for one in (0.25 * q, k, values + COMMON * common, weights))


def gap(found: Tensor, wanted: Tensor) -> float:
    return ((found - wanted).norm() / wanted.norm()).item()


@pytest.mark.parametrize("way", WAYS)
def test_what_all_values_have_in_common_costs_no_digits(way: str) -> None:
    torch._dynamo.reset()
    f, given = (lambda q, k, v: WAYS[way](q @ k.mT, v)), inputs()
    wanted = gradients(f, *(one.double() for one in given))
    found = gradients(torch.compile(f, backend=backend.ane, options={"device": "twin"}), *given)
    with torch.autocast("cpu", torch.float16):
        half = gradients(f, *given)
    assert min(gap(a, b) for a, b in zip(half[:2], wanted)) > 4e-3, "the inputs are no test of it"
    assert max(gap(a, b) for a, b in zip(found, wanted, strict=True)) < 2e-3
