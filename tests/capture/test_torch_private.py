"""What torchane relies on of torch without torch's promise: one test a name, so that a new torch is judged here first."""

import ast
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import fx, nn
from torch._dynamo.source import AttrSource, LocalSource

from torchane.capture import torch_private as private

aten = torch.ops.aten


@pytest.fixture(autouse=True)
def fresh_dynamo():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def graphs_of(function, *inputs, partition=private.min_cut_rematerialization_partition, **options):
    """What AOTAutograd hands to a backend: forward and backward."""
    found = []

    def keep(gm, example_inputs):
        context = private.TracingContext.try_get()
        found.append((gm, context and context.fw_metadata))
        return lambda args: [arg if not isinstance(arg, torch.Tensor) else arg for arg in gm(*args)]

    def boxed(gm, example_inputs):
        call = keep(gm, example_inputs)
        call._boxed_call = True
        return call

    backend = private.aot_autograd(fw_compiler=boxed, bw_compiler=boxed, partition_fn=partition)
    result = torch.compile(function, backend=backend, **options)(*inputs)
    return found, result


def test_every_name_has_a_test_here():
    source = ast.parse(Path(private.__file__).read_text(encoding="utf-8"))
    names = {alias.asname or alias.name for node in source.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    names |= {node.name for node in source.body if isinstance(node, ast.FunctionDef)}
    here = Path(__file__).read_text(encoding="utf-8")
    assert not [name for name in names if f"private.{name}" not in here]


# --- Dynamo ---------------------------------------------------------------------------------------------------------


def test_callbacks_are_called_around_a_compilation():
    said = []
    callbacks = private.callback_handler
    callbacks.start_callbacks.append(lambda args: said.append(args))
    callbacks.end_callbacks.append(lambda args: said.append("end"))
    try:
        torch.compile(lambda x: x + 1, backend="eager")(torch.ones(2))
    finally:
        callbacks.start_callbacks.pop()
        callbacks.end_callbacks.pop()
    assert isinstance(said[0], private.CallbackArgs) and said[-1] == "end"


def test_the_limits_of_shapes_are_numbers_that_can_be_set():
    with private.dynamo_config.patch(recompile_limit=3, accumulated_recompile_limit=5):
        assert (private.dynamo_config.recompile_limit, private.dynamo_config.accumulated_recompile_limit) == (3, 5)


def test_a_disabled_function_is_not_traced():
    seen = []

    @private.disable
    def aside(x):
        seen.append(torch.compiler.is_compiling())
        return x

    torch.compile(lambda x: aside(x) + 1, backend="eager")(torch.ones(2))
    assert seen == [False]


def test_dynamos_wrapper_is_told_by_its_file():
    assert Path(private.external_utils.__file__).name == "external_utils.py"


def test_shapes_of_frames_are_remembered_under_their_code():
    def function(x):
        return x * 2

    compiled = torch.compile(function, backend="eager")
    compiled(torch.ones(2))
    compiled(torch.ones(3))
    assert any(code.name == "function" and "L['x']" in state.automatic_dynamic for code, state in private.pgo.get_code_state().items())


def test_a_failing_backend_is_wrapped_with_what_it_raised():
    def backend(gm, inputs):
        raise KeyError("mine")

    with pytest.raises(private.BackendCompilerFailed) as caught:
        torch.compile(lambda x: x + 1, backend=backend)(torch.ones(2))
    assert isinstance(caught.value.inner_exception, KeyError)


def test_a_graph_break_is_counted_with_its_reason_and_place():
    before, reasons = sum(private.counters["graph_break"].values()), len(private.graph_break_reasons)

    def breaks(x):
        x = x + 1
        torch._dynamo.graph_break()
        return x + 1

    torch.compile(breaks, backend="eager")(torch.ones(2))
    assert sum(private.counters["graph_break"].values()) == before + 1
    assert private.graph_break_reasons[reasons].user_stack[-1].name == "breaks"


# --- while a graph is traced ----------------------------------------------------------------------------------------


def test_a_backend_knows_which_frame_it_compiles():
    ids = []

    def backend(gm, inputs):
        ids.append(private.CompileContext.try_get().compile_id)
        return gm

    torch.compile(lambda x: x + 1, backend=backend)(torch.ones(2))
    assert ids[0].frame_id is not None and private.CompileContext.try_get() is None


def test_the_forward_is_told_its_tokens_outputs_and_donations():
    found, _ = graphs_of(lambda x: (x * 2).sin(), torch.ones(2, requires_grad=True))
    metadata = found[0][1]
    assert metadata.num_forward >= 1 and not metadata.tokens and hasattr(metadata, "bw_donated_idxs")


def test_a_tracing_context_can_be_made_around_fake_tensors():
    with private.tracing(private.TracingContext(private.FakeTensorMode())):
        assert private.TracingContext.try_get().fake_mode is not None


def test_fake_tensors_have_their_mode_and_can_be_left():
    with private.FakeTensorMode() as mode:
        x = torch.empty(2)
        assert isinstance(x, private.FakeTensor) and x.fake_mode is mode
        with private.unset_fake_temporarily():
            assert not isinstance(torch.empty(2), private.FakeTensor)


# --- AOTAutograd ----------------------------------------------------------------------------------------------------


def test_a_module_is_compiled_as_aot_autograd_compiles_it(monkeypatch):
    """Its own function, what that calls, and ours in its place."""

    def results(compiled):
        def keep(gm, inputs):
            found.append([str(node.target) for node in gm.graph.nodes])
            call = lambda args: gm(*args)
            call._boxed_call = True
            return call

        found, x = [], torch.ones(3, requires_grad=True)
        torch._dynamo.reset()
        options = {"fw_compiler": keep, "bw_compiler": keep, "inference_compiler": keep, "partition_fn": private.min_cut_rematerialization_partition}
        y = torch.compile(lambda x: (x * 2).sin(), backend=lambda gm, inputs: compiled(gm, inputs, **options))(x)
        y.sum().backward()
        return found, y.detach(), x.grad

    def theirs(gm, inputs, **options):
        return private.aot_autograd(**options)(gm, inputs)

    counted = dict(private.counters["aot_autograd"])
    for other in (theirs, private.aot_module_simplified):
        ours, wanted = results(private.aot_compiled), results(other)
        assert ours[0] == wanted[0] and torch.equal(ours[1], wanted[1]) and torch.equal(ours[2], wanted[2])
    assert private.counters["aot_autograd"]["ok"] > counted.get("ok", 0)
    monkeypatch.setattr(private, "aot_autograd", lambda **options: lambda gm, inputs: (gm, inputs, options))
    assert private.aot_compiled("graph", [[1]], fw_compiler=1) == ("graph", [[1]], {"fw_compiler": 1}), "inputs in lists are theirs to flatten"
    monkeypatch.setenv("TORCH_COMPILE_DEBUG", "1")
    assert private.aot_compiled("graph", [1], fw_compiler=1) == ("graph", [1], {"fw_compiler": 1}), "and so is what this asks to be written"


def test_the_leaves_of_nested_lists_have_a_form_that_can_be_compared():
    leaves, form = private.tree_flatten(([1, (2.0, None)], {"a": 3}))
    assert leaves[:2] == [1, 2.0] and leaves[-1] == 3
    assert form == private.tree_flatten(([4, (5.0, None)], {"a": 6}))[1] != private.tree_flatten(([4, 5.0, None], {"a": 6}))[1]


def test_what_draws_is_a_list_and_every_op_has_a_packet():
    assert aten.rand_like in private.compile_utils.rand_ops
    graph = fx.symbolic_trace(lambda x: torch.ops.aten.add.Tensor(x, x)).graph
    node = next(node for node in graph.nodes if node.op == "call_function")
    assert private.compile_utils.get_aten_target(node) is aten.add


def test_the_backward_can_be_compiled_with_the_forward():
    x = torch.ones(2, requires_grad=True)
    with private.functorch_config.patch(force_non_lazy_backward_lowering=True, donated_buffer=False):
        found, _ = graphs_of(lambda x: (x * 2).sin(), x)
    assert len(found) == 2


def test_ports_say_what_they_are():
    def function(x, state):
        state.add_(1)
        return (x * state).sin()

    found, result = graphs_of(function, torch.ones(2, requires_grad=True), torch.ones(2))
    result.sum().backward()
    (forward, _), (backward, _) = found
    inputs = [node.meta["desc"] for node in forward.graph.find_nodes(op="placeholder")]
    outputs = forward.graph.output_node().meta["desc"]
    assert {descriptor.idx for descriptor in inputs if isinstance(descriptor, private.PlainAOTInput)} == {0, 1}
    assert any(isinstance(descriptor, private.PlainAOTOutput) for descriptor in outputs)
    written = next(descriptor for descriptor in outputs if isinstance(descriptor, private.InputMutationAOTOutput))
    state = next(node.name for node in forward.graph.find_nodes(op="placeholder") if node.meta["desc"] == written.mutated_input)
    assert any(node.target is aten.add.Tensor and node.args[0].name == state for node in forward.graph.nodes)
    gradients = [descriptor for descriptor in backward.graph.output_node().meta["desc"] if isinstance(descriptor, private.GradAOTOutput)]
    assert [gradient.grad_of.idx for gradient in gradients] == [1 - written.mutated_input.idx]


def test_a_gradient_within_a_function_is_one_call_in_dynamos_graph():
    calls = []

    def backend(gm, inputs):
        calls.extend(node.target for node in gm.graph.nodes if node.op == "call_function")
        return gm

    torch.compile(lambda x: torch.func.grad(lambda y: y.sin().sum())(x), backend=backend)(torch.ones(2))
    assert private.autograd_grad in calls or torch.autograd.grad in calls


def test_the_partition_gives_a_forward_and_a_backward():
    joints = []

    def partition(joint, inputs, **options):
        joints.append(joint)
        return private.min_cut_rematerialization_partition(joint, inputs, **options)

    found, result = graphs_of(lambda x: x.sin(), torch.ones(2, requires_grad=True), partition=partition)
    result.sum().backward()
    assert len(joints) == 1 and len(found) == 2


# --- ops ------------------------------------------------------------------------------------------------------------


def test_an_ops_python_formula_lies_under_its_dispatch_key():
    op = aten.multilabel_margin_loss_forward.default
    assert callable(op.py_kernels[private.DispatchKey.Autograd]) and hasattr(op._dispatch_cache, "clear")


def test_core_decompositions_are_functions_by_op():
    table = private.core_aten_decompositions()
    assert torch.equal(table[aten.addcmul.default](torch.ones(2), torch.ones(2), torch.ones(2)), torch.full((2,), 2.0))


def test_an_op_that_checks_its_result_has_effects():
    assert not private.has_effects(aten.add.Tensor)
    assert private.has_effects(aten._linalg_check_errors.default) or private.has_effects(aten._print.default)


def test_where_a_value_comes_from_is_a_frozen_chain_that_can_have_another_beginning():
    x, y = LocalSource("x"), LocalSource("y")
    chain = AttrSource(AttrSource(x, "self_attn"), "weight")
    assert isinstance(chain, private.ChainedSource) and chain.__dataclass_params__.frozen
    assert chain.clone(lambda source: y if source == x else source) == AttrSource(AttrSource(y, "self_attn"), "weight")


def test_a_region_becomes_one_subgraph_that_is_called():
    class Block(nn.Module):
        def forward(self, x):
            return x.sin() * 2

    Block.forward = torch.compiler.nested_compile_region(Block.forward)
    region, calls = Block(), []

    def backend(gm, inputs):
        calls.extend(node.target for node in gm.graph.nodes if node.op == "call_function")
        return gm

    torch.compile(lambda x: region(region(x)), backend=backend, fullgraph=True)(torch.ones(2))
    assert calls.count(private.invoke_subgraph) == 2 and hasattr(private.invoke_subgraph, "_supports_training_input_mutation")


def test_a_checkpoint_is_a_call_of_a_body_with_its_inputs():
    found = []

    def keep(gm, example_inputs):
        call = next(node for node in gm.graph.nodes if node.target is private.tag_activation_checkpoint)
        found.append((call, getattr(gm, call.args[0].target)))
        return gm.forward

    x = torch.ones(3, requires_grad=True)
    torch.compile(lambda x: torch.utils.checkpoint.checkpoint(torch.sin, x, use_reentrant=False), backend=keep)(x)
    (call, body), = found
    assert len(call.args) == 1 + len(body.graph.find_nodes(op="placeholder")) and "_checkpoint_context_fn" not in body.meta


def test_ops_are_told_apart_by_their_classes():
    assert isinstance(private.invoke_subgraph, private.HigherOrderOperator)
    assert isinstance(aten.add.Tensor, private.OpOverload) and isinstance(aten.add, private.OpOverloadPacket)
    assert isinstance(aten.add.Tensor, private.OperatorBase) and aten.add.Tensor.overloadpacket is aten.add


def test_a_draw_can_be_repeated_from_its_state():
    x = torch.zeros(8)
    state, first = private.run_and_save_rng_state(aten.rand_like.default, x)
    assert torch.equal(private.run_with_rng_state(state, aten.rand_like.default, x), first)


def test_a_lazy_graph_module_is_made_where_asked():
    with private.use_lazy_graph_module(True):
        traced = fx.symbolic_trace(lambda x: x + 1)
    assert torch.equal(traced(torch.ones(2)), torch.full((2,), 2.0))


def test_a_dispatch_mode_sees_ops_and_can_be_left():
    seen = []

    class Mode(private.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            seen.append(func)
            return func(*args, **(kwargs or {}))

    with Mode():
        torch.ones(2) + 1
        count = len(seen)
        with private.disable_current_modes():
            torch.ones(2) + 1
    assert aten.add.Tensor in seen and len(seen) == count


# --- Inductor -------------------------------------------------------------------------------------------------------


def test_the_names_of_modes_are_known():
    assert {"default", "max-autotune", "reduce-overhead"} <= set(private.list_mode_options())


def test_a_compiler_is_found_or_not():
    assert private.has_cpp_compiler() in (True, False)


# --- Symbolic sizes -------------------------------------------------------------------------------------------------


def _symbol(value: int) -> tuple[private.ShapeEnv, torch.SymInt]:
    env = private.ShapeEnv(duck_shape=False)
    source = private.ConstantSource("n")
    symbol = env.create_symbol(value, source, private.DimDynamic.DYNAMIC, None)
    return env, env.create_symintnode(symbol, hint=value, source=source)


def test_a_function_of_symbolic_sizes_becomes_a_graph_and_what_it_assumes():
    env, size = _symbol(5)
    with private.FakeTensorMode(shape_env=env), private.preserve_node_meta(), private.enable_python_dispatcher():
        graph = private.make_fx(lambda x: x.view(-1) * x.shape[0])(torch.empty(size, 3)).graph
    shapes = [tuple(node.meta["val"].shape) for node in graph.nodes if node.target is torch.ops.aten.view.default]
    assert str(shapes[0][0].node.expr) == f"3*{size.node.expr}"
    assert all(bool(guard.expr.xreplace({size.node.expr: 7})) for guard in env.guards)


def test_an_expression_is_computed_with_other_sizes():
    _, size = _symbol(5)
    _, other = _symbol(7)
    doubled = (size * 2).node.expr
    assert private.sympy_interp(private.PythonReferenceAnalysis, {size.node.expr: other}, doubled).node.hint == 14


def test_writes_are_noted_and_not_done():
    x = torch.zeros(2)
    with private.writes_noted():
        held = private.to_fun(x)
        held.add_(1)
        assert private.has_data_mutation(held)
        assert private.tree_map_only(torch.Tensor, private.from_fun, [held])[0].tolist() == [1, 1]
    assert x.tolist() == [0, 0] and private.FunctionalTensorMode is not None


def marked(x):
    with private.annotate({"mark": True}):
        wide = (x[:, None] * x).exp()
    return (wide * wide).sum(-1)


def test_what_is_annotated_and_to_be_computed_again_is_not_kept_for_the_backward():
    def parted(joint, inputs, **options):
        nodes = [node for node in joint.graph.nodes if "mark" in node.meta.get("custom", {}) and node.meta.get("partitioner_tag") != "is_backward"]
        assert aten.exp.default in [node.target for node in nodes]
        for node in nodes:
            node.meta["recompute"], node.meta["ac_graph_id"] = private.CheckpointPolicy.MUST_RECOMPUTE, 0
        return private.min_cut_rematerialization_partition(joint, inputs, **options)

    def backend(gm, inputs):
        for node in gm.graph.find_nodes(op="call_function", target=torch.cos):
            node.target = marked
        gm.recompile()
        return private.aot_autograd(fw_compiler=keep, bw_compiler=keep, partition_fn=parted)(gm, inputs)

    def keep(gm, inputs):
        found.append(gm)
        call = lambda args: gm(*args)
        call._boxed_call = True
        return call

    found = []
    torch.compile(lambda x: torch.cos(x) * 2, backend=backend)(torch.randn(8, requires_grad=True)).sum().backward()
    forward, backward = found
    kept = [node.meta["val"].shape for node in forward.graph.output_node().args[0]]
    assert all(len(shape) < 2 for shape in kept)
    assert aten.exp.default in [node.target for node in backward.graph.nodes]


def test_notes_on_tensors_go_by_identity_and_end_with_the_tensor():
    notes = private.WeakIdKeyDictionary()
    first, equal = torch.ones(2), torch.ones(2)
    notes[first] = "first"
    assert notes.get(first) == "first" and notes.get(equal) is None
    del first
    assert len(notes) == 0


def test_the_words_of_a_generator_and_how_many_were_given_out_lie_where_they_are_said_to():
    generator = torch.Generator().manual_seed(5489)
    torch.empty(3).uniform_(generator=generator)
    state = generator.get_state()
    words, left, given = private.twister_of(state.numpy())
    assert state.numel() == private.GENERATOR_BYTES and (left[0], given[0]) == (622, 3)
    again = np.random.RandomState(5489)
    again.randint(0, 2**32, 3, dtype=np.uint32)
    kind, theirs, position, *_ = again.get_state()
    assert kind == "MT19937" and position == 3 and np.array_equal(words, theirs)


def test_hooks_of_a_parameter_are_found():
    plain, told, asked = (nn.Parameter(torch.ones(2)) for _ in range(3))
    told.register_hook(lambda grad: None)
    asked.register_post_accumulate_grad_hook(lambda param: None)
    assert [private.has_hooks(param) for param in (plain, told, asked)] == [False, True, True]
