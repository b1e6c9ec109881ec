"""What two programs do differently, whatever their values are called and wherever their constants stand.

    for difference in diff(before, after):
        print(difference)

    ~ op 'attn_1' (mul): y: fp16(0.125) -> fp16(0x1.6a0ap-4)
    - op 'mask' (add)
    + output 'lse': tensor<fp16, [1, 12, 1, 256]>

Two ops are the same if their kinds, constants, types and, in turn, all that they read are. What is left is paired
in order of place, and a pair is reported only where it differs in itself: an op that merely reads a changed one is not.
Not compared: names of values, order of arguments, the `name` attribute, buildInfo.
"""

import difflib
import hashlib
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from torchane.mil.constants import inline_constants
from torchane.mil.ir import Arg, Blob, Block, Function, Literal, Op, Program, Var
from torchane.mil.types import TensorType

# More characters of a constant than this say less, not more.
_LONG = 60


@dataclass(frozen=True)
class Difference:
    """One difference. change: `changed`, `added` or `removed`; where: what it is about; what: how it differs."""

    change: str
    where: str
    what: str = ""

    def __str__(self) -> str:
        sign = {"changed": "~", "added": "+", "removed": "-"}[self.change]
        return f"{sign} {self.where}" + (f": {self.what}" if self.what else "")


def diff(before: Program, after: Program) -> tuple[Difference, ...]:
    """The differences, in order of place; empty if both programs do the same."""
    found: list[Difference] = []
    if before.version != after.version:
        found.append(Difference("changed", "version", f"{before.version} -> {after.version}"))
    old = {function.name: function for function in inline_constants(before).functions}
    new = {function.name: function for function in inline_constants(after).functions}
    found.extend(Difference("removed", f"function {name!r}") for name in old if name not in new)
    for name, function in new.items():
        if name in old:
            found.extend(_functions(old[name], function))
        else:
            found.append(Difference("added", f"function {name!r}"))
    chosen = [_default(program) for program in (before, after)]
    if chosen[0] != chosen[1] and len(before.functions) > 1 and len(after.functions) > 1:
        found.append(Difference("changed", "default function", " -> ".join(name or "none" for name in chosen)))
    return tuple(found)


def _default(program: Program) -> str | None:
    """The function that runs if none is chosen."""
    wanted = program.default_function or "main"
    return wanted if any(function.name == wanted for function in program.functions) else None


def _functions(old: Function, new: Function) -> Iterator[Difference]:
    if old.opset != new.opset:
        yield Difference("changed", "opset", f"{old.opset} -> {new.opset}")
    yield from _attributes("function", old.attrs, new.attrs)
    yield from _ports("input", old.inputs, new.inputs)
    pairs = _Pairs(old, new)
    yield from pairs.differences()
    yield from _ports("output", old.outputs, new.outputs)
    places = {var.name: var for var in old.outputs}
    for var in new.outputs:
        if var.name in places and places[var.name].type == var.type and not pairs.same(places[var.name], var):
            yield Difference("changed", f"output {var.name!r}", "is another value")


def _ports(what: str, old: tuple[Var, ...], new: tuple[Var, ...]) -> Iterator[Difference]:
    before, after = ({var.name: var.type for var in ports} for ports in (old, new))
    for name, type_ in before.items():
        if name not in after:
            yield Difference("removed", f"{what} {name!r}", str(type_))
        elif after[name] != type_:
            yield Difference("changed", f"{what} {name!r}", f"{type_} -> {after[name]}")
    for name, type_ in after.items():
        if name not in before:
            yield Difference("added", f"{what} {name!r}", str(type_))
    if before == after and [var.name for var in old] != [var.name for var in new]:
        yield Difference("changed", f"order of the {what}s", ", ".join(var.name for var in new))


def _attributes(where: str, old: Mapping[str, Literal], new: Mapping[str, Literal]) -> Iterator[Difference]:
    for key in dict.fromkeys((*old, *new)):
        if key != "name" and old.get(key) != new.get(key):
            yield Difference("changed", where, f"{key}: {_shown(old.get(key))} -> {_shown(new.get(key))}")


class _Pairs:
    """The ops of two functions, those that belong together in pairs."""

    def __init__(self, old: Function, new: Function):
        self._old, self._new = old, new
        self._digests = (_Digests(old), _Digests(new))
        self._vars = {var: other for var in old.inputs for other in new.inputs if var.name == other.name}
        self._other: dict[int, int] = {}  # place among new.ops -> place among old.ops
        self._pair_equal()
        self._pair_rest()

    def _pair(self, old: int, new: int) -> None:
        self._other[new] = old
        for before, after in zip(self._old.ops[old].outputs, self._new.ops[new].outputs):
            self._vars[before] = after

    def _pair_equal(self) -> None:
        """Ops that compute the same, in order."""
        waiting: dict[bytes, deque[int]] = defaultdict(deque)
        for place, op in enumerate(self._old.ops):
            waiting[self._digests[0].op(op)].append(place)
        for place, op in enumerate(self._new.ops):
            same = waiting[self._digests[1].op(op)]
            if same:
                self._pair(same.popleft(), place)

    def _pair_rest(self) -> None:
        """Of the others those of one kind that stand in one order; first those that also agree in their types, last
        those of other kinds that take and give the same: one in the place of the other."""
        for key in (_kind_and_types, _kind, _form):
            taken = set(self._other.values())
            old = [place for place in range(len(self._old.ops)) if place not in taken]
            new = [place for place in range(len(self._new.ops)) if place not in self._other]
            matcher = difflib.SequenceMatcher(
                None, [key(self._old.ops[p]) for p in old], [key(self._new.ops[p]) for p in new], autojunk=False
            )
            for i, j, count in matcher.get_matching_blocks():
                for step in range(count):
                    self._pair(old[i + step], new[j + step])

    def same(self, old: Var, new: Var) -> bool:
        """Whether two values belong together."""
        return self._vars.get(old) == new

    def differences(self) -> Iterator[Difference]:
        kept = set(self._other.values())
        for place, op in enumerate(self._old.ops):
            if place not in kept:
                yield Difference("removed", _named(op))
        for place, op in enumerate(self._new.ops):
            if place in self._other:
                yield from self._op(self._old.ops[self._other[place]], op)
            else:
                yield Difference("added", _named(op))

    def _op(self, old: Op, new: Op) -> Iterator[Difference]:
        where = _named(new)
        if old.kind != new.kind:
            yield Difference("changed", where, f"was {old.kind.name}")
        for key in dict.fromkeys((*old.args, *new.args)):
            before, after = old.args.get(key), new.args.get(key)
            if not self._agree(before, after):
                yield Difference("changed", where, f"{key}: {_change(before, after)}")
        yield from _attributes(where, old.attrs, new.attrs)
        for before, after in zip(old.outputs, new.outputs):
            if before.type != after.type:
                yield Difference("changed", where, f"result {after.name}: {before.type} -> {after.type}")
        if len(old.outputs) != len(new.outputs):
            yield Difference("changed", where, f"{len(old.outputs)} -> {len(new.outputs)} results")
        if self._blocks(old, lambda var: self._vars.get(var, var)) != self._blocks(new, lambda var: var):
            yield Difference("changed", where, "its blocks differ")

    @staticmethod
    def _blocks(op: Op, around: Callable[[Var], Var]) -> list[bytes]:
        """What an op's blocks compute; values from around them are called by their names in the new program."""
        return [_Digests(block, lambda var: around(var).name.encode()).outputs(block) for block in op.blocks]

    def _agree(self, old: Arg | None, new: Arg | None) -> bool:
        if isinstance(old, tuple) and isinstance(new, tuple):
            return len(old) == len(new) and all(map(self._agree, old, new))
        if isinstance(old, Var) and isinstance(new, Var):
            return self.same(old, new)
        return old == new


class _Digests:
    """A digest for every value and op of a function or block: equal where they compute the same from the same
    inputs. A function's inputs are known by name, a block's by place; `around` labels values defined outside."""

    def __init__(self, scope: Function | Block, around: Callable[[Var], bytes] | None = None):
        self._vars: dict[Var, bytes] = {}
        self._ops: dict[int, bytes] = {}
        self._around = around
        if isinstance(scope, Function):
            self._vars.update({var: _digest(b"input", var.name.encode(), _type(var)) for var in scope.inputs})
        else:
            self._define("block", scope.inputs)
        self._walk(scope.ops)

    def op(self, op: Op) -> bytes:
        return self._ops[id(op)]

    def outputs(self, scope: Function | Block) -> bytes:
        """What leaves, in order, and what ops without a result do."""
        silent = (self._ops[id(op)] for op in scope.ops if not op.outputs)
        return _digest(*map(self._arg, scope.outputs), *silent)

    def _define(self, what: str, variables: Iterable[Var], of: bytes = b"") -> None:
        for place, var in enumerate(variables):
            self._vars[var] = _digest(what.encode(), str(place).encode(), _type(var), of)

    def _walk(self, ops: Iterable[Op]) -> None:
        for op in ops:
            inner = []
            for block in op.blocks:
                self._define("block", block.inputs)
                self._walk(block.ops)
                inner.append(self.outputs(block))
            digest = _digest(
                op.kind.name.encode(),
                *(part for key in sorted(op.args) for part in (key.encode(), self._arg(op.args[key]))),
                *(
                    part
                    for key in sorted(op.attrs)
                    if key != "name"
                    for part in (key.encode(), _literal(op.attrs[key]))
                ),
                *map(_type, op.outputs),
                *inner,
            )
            self._ops[id(op)] = digest
            self._define("result", op.outputs, digest)

    def _arg(self, arg: Arg) -> bytes:
        if isinstance(arg, tuple):
            return _digest(b"tuple", *map(self._arg, arg))
        if isinstance(arg, Literal):
            return _literal(arg)
        if arg not in self._vars:
            assert self._around is not None, f"{arg.name} is not defined"
            return _digest(b"around", self._around(arg), _type(arg))
        return self._vars[arg]


def _type(var: Var) -> bytes:
    return str(var.type).encode()


def _literal(literal: Literal) -> bytes:
    value = literal.value
    if isinstance(value, np.ndarray):
        return _digest(str(literal.type).encode(), np.ascontiguousarray(value).data)
    if isinstance(value, tuple):
        parts = (_literal(item) if isinstance(item, Literal) else repr(item).encode() for item in _flat(value))
        return _digest(str(literal.type).encode(), *parts)
    return _digest(str(literal.type).encode(), repr(value).encode())


def _flat(items: tuple) -> Iterator[object]:
    for item in items:
        yield from _flat(item) if isinstance(item, tuple) else (item,)


def _digest(*parts: bytes | memoryview) -> bytes:
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return digest.digest()


def _kind(op: Op) -> object:
    return op.kind.name


def _kind_and_types(op: Op) -> object:
    return op.kind.name, tuple(op.args), tuple(str(var.type) for var in op.outputs)


def _form(op: Op) -> object:
    return frozenset(op.args), tuple(str(var.type) for var in op.outputs)


def _named(op: Op) -> str:
    return f"op {op.name!r} ({op.kind.name})"


def _change(old: Arg | None, new: Arg | None) -> str:
    """How an argument changed; of two arrays how far they are apart."""
    if isinstance(old, Literal) and isinstance(new, Literal) and old.type == new.type:
        a, b = old.value, new.value
        if isinstance(a, np.ndarray) and isinstance(b, np.ndarray) and a.size > 8 and a.shape == b.shape:
            changed = int(np.count_nonzero(a != b))
            return f"{changed:,} of {a.size:,} values of the {old.type} differ"
    return f"{_shown(old)} -> {_shown(new)}"


def _shown(arg: Arg | None) -> str:
    if arg is None:
        return "nothing"
    if isinstance(arg, tuple):
        return f"({', '.join(map(_shown, arg))})"
    if isinstance(arg, Var):
        return arg.name
    if isinstance(arg.value, Blob):
        return f"{arg.type} at {arg.value.offset} of {arg.value.path}"
    if isinstance(arg.value, np.ndarray) and arg.value.size > 8:
        return str(arg.type)
    value = arg.value.tolist() if isinstance(arg.value, np.ndarray) else arg.value
    name = arg.type.dtype.mil_name if isinstance(arg.type, TensorType) else str(arg.type)
    text = f"{name}({value!r})"
    return text if len(text) <= _LONG else text[:_LONG] + "...)"
