"""What the tests of the layout pass share: running both forms of a program, and the parts of a Llama layer in
PyTorch's own shapes, as autograd writes them."""

import math
from collections import Counter

import numpy as np

from torchane.abi.ports import PortLayout
from torchane.mil.build import Builder
from torchane.mil.check import check
from torchane.mil.evaluate import evaluate
from torchane.mil.ir import Program, Var
from torchane.passes.layout import lower_layout

Layouts = dict[str, PortLayout]


def lowered_and_run(program: Program, ports=None, **options) -> tuple[Program, Layouts]:
    """The lowered program, after asserting that both forms give the same numbers without rounding in between."""
    lowered, layouts = lower_layout(program, ports or {}, **options)
    check(lowered)
    rng = np.random.default_rng(7)
    arrays = {var.name: rng.standard_normal(var.shape).astype(np.float16) for var in program.inputs}
    wanted = evaluate(program, arrays, arithmetic="ideal")
    stored = {name: layouts[name].stored(array) for name, array in arrays.items()}
    found = evaluate(lowered, stored, arithmetic="ideal")
    assert [var.name for var in lowered.inputs] == [var.name for var in program.inputs]
    for before, after in zip(program.outputs, lowered.outputs, strict=True):
        got = layouts[after.name].logical_of(found[after.name])
        # float64 throughout; only the order of sums differs
        np.testing.assert_allclose(got, wanted[before.name], rtol=1e-12, atol=1e-12, err_msg=after.name)
    return lowered, layouts


def assert_legal(lowered: Program, layouts: Layouts, multiple: int = 32) -> None:
    """Rank 4 everywhere, ports as their layouts say and of legal width, no output that is a mere alias."""
    for var in (*lowered.inputs, *lowered.outputs):
        assert var.type == layouts[var.name].type
        assert layouts[var.name].is_legal(multiple)
    for op in lowered.ops:
        assert all(var.rank == 4 for var in (*op.inputs, *op.outputs)), op
    assert not {*lowered.inputs} & {*lowered.outputs}
    assert len({*lowered.outputs}) == len(lowered.outputs)


def count(program: Program, kind: str) -> int:
    return Counter(op.kind.name for op in program.ops)[kind]


def linear(b: Builder, x: Var, weight: Var) -> Var:
    """x (B, S, I), weight (O, I) -> (B, S, O), as view, t, mm, view."""
    batch, seq_len, _ = x.shape
    flat = b.reshape(x=x, shape=(batch * seq_len, x.shape[-1]))
    product = b.matmul(x=flat, y=b.transpose(x=weight, perm=(1, 0)))
    return b.reshape(x=product, shape=(batch, seq_len, weight.shape[0]))


def rms_norm(b: Builder, x: Var, gain: Var) -> Var:
    total = b.reduce_sum(x=b.mul(x=x, y=x), axes=(-1,), keep_dims=True)
    scale = b.pow(x=b.add(x=b.mul(x=total, y=1 / x.shape[-1]), y=1e-5), y=-0.5)
    return b.mul(x=b.mul(x=x, y=scale), y=gain)


def split_heads(b: Builder, x: Var, heads: int) -> Var:
    """(B, S, H * D) -> (B, H, S, D)"""
    batch, seq_len, width = x.shape
    return b.transpose(x=b.reshape(x=x, shape=(batch, seq_len, heads, width // heads)), perm=(0, 2, 1, 3))


def rope(b: Builder, x: Var) -> Var:
    """x * cos + (x turned) * sin, x (B, H, S, D): the turn is a product with a constant (D, D)."""
    seq_len, width = x.shape[-2:]
    rng = np.random.default_rng(3)
    cos, sin = rng.standard_normal((2, seq_len, width)).astype(np.float16)
    turn = np.roll(np.eye(width, dtype=np.float16), width // 2, axis=1)
    return b.add(x=b.mul(x=x, y=cos), y=b.mul(x=b.matmul(x=x, y=turn), y=sin))


def attention(b: Builder, q: Var, k: Var, v: Var) -> tuple[Var, Var]:
    """q, k, v (B, H, S, D) -> (B, H, S, D) and the probabilities, by bmm of (B * H, ...) as PyTorch does."""
    batch, heads, seq_len, width = q.shape
    flat = (batch * heads, seq_len, width)
    k = b.transpose(x=k, perm=(0, 1, 3, 2))
    scores = b.matmul(x=b.reshape(x=q, shape=flat), y=b.reshape(x=k, shape=(batch * heads, width, seq_len)))
    scores = b.reshape(x=scores, shape=(batch, heads, seq_len, seq_len))
    mask = np.triu(np.full((seq_len, seq_len), -1e4, np.float16), 1)
    probs = b.softmax(x=b.add(x=b.mul(x=scores, y=1 / math.sqrt(width)), y=mask), axis=-1)
    flat_probs = b.reshape(x=probs, shape=(batch * heads, seq_len, seq_len))
    return b.reshape(x=b.matmul(x=flat_probs, y=b.reshape(x=v, shape=flat)), shape=q.shape), probs


def llama_layer(
    batch: int, seq_len: int, width: int, heads: int, kv_heads: int, hidden: int
) -> tuple[Program, list[str]]:
    """A decoder layer with what its backward keeps as further outputs, and the names of its weights."""
    b = Builder()
    x = b.input("x", (batch, seq_len, width))
    head = width // heads
    shapes = {
        "norm1": (width,), "q": (width, width), "k": (kv_heads * head, width), "v": (kv_heads * head, width),
        "o": (width, width), "norm2": (width,), "gate": (hidden, width), "up": (hidden, width), "down": (width, hidden),
    }  # fmt: skip
    w = {name: b.input(name, shape) for name, shape in shapes.items()}
    normed = rms_norm(b, x, w["norm1"])
    q, k, v = (
        split_heads(b, linear(b, normed, w[name]), n) for name, n in (("q", heads), ("k", kv_heads), ("v", kv_heads))
    )
    q, k = rope(b, q), rope(b, k)
    k, v = (repeat_heads(b, value, heads // kv_heads) for value in (k, v))
    attended, probs = attention(b, q, k, v)
    joined = b.reshape(x=b.transpose(x=attended, perm=(0, 2, 1, 3)), shape=x.shape)
    after = b.add(x=x, y=linear(b, joined, w["o"]))
    normed2 = rms_norm(b, after, w["norm2"])
    gate, up = linear(b, normed2, w["gate"]), linear(b, normed2, w["up"])
    inner = b.mul(x=b.mul(x=gate, y=b.sigmoid(x=gate)), y=up)
    y = b.add(x=after, y=linear(b, inner, w["down"]), name="y")
    return b.program(y, q, k, v, probs, joined, after, normed, normed2, gate, up, inner), list(shapes)


def repeat_heads(b: Builder, x: Var, times: int) -> Var:
    """(B, H, S, D) -> (B, H * times, S, D), as expand and view do it."""
    batch, heads, seq_len, width = x.shape
    if times == 1:
        return x
    wide = b.mul(x=b.reshape(x=x, shape=(batch, heads, 1, seq_len, width)), y=np.ones((1, 1, times, 1, 1), np.float16))
    return b.reshape(x=wide, shape=(batch, heads * times, seq_len, width))
