"""Ops and forms that `portable` does without, since reports on them disagree or are missing: what does this machine say?

    a small program each ── bridge ──► its numbers, or a refusal        beside the NumPy rules of mil/engine and of mil/ops

They are handed to the framework as they are; torchane itself writes none of them for `portable`. What is found right here counts for a
program that somebody brings (`torchane inspect --chip`, `torchane plan FILE`), in place of the reports. Nothing here decides
whether an engine is used. `tile` comes last: after it, one report says, every evaluation of the process fails.
"""

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from torchane import native
from torchane.errors import AppleError
from torchane.mil.build import Builder
from torchane.mil.evaluate import evaluate
from torchane.mil.ir import Program, Var
from torchane.mil.name_constants import name_constants
from torchane.mil.save import emit
from torchane.runtime.ane.device import AneDevice
from torchane.runtime.ane.doctor.measure import SHAPE, Finding, handed_over, is_near, share_equal, steps_apart
from torchane.runtime.ane.source import places, source_of

#: How the names of these checks begin.
DOUBT = "doubt "

Build = Callable[[Builder, Var, Var], Var]


def look(device: AneDevice, build: Build) -> Finding:
    """ok: it was taken, and its numbers are near those of the engine's rules or the exact ones. A refusal is an AppleError, which the caller notes."""
    b = Builder()
    x, y = b.input("a0_x", SHAPE), b.input("a1_y", SHAPE)
    program = b.program(b.add(x=build(b, x, y), y=0.0, name="z0_y"), b.add(x=x, y=y, name="z1_y"))
    rng = np.random.default_rng(0)
    arrays = {"a0_x": (rng.uniform(0.25, 2.0, SHAPE) * rng.choice([-1, 1], SHAPE)).astype(np.float16), "a1_y": rng.uniform(0.25, 2.0, SHAPE).astype(np.float16)}
    got = _run(device, program, arrays)
    found: Finding = {"ok": False}
    for arithmetic in ("engine", "exact"):
        named = evaluate(program, arrays, arithmetic=arithmetic)
        want = [np.asarray(named[var.name], np.float16) for var in program.outputs]
        found[f"equal to {arithmetic}"] = round(share_equal(got, want), 6)
        found[f"steps from {arithmetic}"] = max(steps_apart(one, right) for one, right in zip(got, want, strict=True))
        found["ok"] |= all(is_near(one, right) for one, right in zip(got, want, strict=True))
    return found


def _run(device: AneDevice, program: Program, arrays: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    """Its outputs, through the bridge alone. Raises AppleError where it is refused."""
    text, blobs = emit(name_constants(program))
    source = source_of(text, blobs, device.framework.architecture)
    inputs, outputs = ([var.name for var in ports] for ports in (program.inputs, program.outputs))
    sizes = [2 * int(np.prod(var.shape)) for var in program.outputs]  # type: ignore[arg-type]
    largest = max(*sizes, *(array.nbytes for array in arrays.values()))  # as some systems want it
    with tempfile.TemporaryDirectory() as folder:
        ready = handed_over(device, Path(folder), source.text, dict(source.weights), inputs, outputs)
        ready.compile()
        ready.load()
        try:
            attributes = ready.attributes()
            ready.bind(places(inputs, False, attributes, "doubt"), places(outputs, True, attributes, "doubt"), sizes)
            given, results = ([native.apple.Surface(device.route, largest) for _ in ports] for ports in (inputs, outputs))
            for surface, name in zip(given, inputs, strict=True):
                surface.memory[: arrays[name].nbytes].view(np.float16)[:] = arrays[name].reshape(-1)
            ready.run(given, results)
            return [
                surface.memory[:size].view(np.float16).reshape(var.shape).copy()  # type: ignore[arg-type]
                for surface, size, var in zip(results, sizes, program.outputs, strict=True)
            ]
        finally:
            _unload(ready)


def _unload(ready: object) -> None:
    try:
        ready.unload()  # type: ignore[attr-defined]
    except AppleError:
        pass  # what it could compute is known by now


def _weights(*shape: int) -> np.ndarray:
    rng = np.random.default_rng(1)
    return np.asarray(rng.standard_normal(shape) / 8, np.float16)


def _halves(b: Builder, x: Var) -> tuple[Var, Var]:
    one, other = b.split(x=x, num_splits=2, axis=1)
    return one, other


def _attention(b: Builder, x: Var, y: Var) -> Var:
    """The mask leaves out all that is later."""
    rows = (1, 1, 64, 64)
    q, k = b.reshape(x=x, shape=rows), b.reshape(x=y, shape=rows)
    mask = np.triu(np.full(rows, -1e4, np.float16), 1)
    return b.reshape(x=b.scaled_dot_product_attention(query=q, key=k, value=k, attn_mask=mask), shape=SHAPE)


#: By the op of MIL, or the op and, after a comma, the form. x has either sign, y is positive; (1, 64, 1, 64) both.
DOUBTS: dict[str, Build] = {
    "abs": lambda b, x, y: b.abs(x=x),
    "minimum": lambda b, x, y: b.minimum(x=x, y=y),
    "square": lambda b, x, y: b.square(x=x),
    "rsqrt": lambda b, x, y: b.rsqrt(x=y),
    "inverse": lambda b, x, y: b.inverse(x=y),
    "relu": lambda b, x, y: b.relu(x=x),
    "clip": lambda b, x, y: b.clip(x=x, alpha=-0.5, beta=0.5),
    "sign": lambda b, x, y: b.sign(x=x),
    "log": lambda b, x, y: b.log(x=y),
    "erf": lambda b, x, y: b.erf(x=x),
    "silu": lambda b, x, y: b.silu(x=x),
    "gelu": lambda b, x, y: b.gelu(x=x, mode="EXACT"),
    "softplus": lambda b, x, y: b.softplus(x=x),
    "sin": lambda b, x, y: b.sin(x=x),
    "concat": lambda b, x, y: b.concat(values=(x, y), axis=1),
    "split": lambda b, x, y: b.sub(x=_halves(b, x)[0], y=_halves(b, y)[1]),
    "pad": lambda b, x, y: b.pad(x=x, pad=np.array([0, 0, 0, 64, 0, 0, 0, 0], np.int32)),
    "slice_by_index": lambda b, x, y: b.slice_by_index(x=x, begin=np.array([0, 0, 0, 0], np.int32), end=np.array([1, 32, 1, 64], np.int32)),
    "reverse": lambda b, x, y: b.reverse(x=x, axes=np.array([1], np.int32)),
    "reduce_mean": lambda b, x, y: b.mul(x=x, y=b.reduce_mean(x=y, axes=(1,), keep_dims=True)),
    "reduce_min": lambda b, x, y: b.mul(x=y, y=b.reduce_min(x=x, axes=(3,), keep_dims=True)),
    "layer_norm": lambda b, x, y: b.layer_norm(x=x, axes=(1,), epsilon=1e-5),
    "select": lambda b, x, y: b.select(cond=b.greater(x=x, y=0.0), a=x, b=y),
    "gather": lambda b, x, y: b.gather(x=x, indices=np.arange(63, -1, -1, dtype=np.int32), axis=1),
    "cumsum": lambda b, x, y: b.cumsum(x=x, axis=1),
    "cast": lambda b, x, y: b.cast(x=b.cast(x=x, dtype="fp32"), dtype="fp16"),
    "linear": lambda b, x, y: b.reshape(x=b.linear(x=b.reshape(x=x, shape=(64, 64)), weight=_weights(64, 64)), shape=SHAPE),
    "scaled_dot_product_attention": _attention,
    "conv, 3 x 3": lambda b, x, y: b.conv(x=x, weight=_weights(64, 64, 3, 3), pad_type="same"),
    "conv, groups": lambda b, x, y: b.conv(x=x, weight=_weights(64, 16, 1, 1), groups=4),
    "conv, bias": lambda b, x, y: b.conv(x=x, weight=_weights(64, 64, 1, 1), bias=_weights(64)),
    "conv, weights of run time": lambda b, x, y: b.conv(x=x, weight=b.reshape(x=y, shape=(64, 64, 1, 1))),
    "tile": lambda b, x, y: b.tile(x=x, reps=np.array([1, 2, 1, 1], np.int32)),
}
