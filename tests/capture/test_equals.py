"""Equal calls become one, as in torch's own pass; what may not is left."""

import subprocess
import sys

import pytest
import torch
from torch import fx, nn
from torch._functorch.compile_utils import fx_graph_cse

from torchane.capture import torch_private as private
from torchane.capture.equals import join_equals
from torchane.models.config import LlamaConfig
from torchane.models.llama import LlamaForCausalLM

aten = torch.ops.aten


def written(graph):
    return [(node.op, node.name, str(node.target), str(node.args), str(node.kwargs)) for node in graph.nodes]


def joined(function, *inputs):
    """Of every graph that AOTAutograd hands to a partition: what it was, what torch's pass makes of it, and what ours does."""
    found = []

    def parted(joint, inputs, **options):
        joint.graph.eliminate_dead_code()
        before, theirs = written(joint.graph), written(fx_graph_cse(joint.graph))
        join_equals(joint.graph)
        found.append((before, theirs, written(joint.graph)))
        return private.min_cut_rematerialization_partition(joint, inputs, **options)

    def keep(gm, inputs):
        call = lambda args: gm(*args)
        call._boxed_call = True
        return call

    torch._dynamo.reset()
    torch.compile(function, backend=private.aot_autograd(fw_compiler=keep, bw_compiler=keep, partition_fn=parted))(*inputs)
    return found


def llama(tokens):
    model = LlamaForCausalLM(LlamaConfig(vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2, max_position_embeddings=16))
    return lambda: model(tokens)


def repeats(x):
    return x.exp() + x.exp() * x.sin() + (x * 2).sum() + (x * 2.0).sum() + x.exp().clone()


def shares_results(x):
    return x.sin(), x.sin(), x.t(), x.t()


def draws(x):
    return torch.rand_like(x) + torch.rand_like(x) + nn.functional.dropout(x, 0.5) * nn.functional.dropout(x, 0.5)


@pytest.mark.parametrize("function", [repeats, shares_results, draws, nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6), nn.GELU())])
def test_the_result_is_that_of_torchs_pass(function):
    for _, theirs, ours in joined(function, torch.randn(6, 6, requires_grad=True)):
        assert ours == theirs


def test_a_decoders_joint_graph_is_joined_as_torchs_pass_does():
    ((before, theirs, ours),) = joined(llama(torch.arange(16)[None]))
    assert ours == theirs and len(ours) < len(before)


def made(build):
    graph = fx.Graph()
    x = graph.placeholder("x")
    x.meta["val"] = torch.zeros(4)
    graph.output((build(graph, x),))
    return graph


def test_pairs_on_both_sides_of_a_write_stay_two():
    def build(graph, x):
        one = graph.call_function(aten.sin.default, (x,))
        graph.call_function(aten.copy_.default, (x, one))
        return graph.call_function(aten.add.Tensor, (graph.call_function(aten.sin.default, (x,)), graph.call_function(aten.sin.default, (x,))))

    graph = made(build)
    join_equals(graph)
    assert [node.target for node in graph.nodes].count(aten.sin.default) == 2


@pytest.mark.parametrize("one, other, count", [(2.0, 2.0, 1), (2.0, 2, 2), (0.0, -0.0, 2)])
def test_constants_are_equal_by_type_and_sign(one, other, count):
    def build(graph, x):
        both = [graph.call_function(aten.mul.Tensor, (x, value)) for value in (one, other)]
        return graph.call_function(aten.add.Tensor, tuple(both))

    graph = made(build)
    join_equals(graph)
    assert [node.target for node in graph.nodes].count(aten.mul.Tensor) == count


@pytest.mark.parametrize("op", ["uniform_", "randn_like", "bernoulli"])
def test_every_op_that_draws_is_left_twice(op):
    """torch's pass knows some of them."""

    def function(x, y):
        first, second = ((x.new_zeros(4).uniform_() if op == "uniform_" else getattr(torch, op)(x)) for _ in range(2))
        return (first + second) * y

    ((before, _, ours),) = joined(function, torch.rand(4), torch.rand(4, requires_grad=True))
    assert sum(op.rstrip("_") in target for _, _, target, *_ in before) == sum(op.rstrip("_") in target for _, _, target, *_ in ours) == 2


STEP = """
import sys, torch
model = torch.nn.Linear(32, 32)
torch.compile(model, backend="ane", options={"device": "twin"})(torch.ones(4, 32)).sum().backward()
print(*(name for name in ("lowering", "scheduler", "ir", "pattern_matcher") if "torch._inductor." + name in sys.modules))
"""


def test_a_step_imports_none_of_inductors_kernels():
    """25 MB and half a second."""
    assert subprocess.run([sys.executable, "-W", "ignore", "-c", STEP], capture_output=True, text=True, check=True).stdout.strip() == ""
