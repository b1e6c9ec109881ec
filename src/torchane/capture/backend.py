"""`torch.compile(model, backend="ane")`: the entry point for PyTorch.

    Dynamo graph ── AOTAutograd ──► forward, backward (ATen) ── planning ──► Plans ── Executors
PyTorch finds this function by the entry-point group `torch_dynamo_backends`; nobody needs to import
torchane. The forward stages weights, keeps what the backward needs in surfaces, and the backward runs
under the loss scale. Options: `torch.compile(model, backend="ane", options={"device": "twin"})`.
"""

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import fx
from torch.nn.attention import SDPBackend, sdpa_kernel

from torchane import chips
from torchane.capture.compile_options import Options, check_mode
from torchane.capture.compiled import COMPILED, Compiled, device_of, keep_warm, new_compiled, others
from torchane.capture.float32 import BackwardOrFloat32, OrFloat32, is_repeatable
from torchane.capture.frozen import convolution_pays
from torchane.capture.gradients import only_gradients
from torchane.capture.host import TorchHost, largest_of
from torchane.capture.inputs import check_inputs
from torchane.capture.lowered import LoweredPrograms, default_root
from torchane.capture.marks import mark_float32
from torchane.capture.planned import Planned
from torchane.capture.planning import plan_graph
from torchane.capture.progress import Progress, tracing
from torchane.capture.region import RegionCompiler
from torchane.capture.repeats import copied, inline, partition, recomputed, share_layers, written_layers_known
from torchane.capture.report import host_bytes_of, rows_of
from torchane.capture.resident import Resident
from torchane.capture.roles import (
    Roles,
    given,
    gradients_of,
    named,
    names_by_index,
    returned,
    users_names,
    weights_by_gradient,
    written,
)
from torchane.capture.rules import decompositions
from torchane.capture.rules.decompose import wrong_formulas_left_out
from torchane.capture.shapes import Specialising, has_numbers, has_symbols, watch_sizes
from torchane.capture.sizes.buckets import Buckets
from torchane.capture.sizes.told import Sizes
from torchane.capture.tangents import ByMagnitude, is_proportional
from torchane.capture.tiles import tile_attention
from torchane.capture.torch_private import (
    TracingContext,
    aot_compiled,
    disable,
    functorch_config,
    unset_fake_temporarily,
    use_lazy_graph_module,
)
from torchane.capture.varied import Varied
from torchane.capture.vocabulary import bytes_to_keep, slice_losses
from torchane.capture.watch import Watch
from torchane.interpreter import compiling
from torchane.passes import require_form
from torchane.plan.constants import pricing_if_known
from torchane.plan.dump import dump_plan
from torchane.plan.search import searched
from torchane.runtime.ane.doctor import record
from torchane.runtime.execute import Executor
from torchane.runtime.loss_scale import LossScale, Reading


def ane(gm: fx.GraphModule, example_inputs: Sequence[Any], *, options: Mapping[str, Any] | None = None, mode: str | None = None) -> Callable[..., Any]:
    """The backend. Raises UsageError for unknown options, CompileError where a graph has no legal form."""
    check_mode(mode)
    return _compiled(gm, example_inputs, Options.parse(options or {}))


@compiling
def _compiled(gm: fx.GraphModule, example_inputs: Sequence[Any], parsed: Options) -> Callable[..., Any]:
    check_inputs(gm, example_inputs)
    buckets = Buckets.parse(parsed.buckets)
    record = watch_sizes(are_exact=not buckets.is_on) or Varied("The graph")
    mark_float32(gm)
    inputs = given(gm)  # now: Dynamo erases where its inputs come from once the graph is compiled

    @compiling
    def compile_exact(
        graph: fx.GraphModule, example_inputs: Sequence[Any], added: Sequence[str] = (), fixed: Collection[int] = (), sizes: Sizes | None = None
    ) -> tuple[Callable[..., Any], Compiled]:
        compiled = new_compiled(parsed, inputs.with_inputs(added, fixed))
        compiled.sizes = sizes
        beside = [new_compiled(options, inputs.with_inputs(added, fixed)) for options in others()]
        return _compile(compiled, graph, example_inputs, beside), compiled

    if has_symbols(example_inputs) or has_numbers(gm):
        return disable(Specialising(gm, example_inputs, compile_exact, record, buckets))
    start = time.perf_counter()
    tile_attention(gm)
    slice_losses(gm, bytes_to_keep(parsed, device_of(parsed)))
    shared = share_layers(gm)
    graph = Resident(lambda args: compile_exact(shared, args)).ready(example_inputs)
    record.note([inputs.names[i] for i in range(len(inputs.names))], example_inputs)
    record.compiled(time.perf_counter() - start)
    return disable(graph.__call__)  # a copy of its attributes would outlive what it lets go


def _compile(compiled: Compiled, gm: fx.GraphModule, example_inputs: Sequence[Any], beside: Sequence[Compiled] = ()) -> Callable[..., Any]:
    """Hands the graph to AOTAutograd, and its forward and backward to us. beside: compiled from the same trace, and not called."""

    def for_each(compile_one: Callable[[Compiled, fx.GraphModule], Callable[..., Any]], graph: fx.GraphModule) -> Callable[..., Any]:
        for other in beside:
            compile_one(other, copied(graph))
        return compile_one(compiled, graph)

    compile_with = partial(
        aot_compiled,
        fw_compiler=lambda graph, inputs: for_each(_compile_forward, graph),
        bw_compiler=lambda graph, inputs: for_each(_compile_backward, graph),
        inference_compiler=lambda graph, inputs: for_each(partial(_compile_forward, inference=True), graph),
        partition_fn=partial(partition, recompute=recomputed(compiled.options.recompute, gm, compiled.inputs.data)),
        decompositions=decompositions(),
    )
    # Attention is traced as products and a softmax, which rules can lower. Buffers are not donated to the
    # backward: surfaces go back to their pool by themselves, and retain_graph keeps working.
    with (
        sdpa_kernel(SDPBackend.MATH),
        wrong_formulas_left_out(),
        functorch_config.patch(donated_buffer=False),
        written_layers_known(gm),
        use_lazy_graph_module(True),  # Python code is written for graphs that are called, and ours are not
        tracing(compiled.options.progress == "on") as compiled.traced,
    ):
        for other in beside:
            other.traced = compiled.traced
        start = time.perf_counter()
        call = compile_with(gm, example_inputs)
        compiled.times_s["trace"] = time.perf_counter() - start - compiled.times_s["lower"] - compiled.times_s["load"]
        return call


def _compile_forward(compiled: Compiled, gm: fx.GraphModule, inference: bool = False) -> Callable[..., Any]:
    if inference:  # nothing was partitioned
        gm = inline(gm)
    results = gm.graph.output_node().args[0]
    context = TracingContext.try_get()
    # AOTAutograd does not count the tokens that order ops with effects (linalg.inv checks its result), and returns them first.
    count = len(results) if inference else len(context.fw_metadata.tokens) + context.fw_metadata.num_forward
    context.fw_metadata.bw_donated_idxs = []  # None reads as "some" where torch checks retain_graph
    graph = gm.graph
    compiled.input_names = users_names(graph, compiled.inputs)
    compiled.weight_names = names_by_index(graph, compiled.inputs.weights)
    roles = Roles(
        weights=named(graph, compiled.inputs.weights),
        static=named(graph, compiled.inputs.static),
        data=named(graph, compiled.inputs.data),
        lasting=named(graph, compiled.inputs.lasting),
        written=written(graph),
        returned=returned(graph),
        is_inference=inference,
        kept=range(count, len(results)),
        raw=named(graph, compiled.inputs.raw),
        frozen=named(graph, compiled.inputs.frozen),
        precision=compiled.options.precision,
    )
    compiled.traced.cancel()
    progress = Progress("forward", compiled.begun_s, compiled.options.progress == "on")
    planned = _plan(compiled, progress, gm, roles)
    execute = _executor(compiled, gm, planned, progress)
    holds_gradients = compiled.numerics.scales_own_gradients(planned.plan)
    run = OrFloat32(execute, gm)

    def forward(args: list[Any]) -> list[Any]:
        keep_warm(compiled)
        outputs = _with_own_gradients(compiled, execute, args) if holds_gradients else run(args)
        args.clear()
        return outputs

    forward._boxed_call = True  # type: ignore[attr-defined]
    return forward


@compiling  # torch asks for it when the backward first runs, long after the forward was compiled
def _compile_backward(compiled: Compiled, gm: fx.GraphModule) -> Callable[..., Any]:
    placeholders = [node.name for node in gm.graph.find_nodes(op="placeholder")]
    tangents = [name for name in placeholders if name.startswith("tangents") and not name.startswith("tangents_token")]
    saved = compiled.saved
    unknown = saved.surfaces.keys() - placeholders
    assert not unknown, f"the forward keeps {sorted(unknown)} for a backward that knows it by another name"
    roles = Roles(
        weights=saved.weights,
        static=saved.static,
        tangents=frozenset(tangents),
        weight_gradients=gradients_of(gm.graph, compiled.inputs.weights),
        saved=saved,
        precision=compiled.options.precision,
    )
    progress = Progress("backward", time.monotonic(), compiled.options.progress == "on")
    planned = _plan(compiled, progress, gm, roles)
    execute = _executor(compiled, gm, planned, progress)
    if not compiled.device.frees_processor:  # else they are widened beside dispatches, and a dispatch finds the surfaces of the step before
        compiled.left_bytes = execute.leave_gradients(only_gradients(gm.graph, planned.cut, weights_by_gradient(gm.graph, compiled.weight_names)))
    positions = [placeholders.index(name) for name in tangents]
    strict = is_repeatable(gm)

    def in_programs(held: Sequence[Any], scale: LossScale | None) -> list[Any]:
        largest = max((largest_of(held[i]) for i in positions), default=0.0)
        return compiled.numerics.backward(largest, lambda factor: execute(held, factor, strict=strict), scale, strict=True)

    apart = ByMagnitude(positions, bool(gradients_of(gm.graph, compiled.inputs.raw)), in_programs)
    run = BackwardOrFloat32(execute, gm, apart, is_proportional(compiled.rows))

    def backward(args: list[Any]) -> list[Any]:
        held = list(args)
        args.clear()
        return run(held)

    backward._boxed_call = True  # type: ignore[attr-defined]
    return backward


def _with_own_gradients(compiled: Compiled, execute: Executor, args: list[Any]) -> list[Any]:
    """A forward that a gradient begins in (`torch.func.grad`), with 1: each try draws the same random numbers."""
    state = torch.get_rng_state()

    def attempt(scale: float) -> tuple[list[Any], Reading]:
        torch.set_rng_state(state)
        return execute(args, scale)

    return compiled.numerics.backward(1.0, attempt)


def _plan(compiled: Compiled, progress: Progress, gm: fx.GraphModule, roles: Roles) -> Planned:
    name, options, has_ranges = progress.graph, compiled.options, compiled.ranges is not None
    keeps = options.cache == "on" and not options.without  # what is made for debugging is no other process's program
    wrong = {**record.wrong_on(options.chip), **compiled.device.wrong_ops}
    chip = chips.of_machine(options.chip)
    stored = LoweredPrograms(default_root(), " without ".join([chip.name, *sorted(wrong)]), has_ranges) if keeps else None
    probed, cost = chips.probed(chip, wrong), pricing_if_known(options.chip)
    require_form(options.frozen, probed)
    compiler = RegionCompiler(probed, has_ranges, stored, progress, options.without, options.frozen, convolution_pays(cost), options.chip)
    with compiled.timed("lower"), unset_fake_temporarily():  # AOTAutograd's mode gives constants no values
        planned, saved = plan_graph(name, gm, roles, compiler, options.partition or searched, cost)
        rows = rows_of(name, planned.cut)
        compiled.host_bytes = max(compiled.host_bytes, host_bytes_of(planned.cut))
    progress.host_work.tell(planned.cut)
    compiled.rows += rows
    compiled.plans[name] = planned.plan
    if not roles.tangents:
        compiled.saved = saved
    if compiled.options.dump is not None:
        notes = () if compiled.sizes is None else (str(compiled.sizes),)
        dump_plan(planned.plan, Path(compiled.options.dump) / f"graph{COMPILED.index(compiled)}", notes)
    return planned


def _executor(compiled: Compiled, gm: fx.GraphModule, planned: Planned, progress: Progress) -> Executor:
    loaded = []
    with compiled.timed("load"):
        for spec in planned.plan.programs:
            loaded.append(None if spec.constants else compiled.device.load(spec.text, spec.blobs, name=spec.name))
            progress.loaded(len(loaded), len(planned.plan.programs))
    host = TorchHost(gm.graph, compiled.memory, compiled.input_names)
    held = compiled.device, compiled.pool, compiled.weights
    return Executor(planned.plan, *held, host, planned.host_calls, loaded, compiled.numerics, compiled.observers, compiled.frozen, compiled.written_rows)


#: Says what Dynamo leaves to eager before it hands us anything.
WATCH = Watch(ane)
