"""One program per exact shape, however many shapes come.

    default, dynamic=False   every new shape is a graph of its own: torch's record of sizes that changed is
                             cleared, so that it never traces with symbols, and its recompile limit is moved
                             ahead of our frames, so that it never gives up and runs eager
    dynamic=True             Dynamo's graph has symbols: it is specialised anew for each tuple of sizes

A Python float that changes at each step (an annealed weight) is an input of one graph: AOTAutograd makes a tensor of it where nothing but
arithmetic is done with it, and has Dynamo trace it as a constant otherwise.

Symbols would cost more than they save: programs have fixed shapes anyway, and Python code that asks
`seq_len > 1` breaks a symbolic graph apart. At MAX_SHAPES a named error says what to do.
"""

import weakref
from collections.abc import Callable, Mapping, Sequence
from types import CodeType
from typing import Any

import torch
from torch import fx

from torchane.capture.inputs import name_of
from torchane.capture.numbers import hoist_numbers
from torchane.capture.torch_private import (
    CompileContext,
    FakeTensorMode,
    TracingContext,
    cache_entries_of,
    dynamo_config,
    pgo,
    tracing,
)
from torchane.capture.watch import compiling_frame
from torchane.errors import CaptureError

#: Each shape holds programs and surfaces of its own; a model that meets more shapes needs padding or buckets.
MAX_SHAPES = 64

#: A whole number of Python that had so many values is taken for one that changes at each step.
FEW_NUMBERS = 4

Call = Callable[..., Any]


def keep_shapes_exact() -> None:
    """Called while Dynamo compiles a frame: its next shape is traced exactly, as the first was.

    Raises CaptureError where the frame was compiled MAX_SHAPES times already for this model. Models that are gone do not
    count, and neither do others of the same class: a sweep compiles one frame for each.
    """
    context = CompileContext.try_get()
    codes = TracingContext.get_traced_code()
    if context is None or context.compile_id is None or not codes:
        return  # called by hand, not by Dynamo
    traced = {(code.co_filename, code.co_firstlineno, code.co_name) for code in codes}
    code = codes[0]
    model = _model_of(code)
    for frame, state in pgo.get_code_state().items():
        if (frame.filename, frame.firstlineno, frame.name) in traced:
            _forget_sizes(state.automatic_dynamic, _numbers_met.setdefault(model, {}) if model is not None else {})
    ever = context.compile_id.frame_compile_id + 1
    if _count(code, model, ever == 1) > MAX_SHAPES:
        raise too_many_shapes(f"{code.co_name} ({code.co_filename}:{code.co_firstlineno})")
    if ever >= dynamo_config.recompile_limit:
        dynamo_config.recompile_limit = ever + 1
    if ever >= dynamo_config.accumulated_recompile_limit:
        dynamo_config.accumulated_recompile_limit = ever + 1


def _forget_sizes(seen: dict[str, Any], met: dict[str, set[int]]) -> None:
    """Numbers with a fraction stay, and so does a whole number that had FEW_NUMBERS values in one model: it becomes an input."""
    for name, entry in list(seen.items()):
        if isinstance(entry.scalar, float) or name in _moving:
            _moving.add(name)
            continue
        if isinstance(entry.scalar, int):
            met.setdefault(name, set()).add(entry.scalar)
        if len(met.get(name, ())) >= FEW_NUMBERS:
            _moving.add(name)
            entry.scalar = pgo.auto_dynamic
            dynamo_config.allow_unspec_int_on_nn_module = True  # else Dynamo takes every whole number of a module for a constant
        else:
            del seen[name]


#: Dynamo's names of the Python numbers that become inputs.
_moving: set[str] = set()

#: The whole numbers that Dynamo met in the frames of a model, by its names for them.
_numbers_met: weakref.WeakKeyDictionary[Any, dict[str, set[int]]] = weakref.WeakKeyDictionary()

#: How often each model's frame was compiled since Dynamo began with the frame.
_compiled: dict[CodeType, weakref.WeakKeyDictionary[Any, int]] = {}


def _model_of(code: CodeType) -> torch.nn.Module | None:
    """The model whose frame Dynamo compiles."""
    compiling = compiling_frame()
    variables = {} if compiling is None else compiling.f_locals["frame"].f_locals
    model = variables.get(code.co_varnames[0]) if code.co_argcount else None
    return model if isinstance(model, torch.nn.Module) else None


def _count(code: CodeType, model: torch.nn.Module | None, is_first: bool) -> int:
    """Compilations of a frame for the model that runs it, this one included; for a function, those that are still there."""
    if model is None:
        return len(cache_entries_of(code)) + 1
    counts = _compiled.setdefault(code, weakref.WeakKeyDictionary())
    if is_first:
        counts.clear()
    counts[model] = counts.get(model, 0) + 1
    return counts[model]


def too_many_shapes(what: str) -> CaptureError:
    return CaptureError(
        f"{what} was compiled for {MAX_SHAPES} different shapes or settings, and another one came. Every shape has "
        "its own programs and surfaces. Pad batches to a few lengths (buckets), drop the last partial batch "
        "(drop_last=True), or call torch._dynamo.reset() to forget the shapes so far."
    )


def has_symbols(example_inputs: Sequence[Any]) -> bool:
    """Whether Dynamo traced these inputs with symbolic sizes or numbers."""
    return any(
        isinstance(item, torch.SymInt | torch.SymFloat | torch.SymBool)
        or (isinstance(item, torch.Tensor) and any(not isinstance(number, int) for number in _numbers_of(item)))
        for item in example_inputs
    )


def has_numbers(gm: fx.GraphModule) -> bool:
    """Whether a Python float that may vary is among the inputs."""
    return any(map(_is_wrapped_number, gm.graph.find_nodes(op="placeholder")))


def _numbers_of(tensor: torch.Tensor) -> tuple[Any, ...]:
    """A size of 1 is a number to Dynamo even where the strides beside it are symbols."""
    return (*tensor.shape, *tensor.stride(), tensor.storage_offset())


class Specialising:
    """A Dynamo graph with symbolic sizes or numbers, compiled once for every tuple of sizes that it is called with.

    compile_exact(graph, inputs, names) compiles the graph for real inputs, under a tracing context of its own; names: of inputs that
    were added after the graph's own, for numbers that only arithmetic reads.
    """

    def __init__(self, gm: fx.GraphModule, example_inputs: Sequence[Any], compile_exact: Callable[..., Call]):
        self._hoisted = hoist_numbers(gm, _is_wrapped_number, name_of)
        self._gm = gm if self._hoisted is None else self._hoisted.graph
        self._compile = compile_exact
        hoisted = frozenset[int]() if self._hoisted is None else self._hoisted.varying
        wrapped = [_is_wrapped_number(node) for node in gm.graph.find_nodes(op="placeholder")]
        self._numbers = [i for i, is_number in enumerate(wrapped) if is_number and i not in hoisted]
        self._varying = [i for i, item in enumerate(example_inputs) if has_symbols([item]) and i not in hoisted]
        self._by_sizes: dict[tuple[Any, ...], Call] = {}

    def __call__(self, *args: Any) -> Any:
        returned: dict[int, Any] = {}
        names: tuple[str, ...] = ()
        if self._hoisted is not None:
            tensors, returned = self._hoisted.inputs(args)
            args, names = (*args, *tensors), self._hoisted.names
        numbers = {i: args[i].item() for i in self._numbers}
        sizes = (*(_size_of(args[i]) for i in self._varying), *numbers.values())
        if sizes not in self._by_sizes:
            if len(self._by_sizes) >= MAX_SHAPES:
                raise too_many_shapes("A graph with symbolic sizes (dynamic=True, or a Python number that changes)")
            with tracing(TracingContext(FakeTensorMode())):
                self._by_sizes[sizes] = self._compile(with_numbers(self._gm, numbers), args, names)
        results = self._by_sizes[sizes](*args)
        return tuple(returned.get(i, result) for i, result in enumerate(results)) if returned else results


def with_numbers(gm: fx.GraphModule, numbers: Mapping[int, float]) -> fx.GraphModule:
    """The graph with `.item()` of the inputs at these positions replaced by numbers."""
    if not numbers:
        return gm
    graph = fx.Graph()
    made: dict[fx.Node, Any] = {}
    positions = {node: i for i, node in enumerate(gm.graph.find_nodes(op="placeholder"))}
    for node in gm.graph.nodes:
        source = node.all_input_nodes[0] if node.target == "item" else None
        if source is not None and positions.get(source) in numbers:
            made[node] = numbers[positions[source]]
        elif node.op == "output":
            graph.output(fx.node.map_arg(node.args[0], made.__getitem__))
        else:
            made[node] = graph.create_node(
                node.op, node.target, fx.node.map_arg(node.args, made.__getitem__),
                fx.node.map_arg(node.kwargs, made.__getitem__), node.name, node.type,
            )  # fmt: skip
            made[node].meta = dict(node.meta)
    return fx.GraphModule(gm, graph)


def _is_wrapped_number(node: fx.Node) -> bool:
    """Dynamo hands a Python float that may vary over as a tensor, and takes its `.item()`."""
    argument = node.meta.get("grapharg")
    return argument is not None and argument.pass_arg_as_tensor and not argument.is_tensor


def _size_of(value: Any) -> Any:
    return (tuple(value.shape), value.stride()) if isinstance(value, torch.Tensor) else value
