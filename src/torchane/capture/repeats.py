"""Equal layers are traced, differentiated and partitioned once.

    Dynamo graph       layer 0 ─► layer 1 ─► layer 2 ─► head
    share_layers       call(A) ─► call(A) ─► call(B) ─► ...        A: one subgraph for layers of equal structure
    AOTAutograd        differentiates A once, however often it is called
    partition          splits the graph with calls in it, then `inline` puts every layer's ops back

A layer is a run of nodes that torch's module stack gives to one numbered block. That only hints: layers
share a subgraph when their ops, constants, and inputs' shapes, strides, dtypes and need of gradients are
equal. What comes out has the same nodes as if every layer had been traced by itself, each with its own
layer's name. torch calls such a call `invoke_subgraph`; its rules are that nothing in it writes to inputs
and that no result aliases an input.
"""

import copy
import inspect
import operator
import warnings
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from functools import lru_cache
from types import MappingProxyType
from typing import Any

import torch
from torch import fx

from torchane.capture import few_bits
from torchane.capture.equals import join_equals
from torchane.capture.graph import VIEWS, draws, layer_name
from torchane.capture.policies.linearity import keep_in_backward
from torchane.capture.tiles import mark_recomputed
from torchane.capture.torch_private import (
    FakeTensor,
    HigherOrderOperator,
    OpOverload,
    OpOverloadPacket,
    TorchDispatchMode,
    functorch_config,
    has_effects,
    invoke_subgraph,
    min_cut_rematerialization_partition,
)
from torchane.errors import TorchaneWarning

Stack = Mapping[str, tuple[str, Any]]

#: How functions are called that change state which later nodes depend on: what they govern is not cut out.
_MODES = ("_enter_", "_exit_", "_set_", "_saved_tensors_hooks_")
#: The transforms of torch.func: their levels are state too, and tensors of a level have no storage to compare.
_TRANSFORMS = ("torch._functorch", "torch._C._functorch")
#: Write to a tensor that they are given, whatever their name says.
_WRITERS = ("setitem", "batch_norm", "instance_norm")


def share_layers(gm: fx.GraphModule) -> fx.GraphModule:
    """The graph with layers of equal structure replaced by calls of one subgraph each, in place.

    Left as it is where autocast, a grad mode or a transform of torch.func begins on the way, and for layers that are
    met in pieces, write to a tensor, hand on what aliases their inputs, or hold ops with effects.
    """
    if torch.is_autocast_enabled("cpu") or any(map(_governs, gm.graph.nodes)):
        return gm
    alike: dict[Any, list[_Layer]] = {}
    for layer in _layers(gm.graph):
        key = layer.key()
        if key is not None:
            alike.setdefault(key, []).append(layer)
    groups = [group for group in alike.values() if len(group) > 1 and len({one.inputs for one in group}) == len(group)]
    groups = [group for group in groups if not _has_effects(gm, group[0])]
    moved: dict[fx.Node, fx.Node] = {}
    for number, group in enumerate(groups):
        _replace(gm, f"layer_{number}", group, moved)
    if groups:
        gm.recompile()
    return gm


class _Layer:
    """The nodes of one layer, what they read from outside, and what others read of them."""

    def __init__(self, nodes: Sequence[fx.Node]):
        inside = set(nodes)
        self.nodes = nodes
        self.inputs = tuple(dict.fromkeys(arg for node in nodes for arg in node.all_input_nodes if arg not in inside))
        self.outputs = tuple(node for node in nodes if any(user not in inside for user in node.users))

    def key(self) -> Any:
        """What must be equal for two layers to share a subgraph; None where one cannot be shared."""
        ports = [node.meta.get("example_value") for node in (*self.inputs, *self.outputs)]
        if any(not isinstance(port, torch.Tensor) for port in ports) or any(map(_writes, self.nodes)):
            return None
        if any(isinstance(number, torch.SymInt) for port in ports for number in (*port.shape, *port.stride())):
            return None  # a size that the graph computes
        storages = [port.untyped_storage()._cdata for port in ports]
        if len(set(storages[len(self.inputs) :]) - {*storages[: len(self.inputs)]}) < len(self.outputs):
            return None  # a result aliases an input or another result
        number = {node: i for i, node in enumerate((*self.inputs, *self.nodes))}

        def written(arg: Any) -> Any:
            if isinstance(arg, fx.Node):
                return ("node", number[arg])
            if isinstance(arg, list | tuple):
                return (type(arg).__name__, tuple(map(written, arg)))
            if isinstance(arg, dict):
                return tuple((name, written(item)) for name, item in arg.items())
            if isinstance(arg, slice):
                return ("slice", written(arg.start), written(arg.stop), written(arg.step))
            return (type(arg).__name__, repr(arg))

        nodes = tuple((node.op, node.target, written(node.args), written(node.kwargs)) for node in self.nodes)
        return nodes, tuple(map(_port, ports)), tuple(number[node] for node in self.outputs)


def _governs(node: fx.Node) -> bool:
    """A call that changes how later nodes are computed, not a value."""
    module = getattr(node.target, "__module__", None) or ""
    return node.op == "call_function" and (_name(node).startswith(_MODES) or module.startswith(_TRANSFORMS))


class _Effects(TorchDispatchMode):
    """Notes whether an op has an effect, as the check of errors in torch.linalg.inv has: AOTAutograd threads tokens through
    the graph to keep their order, and differentiates no subgraph that takes one."""

    def __init__(self) -> None:
        super().__init__()
        self.found = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.found = self.found or has_effects(func)
        return func(*args, **(kwargs or {}))


def _has_effects(gm: fx.GraphModule, layer: "_Layer") -> bool:
    """Runs the layer on values without numbers."""
    effects = _Effects()
    modes = [port.fake_mode for node in layer.inputs if isinstance(port := node.meta["example_value"], FakeTensor)]
    values = {node: node.meta["example_value"] for node in layer.inputs}
    with modes[0] if modes else nullcontext(), effects, torch.no_grad():
        for node in layer.nodes:
            args, kwargs = fx.node.map_arg((node.args, node.kwargs), values.__getitem__)
            interpreter = fx.Interpreter(gm, graph=gm.graph)
            values[node] = getattr(interpreter, node.op)(node.target, args, kwargs)
    return effects.found


def _port(value: torch.Tensor) -> Any:
    return type(value).__name__, value.dtype, tuple(value.shape), value.stride(), value.requires_grad, value.device


def _layers(graph: fx.Graph) -> Iterator[_Layer]:
    """Runs of nodes of one layer each; a layer that is met again later is none."""
    runs: list[tuple[str | None, list[fx.Node]]] = []
    for node in graph.nodes:
        if node.op in ("placeholder", "get_attr", "output"):
            continue
        label = layer_name(node)
        if not runs or runs[-1][0] != label:
            runs.append((label, []))
        runs[-1][1].append(node)
    labels = [label for label, _ in runs]
    for label, nodes in runs:
        if label and labels.count(label) == 1:
            yield _Layer(nodes)


def _writes(node: fx.Node) -> bool:
    """Whether a node may write to what it is given, or is a call of a subgraph already."""
    name = _name(node)
    in_place = name.endswith("_") and not name.endswith("__")
    flagged = "out" in node.kwargs or _asks_for_in_place(node) or _is_mutable(node.target)
    augmented = getattr(operator, name, None) is node.target and name.startswith("i") and hasattr(operator, name[1:])
    return isinstance(node.target, HigherOrderOperator) or in_place or flagged or augmented or name in _WRITERS


def _asks_for_in_place(node: fx.Node) -> bool:
    """F.hardtanh(x, 0, 6, True) and its like."""
    place = _place_of_inplace(node.target) if callable(node.target) else None
    given = place is not None and len(node.args) > place and bool(node.args[place])
    return given or node.kwargs.get("inplace") is True


@lru_cache
def _place_of_inplace(function: Callable[..., Any]) -> int | None:
    try:
        names = list(inspect.signature(function).parameters)
    except (TypeError, ValueError):  # written in C: in-place ones are other functions there
        return None
    return names.index("inplace") if "inplace" in names else None


def _is_mutable(target: Any) -> bool:
    """A custom op that says it writes to an argument."""
    overloads = [target] if isinstance(target, OpOverload) else []
    if isinstance(target, OpOverloadPacket):
        overloads = [getattr(target, name) for name in target.overloads()]
    return any(overload._schema.is_mutable for overload in overloads)


def _name(node: fx.Node) -> str:
    return node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))


def _replace(gm: fx.GraphModule, name: str, group: Sequence[_Layer], moved: dict[fx.Node, fx.Node]) -> None:
    """`moved` says where results of layers that were replaced before are read now."""
    first = group[0]
    body = fx.Graph()
    made: dict[fx.Node, fx.Node] = {}
    for i, node in enumerate(first.inputs):
        given = body.placeholder(f"x{i}")
        given.meta = dict(node.meta)
        made[moved.get(node, node)] = given
    for node in first.nodes:
        made[node] = body.node_copy(node, made.__getitem__)
    body.output(tuple(made[node] for node in first.outputs))
    gm.register_module(name, fx.GraphModule(gm, body))
    graph = gm.graph
    with graph.inserting_before(next(node for node in graph.nodes if node.op != "placeholder")):
        attribute = graph.get_attr(name)
    for layer in group:
        with graph.inserting_after(layer.nodes[-1]):
            call = graph.call_function(invoke_subgraph, (attribute, name, *(moved.get(node, node) for node in layer.inputs)))
        call.meta = {
            "nn_module_stack": _of_layer(layer.nodes[0].meta["nn_module_stack"]),
            "stack_trace": layer.nodes[0].meta.get("stack_trace"),
            "example_value": tuple(node.meta["example_value"] for node in layer.outputs),
        }
        after = call
        for i, node in enumerate(layer.outputs):
            with graph.inserting_after(after):
                after = graph.call_function(operator.getitem, (call, i))
            after.meta = {**call.meta, "example_value": node.meta["example_value"]}
            moved[node] = after
            node.replace_all_uses_with(after, delete_user_cb=lambda user, own=set(layer.nodes): user not in own)
        for node in reversed(layer.nodes):
            graph.erase_node(node)


def _of_layer(stack: Stack) -> Stack:
    """The module stack down to the numbered block that names the layer."""
    kept = {}
    for key, entry in stack.items():
        kept[key] = entry
        if entry[0].rstrip("']\")").rsplit("'", 1)[-1].rsplit(".", 1)[-1].isdigit():
            break
    return kept


@contextmanager
def written_layers_known(gm: fx.GraphModule) -> Iterator[None]:
    """While AOTAutograd traces: torch would trace a layer's subgraph anew at each call, to see whether it
    writes to its inputs. Nothing that `share_layers` takes does; what a user marked as a nested_compile_region may, and torch
    then looks, and refuses."""
    before = invoke_subgraph._supports_training_input_mutation
    bodies = {node.args[0].target for node in gm.graph.nodes if node.target is invoke_subgraph}
    nodes = (node for body in bodies for node in getattr(gm, body).graph.nodes if node.op.startswith("call_"))
    if not any(map(_writes, nodes)):
        invoke_subgraph._supports_training_input_mutation = True
    try:
        yield
    finally:
        invoke_subgraph._supports_training_input_mutation = before


# ---- after tracing


#: What is computed again within `lightly`: what costs less than a hundredth of a step, and no product.
LIGHT = "light"
#: Of what a layer would keep for its backward, the share that it may: torch's partition computes the rest again.
_KEPT_SHARE = {"none": 1.0, LIGHT: 0.85, "half": 0.5, "all": 0.0}

_is_light: ContextVar[bool] = ContextVar("is_light", default=False)


@contextmanager
def lightly() -> Iterator[None]:
    """Within it a graph whose options want nothing computed again keeps a little less where that can be had; nothing is said where it cannot."""
    before = _is_light.set(True)
    try:
        yield
    finally:
        _is_light.reset(before)


def partition(joint: fx.GraphModule, inputs: Any, *, recompute: str = "none", **options: Any) -> tuple[fx.GraphModule, fx.GraphModule]:
    """torch's min-cut partition, with calls of layers inlined in both halves.

    torch partitions the layers' own graphs first, through this function too. recompute: of those alone. What lies between layers is kept:
    computed again it would all be there at once, at the beginning of the backward.
    """
    _hand_through(joint)
    keep_in_backward(joint.graph)
    mark_recomputed(joint.graph)
    few_bits.mark_recomputed(joint.graph)
    stacks = _stacks(joint)
    kept = 1.0 if _calls(joint) else _KEPT_SHARE[recompute]
    if kept < 1 and any(map(draws, joint.graph.nodes)):
        if recompute != LIGHT:
            warnings.warn(
                f"options={{'recompute': {recompute!r}}} is not for layers that draw random numbers, which would be drawn again: "
                "everything that their backward reads is kept. Set dropout to 0 to change that.",
                TorchaneWarning,
                stacklevel=2,
            )
        kept = 1.0
    joint.graph.eliminate_dead_code()
    join_equals(joint.graph)
    with functorch_config.patch(activation_memory_budget=kept, cse=False):
        forward, backward = min_cut_rematerialization_partition(joint, inputs, **options)
    return inline(forward, stacks), inline(backward, stacks)


def copied(module: fx.GraphModule) -> fx.GraphModule:
    """The same graph under the same names, to be changed by itself; constants are shared."""
    graph = copy.deepcopy(module.graph)
    assert [node.name for node in graph.nodes] == [node.name for node in module.graph.nodes]
    return fx.GraphModule(module, graph)


def _stacks(joint: fx.GraphModule) -> dict[int, Stack]:
    """The module stack of every call, which its backward is known by."""
    calls = [node for node in joint.graph.nodes if node.target is invoke_subgraph and "nn_module_stack" in node.meta]
    return {_call_id(node): node.meta["nn_module_stack"] for node in calls if _call_id(node) is not None}


def _call_id(call: fx.Node) -> int | None:
    """torch's number of a call, which its backward carries too; None where nothing is differentiated."""
    return call.meta.get("custom", {}).get("call_id")


def _hand_through(joint: fx.GraphModule) -> None:
    """What a layer's subgraph returns as it came in, or a view of that, is read where it was made: a weight
    keeps its name, and what the backward needs of it is the weight itself."""
    for call in joint.graph.nodes:
        if call.target is not invoke_subgraph:
            continue
        body = getattr(joint, call.args[0].target).graph
        given = dict(zip(body.find_nodes(op="placeholder"), call.args[2:], strict=True))
        results = body.output_node().args[0]
        for reader in list(call.users):
            assert reader.target is operator.getitem, "calls of layers give tuples"
            views = _views_above(results[reader.args[1]])
            if views is not None:
                with joint.graph.inserting_before(reader):
                    made = dict(given)
                    for node in views:
                        made[node] = joint.graph.node_copy(node, made.__getitem__)
                        made[node].meta["partitioner_tag"] = call.meta.get("partitioner_tag")
                reader.replace_all_uses_with(made[results[reader.args[1]]])
    joint.graph.eliminate_dead_code()


def _views_above(node: fx.Node | None) -> list[fx.Node] | None:
    """The views between an input and this node, first to last; None where it is computed."""
    views: list[fx.Node] = []
    while node is not None and node.target in VIEWS and len(node.all_input_nodes) == 1:
        views.insert(0, node)
        node = node.all_input_nodes[0]
    return views if node is not None and node.op == "placeholder" else None


def inline(gm: fx.GraphModule, stacks: Mapping[int, Stack] = MappingProxyType({})) -> fx.GraphModule:
    """The graph with every call of a layer replaced by the layer's nodes. What leaves a call keeps its name.

    stacks: the module stack of calls that have none of their own, by number.
    """
    calls = _calls(gm)
    if not calls:
        return gm
    while calls:  # a call's own nodes may be calls
        for call in calls:
            _inline(gm, call, stacks.get(_call_id(call)) or call.meta.get("nn_module_stack"))
        calls = _calls(gm)
    gm.graph.eliminate_dead_code()
    gm.recompile()
    return gm


def recomputed(wanted: str, gm: fx.GraphModule, data: Collection[int]) -> str:
    """What is computed again, layer by layer; nothing, said once, where that cannot be had. wanted: the option. data: as in `why_kept`."""
    if wanted == "none":
        return LIGHT if _is_light.get() and why_kept(gm, data) is None else wanted
    why = why_kept(gm, data)
    if why is None:
        return wanted
    warnings.warn(f"options={{'recompute': {wanted!r}}} {why}. Everything that the backward reads is kept.", TorchaneWarning, stacklevel=2)
    return "none"


def why_kept(gm: fx.GraphModule, data: Collection[int]) -> str | None:
    """Why nothing may be computed again; None where layers may. data: positions of inputs that are floats and want no gradient."""
    calls = _calls(gm)
    if not calls:
        return "is for layers of equal structure, and this graph has none that are traced as one"
    inputs = {node: i for i, node in enumerate(gm.graph.find_nodes(op="placeholder"))}
    read = Counter(arg for call in calls for arg in dict.fromkeys(call.args[2:]))
    for node in (node for node, count in read.items() if count > 1):
        value = node.meta.get("example_value")
        if not isinstance(value, torch.Tensor) or not value.is_floating_point() or value.requires_grad:
            continue
        pending = [node]
        while pending:
            source = pending.pop()
            if inputs.get(source) in data:
                return f"cannot be had here: layers read {source.name}, a float that wants no gradient, and an additive mask is known as one in a forward only"
            pending += source.all_input_nodes
    return None


def _calls(gm: fx.GraphModule) -> list[fx.Node]:
    return [node for node in gm.graph.nodes if node.target is invoke_subgraph]


def _inline(gm: fx.GraphModule, call: fx.Node, stack: Stack | None) -> None:
    attribute, operands = call.args[0], iter(call.args[2:])
    body = getattr(gm, attribute.target)
    made: dict[fx.Node, Any] = {}
    with gm.graph.inserting_before(call):
        for node in body.graph.nodes:
            if node.op == "placeholder":
                made[node] = next(operands)
            elif node.op == "output":
                results = fx.node.map_arg(node.args[0], made.__getitem__)
            else:
                made[node] = gm.graph.node_copy(node, made.__getitem__)
                if node.op == "get_attr":
                    made[node].target = f"{attribute.target}_{node.target}"
                    setattr(gm, made[node].target, getattr(body, node.target))
                made[node].meta = _renamed(node.meta, call.meta, stack)
    own, named = set(made.values()), set[fx.Node]()
    for reader in list(call.users):
        result, name = results[reader.args[1]], reader.name
        if result is None:
            for user in list(reader.users):
                user.args = fx.node.map_arg(user.args, lambda arg, gone=reader: None if arg is gone else arg)
        else:
            if result in named and any(user.op == "output" for user in reader.users):
                result = _another_name(gm.graph, result)  # returned twice: a layer's result that is saved too
                own.add(result)
            reader.replace_all_uses_with(result)
        gm.graph.erase_node(reader)
        if result in own:
            result.name = name  # the forward's outputs and the backward's inputs are known by it
            own.discard(result)
            named.add(result)
    gm.graph.erase_node(call)
    if not attribute.users:
        gm.graph.erase_node(attribute)


def _another_name(graph: fx.Graph, node: fx.Node) -> fx.Node:
    with graph.inserting_after(node):
        alias = graph.call_function(torch.ops.aten.alias.default, (node,))
    alias.meta = dict(node.meta)
    return alias


def _renamed(meta: Mapping[str, Any], call: Mapping[str, Any], stack: Stack | None) -> dict[str, Any]:
    """A node's record, as of the layer that called it."""
    renamed = dict(meta)
    if "partitioner_tag" in call:
        renamed["partitioner_tag"] = call["partitioner_tag"]
    if stack is None:
        return renamed
    layer = list(stack.values())[-1][0]
    for key in ("nn_module_stack", "fwd_nn_module_stack"):
        if meta.get(key):
            template = list(_of_layer(meta[key]).values())[-1][0]
            renamed[key] = {
                name: (layer + path[len(template) :] if path.startswith(template) else path, *rest)
                for name, (path, *rest) in meta[key].items()
            }
    if not (meta.get("nn_module_stack") or meta.get("fwd_nn_module_stack")):
        renamed["fwd_nn_module_stack"] = stack
    return renamed


