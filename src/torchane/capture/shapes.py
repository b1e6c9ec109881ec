"""Programs for every size that comes.

    default          a second size of a dimension is a symbol to Dynamo, and a program serves a bucket of sizes (sizes/)
    dynamic=True     the same from the first size on
    dynamic=False    every shape is a graph of its own
torch's recompile limit is moved ahead of our frames, so that it never gives one up for eager. Where a graph cannot be proven right with
rows that only fill up, it is compiled for each tuple of sizes, programs used longest ago are let go (resident.py), and one warning says
what varies and why (varied.py).

A Python float that changes at each step (an annealed weight) is an input of one graph: AOTAutograd makes a tensor of it where nothing but
arithmetic is done with it, and has Dynamo trace it as a constant otherwise.
"""

import inspect
import time
import warnings
import weakref
from collections.abc import Callable, Mapping, Sequence
from types import CodeType
from typing import Any

import torch
from torch import fx

from torchane.capture.inputs import name_of
from torchane.capture.numbers import hoist_numbers
from torchane.capture.resident import Call, HasPlans, Resident
from torchane.capture.sizes.buckets import Buckets
from torchane.capture.sizes.served import Served
from torchane.capture.sizes.told import Sizes, dimensions
from torchane.capture.sizes.trace import sizes_in
from torchane.capture.torch_private import CompileContext, TracingContext, dynamo_config, pgo
from torchane.capture.varied import Varied
from torchane.capture.watch import compiling_frame
from torchane.errors import CaptureError, TorchaneWarning, UsageError

#: A whole number of Python that had so many values is taken for one that changes at each step.
FEW_NUMBERS = 4


def watch_sizes(are_exact: bool) -> Varied | None:
    """Called while Dynamo compiles a frame: torch never gives it up for eager. are_exact: its next shape is traced exactly, as the first was;
    else with symbols, where it differs.

    Gives the record of the sizes that the frame met for this model; None where Dynamo compiles nothing. Other models of the same class
    have records of their own: a sweep compiles one frame for each.
    """
    context = CompileContext.try_get()
    codes = TracingContext.get_traced_code()
    if context is None or context.compile_id is None or not codes:
        return None  # called by hand, not by Dynamo
    traced = {(code.co_filename, code.co_firstlineno, code.co_name) for code in codes}
    code = codes[0]
    model = _model_of(code)
    for frame, state in pgo.get_code_state().items():
        if (frame.filename, frame.firstlineno, frame.name) in traced:
            _forget_sizes(state.automatic_dynamic, _numbers_met.setdefault(model, {}) if model is not None else {}, are_exact)
    ever = context.compile_id.frame_compile_id + 1
    if ever >= dynamo_config.recompile_limit:
        dynamo_config.recompile_limit = ever + 1
    if ever >= dynamo_config.accumulated_recompile_limit:
        dynamo_config.accumulated_recompile_limit = ever + 1
    return _record_of(code, model, ever)


def _forget_sizes(seen: dict[str, Any], met: dict[str, set[int]], are_exact: bool) -> None:
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
        elif are_exact or not isinstance(entry.size, tuple):
            del seen[name]


#: Dynamo's names of the Python numbers that become inputs.
_moving: set[str] = set()

#: The whole numbers that Dynamo met in the frames of a model, by its names for them.
_numbers_met: weakref.WeakKeyDictionary[Any, dict[str, set[int]]] = weakref.WeakKeyDictionary()

#: The sizes that each model's frame met since Dynamo began with the frame.
_records: weakref.WeakKeyDictionary[CodeType, "weakref.WeakKeyDictionary[Any, Varied]"] = weakref.WeakKeyDictionary()


def _model_of(code: CodeType) -> torch.nn.Module | None:
    """The model whose frame Dynamo compiles."""
    compiling = compiling_frame()
    variables = {} if compiling is None else compiling.f_locals["frame"].f_locals
    first = variables.get(code.co_varnames[0]) if code.co_varnames else None
    model = first[0] if isinstance(first, tuple) and first else first  # a decorator takes (*args, **kwargs)
    return model if isinstance(model, torch.nn.Module) else None


def _record_of(code: CodeType, model: torch.nn.Module | None, ever: int) -> Varied:
    """ever: how often Dynamo compiled the frame, this time included."""
    records = _records.setdefault(code, weakref.WeakKeyDictionary())
    if ever == 1:
        records.clear()
    owner = code if model is None else model
    if owner not in records:
        name, shown = code.co_qualname, code
        if model is not None and "<locals>" in name:  # the decorator of a forward
            name, shown = f"{type(model).__name__}.forward", getattr(inspect.unwrap(type(model).forward), "__code__", code)
        records[owner] = Varied(f"{name} ({shown.co_filename}:{shown.co_firstlineno})")
    return records[owner]


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
    """A Dynamo graph with symbolic sizes or numbers, compiled once for every bucket of sizes that it is called with; for every tuple of
    sizes, where filling up cannot be proven right.

    compile_exact(graph, inputs, names, fixed, sizes) compiles the graph for real inputs, under a tracing context of its own; names: of inputs
    that were added after the graph's own; fixed: which of those no program computes with; sizes: what is said of them. record: what is said where it is compiled again and again.
    """

    def __init__(
        self, gm: fx.GraphModule, example_inputs: Sequence[Any], compile_exact: Callable[..., tuple[Call, HasPlans]], record: Varied,
        buckets: Buckets = Buckets(),
    ):
        self._given = gm
        self._compile = compile_exact
        self._record = record
        self._buckets = buckets
        self._is_whole = _is_whole()
        placeholders = gm.graph.find_nodes(op="placeholder")
        self._names = [name_of(node) for node in placeholders]
        self._dimensions = dimensions(gm, self._names)
        self._symbolic = [i for i, item in enumerate(example_inputs) if has_symbols([item])]
        # Read now: Dynamo erases where its inputs come from once the graph is compiled.
        self._floats = {i: node for i, node in enumerate(placeholders) if _is_wrapped_number(node)}
        self._name_of = dict(zip(placeholders, self._names, strict=True)).__getitem__
        # With dynamic=True every float is one that may change, a norm's epsilon too: a constant, until it does.
        self._steady: dict[int, float | None] = {} if dynamo_config.assume_static_by_default else dict.fromkeys(self._floats)
        self._arrange()

    def _arrange(self) -> None:
        """Hoists the numbers that change; graphs for others are none for these."""
        moving = {node for i, node in self._floats.items() if i not in self._steady}
        self._hoisted = hoist_numbers(self._given, moving.__contains__, self._name_of)
        self._gm = self._given if self._hoisted is None else self._hoisted.graph
        hoisted = frozenset[int]() if self._hoisted is None else self._hoisted.varying
        self._numbers = [i for i in self._floats if i not in hoisted]
        self._varying = [i for i in self._symbolic if i not in hoisted]
        self._graphs: dict[Any, Resident] = {}
        self._served: dict[Any, Served] = {}

    def _note_changes(self, args: Sequence[Any]) -> None:
        changed = [i for i, known in self._steady.items() if known is not None and args[i].item() != known]
        for i in changed:
            del self._steady[i]
        if changed:
            self._arrange()
        self._steady = {i: args[i].item() for i in self._steady}

    def __call__(self, *args: Any) -> Any:
        if self._steady:
            self._note_changes(args)
        returned: dict[int, Any] = {}
        names: tuple[str, ...] = ()
        if self._hoisted is not None:
            tensors, returned = self._hoisted.inputs(args)
            args, names = (*args, *tensors), self._hoisted.names
        numbers = {i: args[i].item() for i in self._numbers}
        results = self._run(args, names, numbers)
        return tuple(returned.get(i, result) for i, result in enumerate(results)) if returned else results

    def _run(self, args: tuple[Any, ...], names: tuple[str, ...], numbers: dict[int, float]) -> Any:
        key = tuple(numbers.values())
        if key not in self._served:
            self._served[key] = Served(with_numbers(self._gm, numbers), self._buckets)
        served = self._served[key]
        found = served.bucket(args)
        if found is None:
            sizes = (*(_size_of(args[i]) for i in self._varying), *key)
            note = self._exact(args, served.reason)
            self._refuse_other_sizes(note)
            exact = lambda: Resident(lambda args: self._compile(with_numbers(self._gm, numbers), args, names, sizes=note))
            return self._compiled(sizes, exact, args, args, f"Its sizes are exact: {served.reason}." if served.reason else "")(*args)
        bucket, true = found
        told = lambda: served.sizes(bucket, true, self._dimensions)
        padded = lambda: Resident(lambda args: self._compile(bucket.module, args, (*names, *bucket.names), bucket.fixed, told()))
        state = torch.get_rng_state()
        try:
            given = bucket.given(args, true)
            self._compiled((bucket, *key), padded, given, args, "", is_bucket=True)
        except (Warning, UsageError):
            raise
        except Exception as error:  # whatever it was, programs of exact sizes are as right
            served.reason = f"compiling it for {', '.join(map(str, bucket.sizes.values()))} failed ({(str(error).splitlines() or [type(error).__name__])[0]})"
            torch.set_rng_state(state)
            warnings.warn(f"A graph whose sizes vary is compiled for each of them: {served.reason}. Please report it.", TorchaneWarning, stacklevel=3)
            return self._run(args, names, numbers)
        return bucket.results(self._graphs[bucket, *key](*given), args, true)

    def _exact(self, args: Sequence[Any], reason: str) -> Sizes | None:
        known = sizes_in(self._given, args)
        served = tuple((name, known[symbol], known[symbol]) for symbol, name in self._dimensions.items() if symbol in known)
        return Sizes(served, reason=reason) if reason and served else None

    def _refuse_other_sizes(self, exact: Sizes | None) -> None:
        """Raises CaptureError where programs of several sizes were asked for, by named buckets, or by `dynamic=True` with `fullgraph=True`, and
        a size cannot be filled up."""
        named = self._buckets.sizes
        if exact is None or not (named or self._is_whole):
            return
        others = [f"{name} is {size}" for name, size, _ in exact.served if size not in named]
        if others and named:
            raise CaptureError(
                f"{', '.join(others)}, which is none of the buckets {named}, and cannot be filled up to one: {exact.reason}. "
                "Pad to one of them in the collate function, or leave the option buckets out: then each size has programs of its own."
            )
        if others:
            raise CaptureError(
                f"{', '.join(others)}, and no program can serve other sizes beside, which dynamic=True with fullgraph=True asks for: {exact.reason}. "
                "Leave one of the two out: then each size has programs of its own. Or pad to a few sizes in the collate function and name them, "
                f"options={{'buckets': {tuple(sorted({size for _, size, _ in exact.served}))}}}."
            )

    def _compiled(
        self, key: Any, make: Callable[[], Resident], given: Sequence[Any], args: Sequence[Any], reason: str, is_bucket: bool = False
    ) -> Resident:
        """The graph of a key; the first time, its compilation is noted."""
        if key not in self._graphs:
            start = time.perf_counter()
            self._graphs[key] = make().ensure(given)
            self._record.note(self._names, args)
            self._record.compiled(time.perf_counter() - start, reason, is_bucket)
        return self._graphs[key]


def _is_whole() -> bool:
    """The user asks for one graph of all sizes."""
    compiling = compiling_frame()
    return not dynamo_config.assume_static_by_default and compiling is not None and bool(compiling.f_locals.get("one_graph"))


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
