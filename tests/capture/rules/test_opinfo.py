"""PyTorch's own samples: every node of forward and backward that a rule takes, against torch in float64."""

import sys
import types
import unittest
import warnings

import pytest
import torch
from harness import Checker, trace
from torch.utils._pytree import tree_flatten, tree_unflatten

from torchane.capture.rules import RULES

# torch's test helpers import expecttest for a base class that no sample needs, and warn of absent packages.
sys.modules.setdefault("expecttest", types.ModuleType("expecttest")).TestCase = unittest.TestCase
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from torch.testing._internal.common_methods_invocations import op_db

pytestmark = [pytest.mark.long, pytest.mark.filterwarnings("ignore")]

#: Samples per op: the first ones cover every option of an op, the later ones its shapes.
SAMPLES = 6

#: Ops whose samples say nothing about rules: random numbers, memory, other devices' or sparse forms.
SKIPPED = {"as_strided", "empty", "empty_like", "empty_strided", "empty_permuted", "new_empty", "new_empty_strided", "resize_",
           "resize_as_", "as_strided_scatter", "to_sparse", "sparse.sampled_addmm", "sparse.mm", "jiterator_unary",
           "jiterator_binary", "jiterator_4inputs_with_extra_args", "jiterator_binary_return_by_ref",
           "jiterator_2inputs_2outputs", "normal", "uniform", "cauchy", "exponential", "geometric", "log_normal",
           "rand_like", "randint", "randint_like", "randn", "randn_like", "multinomial", "bernoulli",
           "nn.functional.dropout", "nn.functional.dropout2d", "nn.functional.dropout3d",
           "nn.functional.alpha_dropout", "nn.functional.feature_alpha_dropout", "nn.functional.rrelu",
           "nn.functional.fractional_max_pool2d", "nn.functional.fractional_max_pool3d"}  # fmt: skip

OPS = [op for op in op_db if torch.float32 in op.dtypes and op.name not in SKIPPED]


@pytest.mark.parametrize("op", OPS, ids=lambda op: op.full_name)
def test_samples(op):
    torch.manual_seed(0)
    untraced: list[str] = []
    samples = op.sample_inputs("cpu", torch.float32, requires_grad=op.supports_autograd)
    for sample, _ in zip(samples, range(SAMPLES)):
        leaves, spec = tree_flatten((sample.input, sample.args, sample.kwargs))
        places = [i for i, leaf in enumerate(leaves) if isinstance(leaf, torch.Tensor)]
        if not places:
            continue

        def whole(*tensors, op=op, leaves=leaves, spec=spec, places=places):
            given = list(leaves)
            for place, tensor in zip(places, tensors):
                given[place] = tensor
            first, args, kwargs = tree_unflatten(given, spec)
            outputs = [y for y in tree_flatten(op(first, *args, **kwargs))[0] if isinstance(y, torch.Tensor)]
            wanted = [x for x in tensors if x.requires_grad]
            sources = [y for y in outputs if y.requires_grad and y.dtype == torch.float32]
            if not (op.supports_autograd and wanted and sources):
                return outputs
            ones = [torch.full_like(y, 0.5) for y in sources]
            return outputs, torch.autograd.grad(sources, wanted, ones, allow_unused=True)

        tensors = [leaves[place].detach().requires_grad_(leaves[place].requires_grad) for place in places]
        try:
            graph = trace(whole, *tensors)
        except (RuntimeError, NotImplementedError) as error:  # sizes that depend on data, or no meta kernel
            untraced.append(str(error))
            continue
        if any(node.target in RULES for node in graph.graph.nodes):
            Checker(graph).run(*(x.detach().double() if x.is_floating_point() else x for x in tensors))
    if untraced:
        pytest.skip(f"{len(untraced)} samples have no graph: {untraced[0][:80]}")
