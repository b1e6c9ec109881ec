"""The rules by ATen overload, and the decision whether a rule takes a node.

    @lowers(aten.mm.default)
    def mm(b: Builder, x: Var, other: Var) -> Var:
        return b.matmul(x=x, y=other)

A rule gets fx's own arguments: tensors as Vars (torch's shape; fp16 in programs, and any float dtype
works), everything else as plain Python. It returns a Var, a Literal (a constant such as `full`), the
very Var it was given (`clone`), None for a result nobody asked for, or a tuple of those where ATen
returns several. Inside programs every value is a float. A rule registered with `masks=True` also takes
and gives torch.bool tensors, carried as 0.0 and 1.0; integers never enter a program.
"""

import operator
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch.fx import Node

import torchane.capture.vocabulary_ops  # noqa: F401  it defines ops of the host
from torchane.capture import few_bits
from torchane.capture.marks import SCORES_LEAVE
from torchane.capture.torch_private import OpOverload, OpOverloadPacket
from torchane.chips import Chip, Verdict, load
from torchane.errors import CompileError
from torchane.mil.ir import Literal, Var
from torchane.passes import has_form

#: What a rule's tensor argument may be: a value of the program, or a constant.
Value = Var | Literal
Result = Value | None | tuple["Value | None", ...]
Condition = Callable[[Node], str | None]

#: torch's element types that a program may carry; float64 asks for digits that fp16 has not got.
FLOATS = (torch.float32, torch.float16, torch.bfloat16)
#: Programs hold tensors of rank 0 to 5 (reference: mil-text.md, section 3).
MAX_RANK = 5


_LOOKUP = "rows are looked up on the host: no program on an engine gathers"
_LOSS = "the loss stays on the host"
_WHOLE_LOSS = "the loss stays on the host, and with it a score for each token of the vocabulary: something else reads the scores, too, or they are returned"
_RANDOM = "random numbers come from torch's own generator"
_STATISTICS = "running statistics stay fp32, on the host"
_COPY = "it copies between tensors of the host"
aten = torch.ops.aten

#: Work of the host by design, and why; it is reported, and no warning is given for it.
ON_THE_HOST: Mapping[OpOverloadPacket, str] = MappingProxyType({
    **dict.fromkeys((
        aten.embedding, aten.embedding_dense_backward, aten.index, aten._unsafe_index, aten._unsafe_index_put, aten.gather,
        aten.scatter, aten.scatter_add, aten.index_put,
    ), _LOOKUP),
    **dict.fromkeys((
        aten.nll_loss_forward, aten.nll_loss_backward, aten.nll_loss2d_forward, aten.nll_loss2d_backward, aten._log_softmax,
        aten._log_softmax_backward_data, torch.ops.torchane.vocabulary_loss, torch.ops.torchane.vocabulary_rows,
        torch.ops.torchane.vocabulary_code,
    ), _LOSS),
    **dict.fromkeys((
        aten.bernoulli, aten.rand, aten.randn, aten.rand_like, aten.randn_like, aten.normal, aten.uniform,
    ), _RANDOM),
    **dict.fromkeys((aten._foreach_lerp, aten._foreach_mul), _STATISTICS),
    few_bits.dequantise.overloadpacket: few_bits.REASON,
    **dict.fromkeys((aten.copy_, aten._to_copy, aten.empty, torch.ops.prims.convert_element_type), _COPY),
})  # fmt: skip


_WHY_NOT = {
    Verdict.REFUSES: "which the chip {} does not take",
    Verdict.DISAGREE: "and reports disagree whether the chip {} takes it",
    Verdict.UNKNOWN: "and nobody has reported that the chip {} takes it",
}


class NoRule(CompileError):
    """A rule met arguments for which it has no form; the op then runs on the host."""


@dataclass(frozen=True)
class Rule:
    """How one ATen overload is written in MIL. `family` is the file it lives in."""

    target: OpOverload
    function: Callable[..., Result]
    family: str
    masks: bool
    needs: tuple[str, ...]
    condition: Condition | None
    ignored_outputs: tuple[int, ...]

    def __call__(self, *args: Any, **kwargs: Any) -> Result:
        return self.function(*args, **kwargs)


#: Every rule, filled by the modules of this package.
RULES: dict[OpOverload, Rule] = {}


def lowers(
    *targets: OpOverload,
    masks: bool = False,
    needs: tuple[str, ...] = (),
    when: Condition | None = None,
    ignored_outputs: tuple[int, ...] = (),
) -> Callable[[Callable[..., Result]], Callable[..., Result]]:
    """Registers a rule for `targets`.

    masks: bool tensors are welcome too, as 0.0 and 1.0. needs: the MIL ops in it that some chips have in no
    form (log, sin). when: gives the reason why a node is not taken, else None. ignored_outputs: results that the rule leaves None, of whatever dtype (the indices of a
    pooling); a node whose graph reads one of them is not taken.
    """

    def register(function: Callable[..., Result]) -> Callable[..., Result]:
        for target in targets:
            assert target not in RULES, f"{target} has two rules"
            family = function.__module__.rpartition(".")[2]
            RULES[target] = Rule(target, function, family, masks, needs, when, ignored_outputs)
        return function

    return register


def rule_for(node: Node, chip: Chip | None = None) -> Rule | None:
    """The rule that takes this node, or None where the host must run it (`why_not` says why)."""
    return RULES[node.target] if why_not(node, chip) is None else None


def why_not(node: Node, chip: Chip | None = None) -> str | None:
    """Why no program can hold this node, in words for a report; None where a rule takes it.

    chip: that the program is for, whose data file says which MIL ops it takes; `portable` if none is given.
    """
    if node.op != "call_function":
        return f"it is a {node.op}, not a call"
    rule = RULES.get(node.target)  # type: ignore[call-overload]
    if rule is None and (node.meta.get("custom") or {}).get(SCORES_LEAVE):
        return _WHOLE_LOSS
    if rule is None:
        return ON_THE_HOST.get(getattr(node.target, "overloadpacket", None), "torchane has no rule for it")
    chip = chip or load()
    for kind in rule.needs:
        if not has_form(kind, chip):
            return f"it needs {kind}, {_WHY_NOT[chip.verdict(kind)].format(chip.name)}"
    for source in node.all_input_nodes:
        if (reason := _unfit(source.meta.get("val"), rule)) is not None:
            return f"its input {source.name} {reason}"
    outputs = node.meta.get("val")
    several = isinstance(outputs, tuple | list)
    for index, output in enumerate(outputs if several else (outputs,)):
        if several and index in rule.ignored_outputs:
            if any(_reads(user, index) for user in node.users):
                return f"its result {index} is read, and no program can hold it"
        elif (reason := _unfit(output, rule)) is not None:
            return f"its result {reason}"
    return rule.condition(node) if rule.condition is not None else None


def covered_ops() -> dict[str, tuple[str, ...]]:
    """Family -> the names of the overloads it has rules for, sorted: the coverage table's rows."""
    families: dict[str, list[str]] = {}
    for target, rule in RULES.items():
        families.setdefault(rule.family, []).append(str(target))
    return {family: tuple(sorted(names)) for family, names in sorted(families.items())}


def values(node: Node, *names: str) -> Iterator[Any]:
    """The arguments of `node` by their names in the op's schema, defaults filled in; for conditions."""
    schema = node.target._schema  # type: ignore[union-attr]
    given = dict(zip((argument.name for argument in schema.arguments), node.args)) | dict(node.kwargs)
    defaults = {argument.name: argument.default_value for argument in schema.arguments if argument.has_default_value()}
    return (given.get(name, defaults.get(name)) for name in names)


def _unfit(value: Any, rule: Rule) -> str | None:
    if value is None:
        return None
    if isinstance(value, tuple | list):
        return next((reason for item in value if (reason := _unfit(item, rule)) is not None), None)
    if not isinstance(value, torch.Tensor):
        return f"is a {type(value).__name__} that is known only at run time"
    if value.layout != torch.strided:
        return f"has the layout {value.layout}"
    if value.dtype not in FLOATS and not (rule.masks and value.dtype == torch.bool):
        return f"is {value.dtype}, and programs compute in fp16"
    if value.dim() > MAX_RANK:
        return f"has {value.dim()} axes, and programs hold at most {MAX_RANK}"
    return _unfit_sizes(value.shape)


def _unfit_sizes(shape: Iterable[Any]) -> str | None:
    for size in shape:
        if not isinstance(size, int):
            return f"has the symbolic size {size}"
        if size == 0:
            return "is empty"
    return None


def _reads(user: Node, index: int) -> bool:
    """`user` is not the getitem of another result, nor one that nothing reads."""
    if user.target is not operator.getitem:
        return True
    return user.args[1] == index and bool(user.users)
