"""What the engine's compiler makes one op of, before any number is computed.

    s = sigmoid(x = h); y = mul(x = h, y = s)     ->     y = silu(x = h)       where nothing else reads s

A table of silu is not h times the table of sigmoid, and a public capture tells which one ran: that of a feed-forward block
(768 channels, 256 positions, every weight 0.01; Espresso, Tests/ANERuntimeTests, fwd_ffn_y_seq256). By these rules an output is
2048 times 3 units of 2^-16 with the one table and 2048 times 2 with the two; compared with the capture, all 196,608 numbers
are those of the one table and none is that of the two. (The comparison is reported; the capture is not among our files.)
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace

from torchane.mil.ir import Block, Function, Op, Var, walk
from torchane.mil.kinds import kind_of
from torchane.mil.types import FP16, TensorType

_SILU = kind_of("silu")


def silus(function: Function) -> Mapping[Var, Op]:
    """By the result of a `mul` that becomes a silu, the sigmoid that it takes with it; nested blocks included."""
    ops = list(walk(function.ops))
    reads = Counter(var for op in ops for var in op.inputs)
    reads.update(var for op in ops for block in op.blocks for var in block.outputs)
    reads.update(function.outputs)
    sigmoids = {op.outputs[0]: op for op in ops if op.kind.name == "sigmoid" and len(op.outputs) == 1}
    found = {}
    for op in ops:
        if op.kind.name != "mul" or len(op.outputs) != 1 or not _is_half(op.outputs[0]):
            continue
        for h, s in ((op.args.get("x"), op.args.get("y")), (op.args.get("y"), op.args.get("x"))):
            if isinstance(s, Var) and s in sigmoids and reads[s] == 1 and sigmoids[s].args.get("x") == h and _is_half(s):
                found[op.outputs[0]] = sigmoids[s]
    return found


def fused(function: Function) -> Function:
    """The function as the engine computes it."""
    found = silus(function)
    return replace(function, ops=_fused(function.ops, found)) if found else function


def _fused(ops: tuple[Op, ...], found: Mapping[Var, Op]) -> tuple[Op, ...]:
    gone = {sigmoid.outputs[0] for sigmoid in found.values()}
    kept = []
    for op in ops:
        if op.kind.name == "sigmoid" and op.outputs[0] in gone:
            continue
        if op.kind.name == "mul" and op.outputs[0] in found:
            op = replace(op, kind=_SILU, args={"x": found[op.outputs[0]].args["x"]})
        if op.blocks:
            op = replace(op, blocks=tuple(_block(block, found) for block in op.blocks))
        kept.append(op)
    return tuple(kept)


def _block(block: Block, found: Mapping[Var, Op]) -> Block:
    return replace(block, ops=_fused(block.ops, found))


def _is_half(var: Var) -> bool:
    return isinstance(var.type, TensorType) and var.type.dtype is FP16
