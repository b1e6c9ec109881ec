"""What each input and output of a graph is.

    Dynamo's graph   input 3: a parameter, a buffer, a batch, ...            by its index
    AOTAutograd's    primals_5 = ViewBase(PlainAOTInput(3))                  by its descriptor
AOTAutograd puts tokens before the inputs, joins inputs that share memory, and takes sharded ones apart: its descriptors
(`node.meta["desc"]`, and a list for the outputs) say where each came from, its numbering does not.
"""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import fx

from torchane.abi.ports import PortLayout
from torchane.capture.inputs import name_of
from torchane.capture.policies.facts import Forward
from torchane.capture.torch_private import GradAOTOutput, InputMutationAOTOutput, PlainAOTInput, PlainAOTOutput
from torchane.plan.step_graph import Role


@dataclass(frozen=True)
class Given:
    """Indices of Dynamo's inputs. weights: parameters. static: buffers, and what holds no floats. data: floats that want no
    gradient and may be a mask. raw: floats that no earlier graph computed. names: as the user would write them. lasting: floats that live on after the call and that this graph does not train, as buffers, attributes and gradients do;
    beside gradients, parameters too. frozen: parameters that want no gradient, and no mask's."""

    weights: frozenset[int] = frozenset()
    static: frozenset[int] = frozenset()
    data: frozenset[int] = frozenset()
    lasting: frozenset[int] = frozenset()
    raw: frozenset[int] = frozenset()
    names: Mapping[int, str] = field(default_factory=dict)
    frozen: frozenset[int] = frozenset()

    def with_inputs(self, names: Sequence[str], fixed: Collection[int] = ()) -> "Given":
        """With an input more for each of these, after all others: numbers, but for those at the `fixed` places among them."""
        added = dict(enumerate(names, len(self.names)))
        static = {len(self.names) + place for place in fixed}
        numbers = added.keys() - static
        names_of_all = {**self.names, **added}
        return replace(self, static=self.static | static, data=self.data | numbers, raw=self.raw | numbers, names=names_of_all)


@dataclass(frozen=True)
class Saved:
    """All that a forward leaves for its backward besides the tensors that autograd saves: one record, and the names in it are those of
    the backward's inputs.

    surfaces: values that stay in surfaces, and how they lie. unscaled: of these, the ones that range control stored as they are. weights:
    names of parameters and of blocks of them. weight_layouts: of those that the forward staged. static: buffers, integers, masks and
    what derives from them. wide: shapes of parameters whose products were cut. sent_to_host: what policies gave to the host. levelled: names of the masks
    whose rows were levelled. frozen: weights that programs hold as constants, and whose numbers they have; lent: those that are staged for each
    use (capture/frozen.py).
    """

    surfaces: Mapping[str, PortLayout] = field(default_factory=dict)
    unscaled: frozenset[str] = frozenset()
    weights: frozenset[str] = frozenset()
    weight_layouts: Mapping[str, PortLayout] = field(default_factory=dict)
    static: frozenset[str] = frozenset()
    wide: frozenset[tuple[int, int]] = frozenset()
    sent_to_host: Forward = field(default_factory=Forward)
    levelled: frozenset[str] = frozenset()
    frozen: Mapping[str, str] = field(default_factory=dict)
    lent: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Roles:
    """What the caller knows of a graph's inputs and outputs.

    weights: placeholders that hold parameters. static: buffers, integers, masks. data: floats that want
    no gradient (a batch, an additive mask). lasting: floats that live on after the call and are not trained. written: output
    positions that are an input's new value, and the input. returned: output positions of the user's own results.
    is_inference: nothing is differentiated through this graph. tangents: incoming
    gradients. weight_gradients: output positions that leave as a parameter's gradient. kept: output
    positions saved for the backward pass. saved: of a backward, what its forward left, whose weights and static values are this
    graph's too. raw, precision: as in `policies.Facts`. frozen: parameters that want no gradient.
    """

    weights: frozenset[str] = frozenset()
    static: frozenset[str] = frozenset()
    data: frozenset[str] = frozenset()
    lasting: frozenset[str] = frozenset()
    written: Mapping[int, str] = field(default_factory=dict)
    returned: frozenset[int] = frozenset()
    is_inference: bool = False
    tangents: frozenset[str] = frozenset()
    weight_gradients: Collection[int] = ()
    kept: Collection[int] = ()
    saved: Saved | None = None
    raw: frozenset[str] = frozenset()
    precision: str = "auto"
    frozen: frozenset[str] = frozenset()

    @property
    def before(self) -> Saved:
        """What an earlier graph left: nothing, where this is a forward."""
        return self.saved or Saved()

    def new_values(self, results: Sequence[Any], inputs: Mapping[str, fx.Node]) -> dict[fx.Node, fx.Node | None]:
        """Results that are an input's new value, and the input; None where the graph does not read it."""
        return {results[i]: inputs.get(name) for i, name in self.written.items() if isinstance(results[i], fx.Node)}

    def of(self, name: str) -> Role:
        """Of an input."""
        if name in self.weights:
            return Role.TRAINED
        if name in self.tangents:
            return Role.TANGENT
        if name in self.before.surfaces:
            return Role.SAVED
        if name in self.static:
            return Role.MASK
        return Role.BATCH if name in self.raw else Role.FROZEN if name in self.lasting else Role.ACTIVATION


def given(gm: fx.GraphModule) -> Given:
    """Asked before Dynamo has compiled the graph: it then erases where its inputs come from."""
    weights, static, data, lasting, raw, frozen = (set[int]() for _ in range(6))
    for index, node in enumerate(gm.graph.find_nodes(op="placeholder")):
        example = node.meta.get("example_value")
        if not isinstance(example, torch.Tensor) or not _is_numeric(example):
            static.add(index)
            continue
        if isinstance(example, torch.nn.Parameter):
            weights.add(index)
            may_fill = _may_fill(node, example)
            data |= {index} if may_fill else set()
            frozen |= set() if may_fill or example.requires_grad else {index}
        elif _is_buffer(node, example):
            static.add(index)
        else:
            data |= set() if example.requires_grad else {index}
            raw |= {index} if example.is_leaf else set()  # an activation of an earlier graph is none
        if not example.requires_grad and not _is_argument(source_of(node)):
            lasting.add(index)
    if any(source_of(node).endswith(".grad") for node in gm.graph.find_nodes(op="placeholder")):
        lasting |= weights  # an optimizer's step
        frozen = set()
    names = {index: name_of(node) for index, node in enumerate(gm.graph.find_nodes(op="placeholder"))}
    return Given(*map(frozenset, (weights, static, data, lasting, raw)), names, frozenset(frozen))


def named(graph: fx.Graph, indices: Collection[int]) -> frozenset[str]:
    """AOTAutograd's names of Dynamo's inputs."""
    return frozenset(node.name for node in graph.find_nodes(op="placeholder") if _index(node.meta.get("desc")) in indices)


def users_names(graph: fx.Graph, inputs: Given) -> dict[str, str]:
    """The user's names of placeholders, by AOTAutograd's."""
    indices = {node.name: _index(node.meta.get("desc")) for node in graph.find_nodes(op="placeholder")}
    return {name: inputs.names[index] for name, index in indices.items() if index in inputs.names}


def written(graph: fx.Graph) -> dict[int, str]:
    """Output positions that leave as an input's new value, and the name of the input."""
    inputs = {node.meta.get("desc"): node.name for node in graph.find_nodes(op="placeholder")}
    found = {}
    for position, descriptor in enumerate(_outputs(graph)):
        while not isinstance(descriptor, InputMutationAOTOutput) and hasattr(descriptor, "base"):
            descriptor = descriptor.base  # the inner tensor of a sharded one
        if isinstance(descriptor, InputMutationAOTOutput):
            found[position] = inputs.get(descriptor.mutated_input, "")
    return found


def returned(graph: fx.Graph) -> frozenset[int]:
    """Output positions that the user's function returns, or that Dynamo stores in an attribute."""
    return frozenset(i for i, descriptor in enumerate(_outputs(graph)) if isinstance(descriptor, PlainAOTOutput))


def gradients_of(graph: fx.Graph, indices: Collection[int]) -> list[int]:
    """Output positions of a backward that leave as gradients of these inputs."""
    descriptors = enumerate(_outputs(graph))
    return [i for i, found in descriptors if isinstance(found, GradAOTOutput) and _index(found.grad_of) in indices]


def weights_by_gradient(graph: fx.Graph, names: Mapping[int, str]) -> dict[int, str]:
    """Output positions of a backward that leave as gradients of these inputs of Dynamo's, and their names."""
    descriptors = enumerate(_outputs(graph))
    indices = {i: _index(found.grad_of) for i, found in descriptors if isinstance(found, GradAOTOutput)}
    return {i: names[index] for i, index in indices.items() if index in names}


def names_by_index(graph: fx.Graph, indices: Collection[int]) -> dict[int, str]:
    """AOTAutograd's names of these inputs of Dynamo's."""
    found = {_index(node.meta.get("desc")): node.name for node in graph.find_nodes(op="placeholder")}
    return {index: name for index, name in found.items() if index in indices and index is not None}


def _outputs(graph: fx.Graph) -> Collection[Any]:
    return graph.output_node().meta.get("desc") or ()


def _index(descriptor: Any) -> int | None:
    """Dynamo's index of the input that this one is, or comes from."""
    while descriptor is not None and not hasattr(descriptor, "idx"):
        descriptor = getattr(descriptor, "base", None) or getattr(descriptor, "base_of", None)
    return descriptor.idx if isinstance(descriptor, PlainAOTInput) else None


def source_of(node: fx.Node) -> str:
    """Dynamo's source of an input, e.g. `L['self']._buffers['total']`; empty where it is not known."""
    argument = node.meta.get("grapharg")
    if argument is None:
        return ""
    source = argument.source.name
    return str(source() if callable(source) else source)


def _is_argument(source: str) -> bool:
    """A variable, or an item of one, and no attribute."""
    return re.fullmatch(r"[LG]\['\w+'\](\[[^]]*\])*", source) is not None or not source


def _is_numeric(example: torch.Tensor) -> bool:
    """Holds numbers that training is about, not indices or masks."""
    return example.is_floating_point() or example.is_complex()


def _may_fill(node: fx.Node, example: torch.nn.Parameter) -> bool:
    """A frozen parameter that is a number, or one that a selection reads, may hold what stands for a masked score."""
    read_by = {str(getattr(user.target, "__name__", user.target)) for user in node.users}
    return not example.requires_grad and (example.numel() == 1 or not read_by.isdisjoint(("where", "masked_fill", "masked_fill_")))


def _is_buffer(node: fx.Node, example: torch.Tensor) -> bool:
    return "_buffers" in source_of(node) and not example.requires_grad
