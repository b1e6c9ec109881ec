"""What doctor looks at on an engine, check by check. Each takes an open device and gives a dict that JSON can hold.

group        what                                                            known from
ops          each op of `portable` in a small program                        chips/portable.toml
forms        of these ops, the forms that training steps are made of         -
arithmetic   the engine's rules, each in the one place where it shows        mil/engine
probes       what public reports disagree on                                 doctor/probes.py
times        a dispatch, staging, products of several shapes                 -
doubts       ops and forms beyond `portable`                                 doctor/doubts.py

`ok` is what a training run needs; the rest is for the reader.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from torchane import native
from torchane.mil.build import Builder
from torchane.mil.ir import Program, Var
from torchane.mil.types import FP16, TensorType
from torchane.runtime import power
from torchane.runtime.ane.device import AneDevice
from torchane.runtime.ane.doctor.doubts import DOUBT, DOUBTS, look
from torchane.runtime.ane.doctor.measure import SHAPE, Finding, adding, beside_the_twin, conv, repeated, square, timed
from torchane.runtime.ane.doctor.probes import PROBES

#: So long a meter is read, idle and busy.
POWER_S = 3.0


@dataclass(frozen=True)
class Check:
    """needed: without it the engine is not used. quick: part of a short look."""

    name: str
    group: str
    run: Callable[[AneDevice], Finding]
    needed: bool = False
    quick: bool = False


def all_checks() -> list[Check]:
    return [*_ops(), *_forms(), *_arithmetic(), *_probes(), *_times(), *_doubts()]


# Ops


def _ops() -> Iterator[Check]:
    for name, build in _op_programs().items():
        yield Check(f"op {name}", "ops", lambda device, build=build: _op(device, build), needed=True, quick=name in ("conv", "matmul", "softmax"))


def _op(device: AneDevice, build: Callable[[Builder, Var, Var], Var]) -> Finding:
    b = Builder()
    x, y = b.input("a0_x", SHAPE), b.input("a1_y", SHAPE)
    program = b.program(b.identity(x=build(b, x, y), name="z0_y"), b.add(x=x, y=y, name="z1_y"))
    rng = np.random.default_rng(0)
    arrays = {name: (rng.uniform(0.25, 2.0, SHAPE) * sign).astype(np.float16) for name, sign in (("a0_x", rng.choice([-1, 1], SHAPE)), ("a1_y", 1))}
    return beside_the_twin(device, program, arrays)


def _op_programs() -> dict[str, Callable[[Builder, Var, Var], Var]]:
    """Each op of the portable subset, of x (either sign) and y (positive), (1, 64, 1, 64) both."""
    weight = (np.random.default_rng(1).standard_normal((64, 64, 1, 1)) / 8).astype(np.float16)
    matrix = (1, 1, 64, 64)

    def product(b: Builder, x: Var, y: Var) -> Var:
        return b.reshape(x=b.matmul(x=b.reshape(x=x, shape=matrix), y=b.reshape(x=y, shape=matrix)), shape=SHAPE)

    return {
        "add": lambda b, x, y: b.add(x=x, y=y),
        "sub": lambda b, x, y: b.sub(x=x, y=y),
        "mul": lambda b, x, y: b.mul(x=x, y=y),
        "real_div": lambda b, x, y: b.real_div(x=x, y=y),
        "maximum": lambda b, x, y: b.maximum(x=x, y=y),
        "pow": lambda b, x, y: b.pow(x=y, y=-0.5),
        "sqrt": lambda b, x, y: b.sqrt(x=y),
        "exp": lambda b, x, y: b.exp(x=x),
        "tanh": lambda b, x, y: b.tanh(x=x),
        "sigmoid": lambda b, x, y: b.sigmoid(x=x),
        "conv": lambda b, x, y: b.conv(x=x, weight=weight),
        "matmul": product,
        "softmax": lambda b, x, y: b.softmax(x=x, axis=-1),
        "reduce_sum": lambda b, x, y: b.mul(x=x, y=b.reduce_sum(x=y, axes=(1,), keep_dims=True)),
        "reduce_max": lambda b, x, y: b.mul(x=y, y=b.reduce_max(x=x, axes=(3,), keep_dims=True)),
        "transpose": lambda b, x, y: b.transpose(x=x, perm=(0, 3, 2, 1)),
        "slice_by_size": lambda b, x, y: b.slice_by_size(x=x, begin=(0, 32, 0, 0), size=(1, 32, 1, 64)),
    }


def _forms() -> Iterator[Check]:
    for name, build in _form_programs().items():
        yield Check(f"form {name}", "forms", lambda device, build=build: _op(device, build), needed=True)


def _form_programs() -> dict[str, Callable[[Builder, Var, Var], Var]]:
    """Of the same x and y."""
    heads = (1, 4, 16, 64)
    matrix = (1, 1, 64, 64)
    weight = (np.random.default_rng(1).standard_normal(matrix) / 8).astype(np.float16)
    mask = np.triu(np.full(matrix, -1e4, np.float16), 1)

    def product(b: Builder, x: Var, y: Var, shape: tuple[int, ...] = matrix, **turned: bool) -> Var:
        return b.reshape(x=b.matmul(x=b.reshape(x=x, shape=shape), y=b.reshape(x=y, shape=shape), **turned), shape=SHAPE)

    def in_heads(b: Builder, x: Var, y: Var) -> Var:
        q, k = b.reshape(x=x, shape=heads), b.reshape(x=y, shape=heads)
        return b.matmul(x=b.matmul(x=q, y=k, transpose_y=True), y=k)

    return {
        "matmul, x turned": lambda b, x, y: product(b, x, y, transpose_x=True),
        "matmul, y turned": lambda b, x, y: product(b, x, y, transpose_y=True),
        "matmul, in heads": lambda b, x, y: b.reshape(x=in_heads(b, x, y), shape=SHAPE),
        "matmul, by a constant": lambda b, x, y: b.reshape(x=b.matmul(x=b.reshape(x=x, shape=matrix), y=weight), shape=SHAPE),
        "mul, by one number": lambda b, x, y: b.mul(x=x, y=b.reduce_max(x=b.slice_by_size(x=y, begin=(0, 0, 0, 0), size=(1, 1, 1, 64)), axes=(3,), keep_dims=True)),
        "mul, by a row": lambda b, x, y: b.mul(x=x, y=b.slice_by_size(x=y, begin=(0, 0, 0, 0), size=(1, 1, 1, 64))),
        "sub, a column": lambda b, x, y: b.sub(x=x, y=b.reduce_max(x=y, axes=(3,), keep_dims=True)),
        "real_div, of a constant": lambda b, x, y: b.real_div(x=1.0, y=y),
        "pow, squares": lambda b, x, y: b.pow(x=x, y=2.0),
        "softmax, masked": lambda b, x, y: b.reshape(x=b.softmax(x=b.add(x=b.reshape(x=x, shape=matrix), y=mask), axis=-1), shape=SHAPE),
        "reduce_sum, along rows": lambda b, x, y: b.mul(x=x, y=b.reduce_sum(x=y, axes=(3,), keep_dims=True)),
        "slice_by_size, columns": lambda b, x, y: b.slice_by_size(x=x, begin=(0, 0, 0, 0), size=(1, 64, 1, 32)),
        "transpose, heads behind rows": lambda b, x, y: b.reshape(x=b.transpose(x=b.reshape(x=x, shape=heads), perm=(0, 2, 1, 3)), shape=SHAPE),
    }


def _doubts() -> Iterator[Check]:
    for name, build in DOUBTS.items():
        yield Check(f"{DOUBT}{name}", "doubts", lambda device, build=build: look(device, build))


# Arithmetic


def _arithmetic() -> Iterator[Check]:
    yield Check("arithmetic product window", "arithmetic", _product_window)
    yield Check("arithmetic ceiling", "arithmetic", _ceiling)
    yield Check("arithmetic sum order", "arithmetic", _sum_order)
    for name in ("exp", "tanh", "sigmoid", "sqrt"):
        yield Check(f"arithmetic table of {name}", "arithmetic", lambda device, name=name: _table(device, name))


def _matmul(device: AneDevice, x: np.ndarray, y: np.ndarray) -> Finding:
    b = Builder()
    product = b.matmul(x=b.input("a0_x", x.shape), y=b.input("a1_y", y.shape), name="z0_y")
    return beside_the_twin(device, b.program(product), {"a0_x": x.astype(np.float16), "a1_y": y.astype(np.float16)})


def _product_window(device: AneDevice) -> Finding:
    """Products from 2^-30 to 2^2, one in each sum: those below about 2^-16 vanish in the engine's rules."""
    x, y = np.zeros((1, 1, 32, 32)), np.zeros((1, 1, 32, 32))
    np.fill_diagonal(x[0, 0], 1.375 * 2.0 ** -np.arange(0.0, 16.0, 0.5))
    np.fill_diagonal(y[0, 0], 1.125 * 2.0 ** (2 - np.arange(0.0, 16.0, 0.5)))
    return _matmul(device, x, y)


def _ceiling(device: AneDevice) -> Finding:
    """Sums that pass 32768 on their way, and come back or do not."""
    x = np.full((1, 1, 32, 32), 120.0)
    x[0, 0, 1::2, 16:] = -120.0
    return _matmul(device, x, np.full((1, 1, 32, 32), 16.0) + np.arange(32) % 8)


def _sum_order(device: AneDevice) -> Finding:
    """Sums of 1,024 products whose rounding depends on the order."""
    rng = np.random.default_rng(2)
    return _matmul(device, rng.standard_normal((1, 1, 32, 1024)), rng.standard_normal((1, 1, 1024, 32)))


def _table(device: AneDevice, name: str) -> Finding:
    """A function at every finite fp16 number."""
    patterns = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    x = np.where(np.isfinite(patterns), patterns, np.float16(0)).reshape(1, 64, 1, 1024)
    b = Builder()
    program = b.program(getattr(b, name)(x=b.input("a0_x", x.shape), name="z0_y"))
    return beside_the_twin(device, program, {"a0_x": x})


def _probes() -> Iterator[Check]:
    for probe in PROBES:
        yield Check(f"probe {(probe.__doc__ or '').split(':')[0]}", "probes", probe)


# Times


def _times() -> Iterator[Check]:
    yield Check("time of a dispatch", "times", lambda device: timed(device, adding(32), 0), quick=True)
    yield Check("time of staging", "times", _staging)
    yield Check("time of surfaces", "times", _surfaces)
    yield Check("time of weights", "times", _weights)
    yield Check("power", "times", _power)
    for size, width in ((256, 256), (512, 512), (1024, 512), (2048, 512)):
        yield Check(f"time of conv {size} x {size}, width {width}", "times", lambda device, s=size, w=width: timed(device, conv(s, w), 2 * s * s * w))
    for size in (256, 512, 1024):
        yield Check(f"time of matmul {size}", "times", lambda device, s=size: timed(device, square(s), 2 * s**3), quick=size == 512)


def _staging(device: AneDevice) -> Finding:
    """A million fp32 numbers rounded into a surface, and back."""
    surface = device.allocate(TensorType(FP16, (1, 1024, 1, 1024)))
    host = np.random.default_rng(0).standard_normal((1, 1024, 1, 1024)).astype(np.float32)
    back = np.empty_like(host)
    times = []
    for _ in range(5):
        start = time.perf_counter()
        native.stage(surface.array, host)
        middle = time.perf_counter()
        native.unstage(back, surface.array)
        times.append((middle - start, time.perf_counter() - middle))
    there, again = np.median(times, axis=0)
    return {"in, GB/s of fp32": round(host.nbytes / there / 1e9, 2), "out, GB/s of fp32": round(host.nbytes / again / 1e9, 2)}


def _surfaces(device: AneDevice) -> Finding:
    """16 MiB in, 16 MiB out, one addition: what lies beyond a dispatch is the surfaces' time."""
    return _rate(device, adding(8192, channels=1024), 2 * 2 * 1024 * 8192)


def _weights(device: AneDevice) -> Finding:
    """8 MiB of weights for 32 columns: what lies beyond a dispatch is the time to stream them."""
    return _rate(device, conv(2048, 32), 2 * 2048 * 2048)


def _rate(device: AneDevice, program: Program, size_bytes: int) -> Finding:
    """GB/s beyond the time of a dispatch that moves nothing; no rate where that cannot be told apart."""
    alone, found = timed(device, adding(32), 0), timed(device, program, 0)
    beyond_us = found["median us"] - alone["median us"]
    if beyond_us > 0.2 * alone["median us"]:
        found["GB/s"] = round(size_bytes / beyond_us / 1e3, 3)
    return found


def _power(device: AneDevice) -> Finding:
    """What a meter shows while the engine is idle, and while it multiplies."""
    run = repeated(device, conv(1024, 512))
    return power.beside_idle(run, POWER_S)
