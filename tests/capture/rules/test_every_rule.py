"""Every rule of the registry against PyTorch eager in float64, at random sizes: the call, and its gradient.

The tests are the registry's own entries, so a new rule has a test that fails until cases.py calls it.
"""

from collections.abc import Iterator

import pytest
import torch
from cases import CASES, Call, Draw
from harness import check, check_function
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._pytree import tree_flatten, tree_unflatten

from torchane.capture.rules import RULES
from torchane.capture.rules.decompose import batch_moments

aten = torch.ops.aten

#: Gradients of gradients are no part of a training step; torch itself raises for them (test_surface.py).
FORWARD = [target for target in RULES if "backward" not in str(target)]
#: Written into graphs behind autograd (functionalization's copy, our own parts of batch_norm and of losses), so torch has no derivative.
BEHIND_AUTOGRAD = [
    aten.copy.default, batch_moments, torch.ops.torchane.vocabulary_scores.default, torch.ops.torchane.vocabulary_kept_scores.default,
    torch.ops.torchane.vocabulary_gradient.default, torch.ops.torchane.vocabulary_gradient_of.default,
]  # fmt: skip

SIZES = st.tuples(*(st.integers(1, 4) for _ in range(4)))


def calls(target: torch._ops.OpOverload, sizes: tuple[int, int, int, int]) -> Iterator[Call]:
    assert target in CASES, f"{target} has a rule and no case in tests/capture/rules/cases.py"
    for make in CASES[target]:
        yield make(Draw(sizes, torch.Generator().manual_seed(sum(size << 3 * i for i, size in enumerate(sizes)))))


@pytest.mark.parametrize("target", RULES, ids=str)
def test_rule_computes_what_torch_computes(target: torch._ops.OpOverload) -> None:
    @given(SIZES)
    @settings(max_examples=3, deadline=None, derandomize=True, database=None)
    def at_random_sizes(sizes: tuple[int, int, int, int]) -> None:
        for args, kwargs in calls(target, sizes):
            check(target, *args, **kwargs)

    at_random_sizes()


@pytest.mark.parametrize("target", [target for target in FORWARD if target not in BEHIND_AUTOGRAD], ids=str)
def test_gradient_is_that_of_eager(target: torch._ops.OpOverload) -> None:
    for args, kwargs in calls(target, (2, 3, 4, 2)):
        leaves, spec = tree_flatten((args, kwargs))
        places = [i for i, leaf in enumerate(leaves) if isinstance(leaf, torch.Tensor)]

        def call(*tensors, leaves=leaves, spec=spec, places=places):
            given_ = list(leaves)
            for place, tensor in zip(places, tensors, strict=True):
                given_[place] = tensor
            args, kwargs = tree_unflatten(given_, spec)
            return target(*args, **kwargs)

        check_function(call, *(leaves[place] for place in places))


@pytest.mark.parametrize("target", BEHIND_AUTOGRAD, ids=str)
def test_torch_has_no_derivative_of_what_is_written_behind_autograd(target: torch._ops.OpOverload) -> None:
    for args, kwargs in calls(target, (2, 3, 4, 2)):
        x, *rest = args
        result = tree_flatten(target(x.requires_grad_(), *rest, **kwargs))[0][0]
        with pytest.raises(RuntimeError, match="derivative for aten::copy is not implemented|no autograd formula"):
            result.sum().backward()


def test_cases_are_of_rules_only() -> None:
    assert set(CASES) <= set(RULES)
