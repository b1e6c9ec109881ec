"""A Llama layer's forward and the gradients of its norm and rotation, as capture writes them: natural MIL."""

from collections.abc import Sequence

import numpy as np

from torchane.mil.build import Builder
from torchane.mil.ir import Program, Var


def forward(
    batch: int = 2, seq: int = 32, dim: int = 64, heads: int = 2, hidden: int = 96, taken: Sequence[str] = ()
) -> Program:
    """x (B, S, C), weights (O, I) and rotary tables (S, D) to the layer's result and what its backward keeps.
    Names in `taken` go to no value."""
    b = Builder(taken)
    x = b.input("x", (batch, seq, dim))
    size = dim // heads
    gains = [b.input(name, (dim,)) for name in ("input_layernorm", "post_attention_layernorm")]
    q, k, v, o = (b.input(f"{name}_proj", (dim, dim)) for name in "qkvo")
    gate, up = (b.input(f"{name}_proj", (hidden, dim)) for name in ("gate", "up"))
    down = b.input("down_proj", (dim, hidden))
    cos, sin = (b.input(name, (seq, size)) for name in ("cos", "sin"))

    def linear(x: Var, weight: Var) -> Var:
        flat = b.reshape(x=x, shape=(batch * seq, x.shape[-1]))
        product = b.matmul(x=flat, y=b.transpose(x=weight, perm=(1, 0)), transpose_x=False, transpose_y=False)
        return b.reshape(x=product, shape=(batch, seq, weight.shape[0]))

    def norm(x: Var, gain: Var) -> tuple[Var, Var]:
        mean = b.reduce_mean(x=b.mul(x=x, y=x), axes=(2,), keep_dims=True)
        root = b.rsqrt(x=b.add(x=mean, y=1e-5), epsilon=0.0)
        return b.mul(x=b.mul(x=x, y=root), y=gain), root

    def split_heads(x: Var) -> Var:
        return b.transpose(x=b.reshape(x=x, shape=(batch, seq, heads, size)), perm=(0, 2, 1, 3))

    def rotated(x: Var) -> Var:
        half = (batch, heads, seq, size // 2)
        low = b.slice_by_size(x=x, begin=(0, 0, 0, 0), size=half)
        high = b.slice_by_size(x=x, begin=(0, 0, 0, size // 2), size=half)
        turned = b.concat(values=[b.mul(x=high, y=-1.0), low], axis=3)
        return b.add(x=b.mul(x=x, y=cos), y=b.mul(x=turned, y=sin))

    y, root = norm(x, gains[0])
    queries, keys, values = rotated(split_heads(linear(y, q))), rotated(split_heads(linear(y, k))), split_heads(linear(y, v))
    scores = b.matmul(x=queries, y=keys, transpose_x=False, transpose_y=True)
    mask = np.triu(np.full((seq, seq), -1e4, np.float16), 1)
    weights = b.softmax(x=b.add(x=b.mul(x=scores, y=size**-0.5), y=mask), axis=-1)
    mixed = b.matmul(x=weights, y=values, transpose_x=False, transpose_y=False)
    joined = b.reshape(x=b.transpose(x=mixed, perm=(0, 2, 1, 3)), shape=(batch, seq, dim))
    x = b.add(x=x, y=linear(joined, o))
    y, _ = norm(x, gains[1])
    x = b.add(x=x, y=linear(b.mul(x=b.silu(x=linear(y, gate)), y=linear(y, up)), down))
    return b.program(x, root, weights)


def norm_gradient(batch: int = 2, seq: int = 32, dim: int = 64) -> Program:
    """dx and the gain's gradient of an RMSNorm, as autograd writes it: with r cubed and stretched."""
    b = Builder()
    x, dy = b.input("x", (batch, seq, dim)), b.input("dy", (batch, seq, dim))
    gain, root = b.input("gain", (dim,)), b.input("root", (batch, seq, 1))
    scaled = b.mul(x=dy, y=gain)
    d_root = b.reduce_sum(x=b.mul(x=scaled, y=x), axes=(2,), keep_dims=True)
    d_mean = b.mul(x=b.mul(x=d_root, y=-0.5), y=b.pow(x=root, y=3.0))
    stretched = b.real_div(x=b.mul(x=d_mean, y=np.ones((1, 1, dim), np.float16)), y=float(dim))
    dx = b.add(x=b.mul(x=scaled, y=root), y=b.mul(x=stretched, y=b.mul(x=x, y=2.0)))
    d_gain = b.reduce_sum(x=b.mul(x=dy, y=b.mul(x=x, y=root)), axes=(0, 1), keep_dims=False)
    return b.program(dx, d_gain)


def rotation_gradient(batch: int = 2, heads: int = 2, seq: int = 32, size: int = 32) -> Program:
    """The gradient of x * cos + rotate_half(x) * sin."""
    b = Builder()
    dy = b.input("dy", (batch, heads, seq, size))
    cos, sin = b.input("cos", (seq, size)), b.input("sin", (seq, size))
    turned = b.mul(x=dy, y=sin)
    half = (batch, heads, seq, size // 2)
    low = b.slice_by_size(x=turned, begin=(0, 0, 0, 0), size=half)
    high = b.slice_by_size(x=turned, begin=(0, 0, 0, size // 2), size=half)
    left = b.pad(x=b.mul(x=low, y=-1.0), pad=(size // 2, 0))
    right = b.add(x=b.mul(x=dy, y=cos), y=b.pad(x=high, pad=(0, size // 2)))
    return b.program(b.add(x=right, y=left))
