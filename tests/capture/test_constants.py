"""What no tensor reaches, evaluated while compiling."""

import numpy as np
import pytest
import torch
from torch import fx

from torchane.abi.numbers import EXCLUDED, MASKED
from torchane.capture.compiled import COMPILED
from torchane.capture.constants import Constants
from torchane.capture.region import _PIECE, fp16_literal
from torchane.errors import CompileError
from torchane.models.config import LlamaConfig
from torchane.models.llama import LlamaForCausalLM

aten = torch.ops.aten


def mask(graph, size, low=-torch.inf):
    ones = graph.call_function(aten.ones.default, ([size, size],), {"dtype": torch.bool})
    kept = graph.call_function(aten.tril.default, (ones,))
    return graph.call_function(aten.where.Scalar, (kept, 0.0, low))


def module_of(graph, root=None):
    graph.output(())
    return fx.GraphModule(root or torch.nn.Module(), graph)


def test_equal_expressions_are_one_tensor_with_one_digest():
    graph = fx.Graph()
    first, second, other, smaller = mask(graph, 8), mask(graph, 8), mask(graph, 8, -1.0), mask(graph, 7)
    constants = Constants(module_of(graph))
    assert constants.value(first) is constants.value(second)
    np.testing.assert_array_equal(constants.value(first), np.where(np.tri(8), 0, -np.inf))
    assert constants.digest(first) == constants.digest(second)
    assert len({constants.digest(one) for one in (first, other, smaller)}) == 3
    assert constants.value(other)[0, 1] == -1 and constants.value(smaller).shape == (7, 7)


@pytest.mark.parametrize("one, other", [(0.0, -0.0), (1.0, 1), (1, True)])
def test_numbers_of_another_type_or_sign_make_another_expression(one, other):
    graph = fx.Graph()
    both = [graph.call_function(aten.full.default, ([2], value)) for value in (one, other)]
    constants = Constants(module_of(graph))
    assert constants.digest(both[0]) != constants.digest(both[1])


def test_what_a_value_is_made_of_is_not_kept_and_the_value_only_until_it_is_forgotten():
    graph = fx.Graph()
    node = mask(graph, 8)
    constants = Constants(module_of(graph))
    value = constants.value(node)
    assert len(constants._values) == 1
    constants.forget()
    assert not constants._values
    assert torch.equal(constants.value(node), value)


def test_a_tensor_of_the_module_is_one_whatever_its_name():
    root = torch.nn.Module()
    root.a = root.b = torch.arange(3.0)
    root.c = torch.arange(3.0)
    graph = fx.Graph()
    a, b, c = (graph.get_attr(name) for name in "abc")
    constants = Constants(module_of(graph, root))
    assert constants.value(a) is constants.value(b) is root.a and constants.value(c) is root.c
    assert constants.digest(a) == constants.digest(c), "of equal bytes"


def test_a_constant_of_many_numbers_is_rounded_as_one_of_few():
    numbers = torch.linspace(-3, 3, _PIECE + 5)
    numbers[-2:], numbers[0] = torch.tensor([-torch.inf, 1e9]), -1e9
    wanted = numbers.clamp(-4, 4).numpy().astype(np.float16)
    wanted[-2:], wanted[0] = (EXCLUDED, -MASKED), MASKED
    found = fp16_literal(numbers.reshape(1, -1, 1))
    assert found.type.shape == (1, _PIECE + 5, 1)
    np.testing.assert_array_equal(found.value.reshape(-1), wanted)
    numbers[-1] = 1e5
    with pytest.raises(CompileError, match="holds 100000"):
        fp16_literal(numbers)
    assert fp16_literal(torch.tensor(2.5)).value.shape == () and fp16_literal(torch.ones(3, dtype=torch.bool).expand(2, 3)).value.tolist() == [[1, 1, 1]] * 2


def test_programs_with_one_mask_hold_its_bytes_once():
    """The first layer, whose input wants no gradient where the embedding is frozen, is another program than the second."""
    config = LlamaConfig(vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2, max_position_embeddings=64)
    model = LlamaForCausalLM(config)
    model.model.embed_tokens.weight.requires_grad_(False)
    torch.compile(model, backend="ane", options={"device": "twin", "cache": "off"})(torch.arange(64)[None]).sum().backward()
    blobs = [data for program in COMPILED[-1].plans["forward"].programs for data in program.blobs.values() if len(data) > 64 * 64 * 2]
    assert len(blobs) > len({id(data) for data in blobs}) == len(set(blobs))
