"""Everything of torch that torchane uses and torch does not promise: a new torch is this file's work.

    other files ── from torchane.capture.torch_private import .. ──► here ──► torch._dynamo, torch._functorch, ..

What we rely on of each is said beside it; tests/capture/test_torch_private.py holds torch to it, one test a name. What is slow to
import is imported by the function that needs it.
"""

# ruff: noqa: F401, I001  (imported for others, and in groups by what they are for)

import collections.abc
import contextlib
import os
import typing

import numpy as np
import torch

# Dynamo: from Python to a graph
from torch._dynamo import callback_handler  # .start_callbacks, .end_callbacks: lists, called around a compilation
from torch._dynamo import config as dynamo_config  # .recompile_limit, .accumulated_recompile_limit: shapes before eager takes over
from torch._dynamo import disable  # makes a function that Dynamo does not trace
from torch._dynamo import external_utils  # .__file__: code there is Dynamo's wrapper, not the user's
from torch._dynamo import pgo  # .get_code_state(): what is remembered of the shapes of a frame
from torch._dynamo.backends.common import aot_autograd  # a backend from a compiler of the forward and one of the backward
from torch._functorch.aot_autograd import aot_module_simplified  # what it calls
from torch._dynamo.callback import CallbackArgs  # what the callbacks are given
from torch._dynamo.exc import BackendCompilerFailed  # .inner_exception: what our backend raised
from torch._dynamo.utils import counters  # counts of graph breaks and of what was left to eager, by reason
from torch._dynamo.utils import graph_break_reasons  # a list that grows by one at each break, with .user_stack

# While a graph is traced: guards, and tensors without values
from torch._guards import ChainedSource  # .clone(replace): where a value comes from with another beginning; frozen, compared by value
from torch._guards import CompileContext  # .try_get().compile_id: which frame is being compiled
from torch._guards import TracingContext  # .try_get().fw_metadata: tokens, num_forward, bw_donated_idxs
from torch._guards import tracing  # a context in which AOTAutograd finds a TracingContext
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode  # .fake_mode; a mode that makes them
from torch._subclasses.fake_tensor import unset_fake_temporarily  # real tensors in between

# Symbolic sizes
from torch._dispatch.python import enable_python_dispatcher  # ops taken apart with symbolic sizes, as AOTAutograd takes them apart
from torch._dynamo.source import ConstantSource  # where a symbol comes from: a name
from torch._functorch._aot_autograd.functional_utils import from_fun, has_data_mutation, to_fun  # values that note what is written to them
from torch._subclasses.functional_tensor import FunctionalTensorMode  # ops on such values, without writes
from torch.fx.experimental.proxy_tensor import make_fx  # a function as a graph of ATen ops
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv  # how a size may vary; symbols, and .guards: what was assumed of them
from torch.fx.traceback import annotate  # a context whose entries nodes that are traced in it have in meta["custom"]
from torch.fx.traceback import preserve_node_meta  # nodes keep the module and the line of those that they come of
from torch.utils.checkpoint import CheckpointPolicy  # .MUST_RECOMPUTE in meta["recompute"], with a meta["ac_graph_id"]: not kept for a backward
from torch.utils._pytree import tree_flatten  # the leaves of nested lists, and their form, comparable
from torch.utils._pytree import tree_map_only  # a function over the tensors of nested lists
from torch.utils._sympy.interp import sympy_interp  # an expression computed with other numbers
from torch.utils._sympy.reference import PythonReferenceAnalysis  # what its functions are
from torch.utils.weak import WeakIdKeyDictionary  # notes on tensors, as long as these live

# AOTAutograd: forward and backward as ATen
from torch._functorch import compile_utils  # .rand_ops: ops that its CSE leaves alone; .get_aten_target(node)
from torch._functorch import config as functorch_config  # .patch(donated_buffer=, force_non_lazy_backward_lowering=, activation_memory_budget=, cse=)
from torch._functorch._aot_autograd.descriptors import GradAOTOutput, InputMutationAOTOutput, PlainAOTInput, PlainAOTOutput  # what ports are
from torch._functorch.eager_transforms import _autograd_grad as autograd_grad  # how torch.func.grad stands in Dynamo's graph
from torch._functorch.partitioners import min_cut_rematerialization_partition  # one graph becomes a forward and a backward

# Ops
from torch._C import DispatchKey  # .Autograd: the key of an op's Python formula in op.py_kernels
from torch._decomp import core_aten_decompositions  # op -> function that writes it in core ATen
from torch._higher_order_ops.effects import has_effects  # whether an op must be kept in order (linalg.inv checks)
from torch._higher_order_ops.invoke_subgraph import invoke_subgraph  # one body, called for each equal layer
from torch._higher_order_ops.wrap import tag_activation_checkpoint  # (body, *inputs): what a checkpoint is to Dynamo; .meta of a body whose policy is the user's
from torch._ops import HigherOrderOperator, OperatorBase, OpOverload, OpOverloadPacket  # takes a graph; any; aten.add.Tensor; aten.add
from torch._prims.rng_prims import run_and_save_rng_state, run_with_rng_state  # a draw whose state is kept; the same draw again
from torch.fx._lazy_graph_module import _use_lazy_graph_module as use_lazy_graph_module  # no Python code for a graph that is never called
from torch.utils._python_dispatch import TorchDispatchMode  # sees every op that is run
from torch.utils._python_dispatch import _disable_current_modes as disable_current_modes  # none of them, for a while

# Inductor: only to tell torch's own modes, and to compare with it
from torch._inductor import list_mode_options  # the names of torch.compile's modes


def has_cpp_compiler() -> bool:
    """Whether Inductor finds a C++ compiler on this machine; without one it compiles nothing for a CPU."""
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler:
        return False
    return True


#: Of the state of a CPU's generator.
GENERATOR_BYTES = 5056


def twister_of(state: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Views of a CPU generator's state, uint8 (GENERATOR_BYTES,): the 624 words of its Mersenne Twister, uint64; 625 less the words that were given out,
    int32 (1,); the words that were given out, uint64 (1,)."""
    return state[24:5016].view(np.uint64), state[8:12].view(np.int32), state[16:24].view(np.uint64)


def has_hooks(tensor: torch.Tensor) -> bool:
    """Whether somebody is told of its gradient as it comes or once it is there."""
    return bool(tensor._backward_hooks) or bool(tensor._post_accumulate_grad_hooks)


@contextlib.contextmanager
def writes_noted() -> collections.abc.Iterator[None]:
    """Ops on values that `to_fun` wrapped write to nothing, and note what they would have written."""
    with torch._C._ExcludeDispatchKeyGuard(torch._C.DispatchKeySet(DispatchKey.Functionalize)), FunctionalTensorMode():
        yield


def aot_compiled(gm: torch.fx.GraphModule, example_inputs: collections.abc.Sequence[typing.Any], **options: typing.Any) -> collections.abc.Callable[..., typing.Any]:
    """aot_autograd(**options)(gm, example_inputs). To ask whether TORCH_COMPILE_DEBUG is set, that imports Inductor's scheduler and all that it needs, a quarter
    of a second and 15 MB; here the question is asked without."""
    if os.environ.get("TORCH_COMPILE_DEBUG", "0") == "1" or any(isinstance(one, list | tuple | dict) for one in example_inputs):
        return aot_autograd(**options)(gm, example_inputs)  # type: ignore[no-any-return]

    def compile_backward(*args: typing.Any, **kwargs: typing.Any) -> typing.Any:
        made = disable(options["bw_compiler"], reason="do not trace backward compiler function")(*args, **kwargs)
        return disable(made, reason="do not trace generated backwards pass")

    compile_backward._is_wrapped_bw_compiler = True  # type: ignore[attr-defined]
    counters["aot_autograd"]["total"] += 1
    try:
        made = aot_module_simplified(gm, example_inputs, **{**options, "bw_compiler": compile_backward})
    except Exception:
        counters["aot_autograd"]["not_ok"] += 1
        raise
    counters["aot_autograd"]["ok"] += 1
    return disable(made, reason="do not trace AOT-compiled graph")  # type: ignore[no-any-return]
