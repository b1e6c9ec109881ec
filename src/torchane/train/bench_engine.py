"""How fast is an engine?    torchane bench layer, torchane bench peak

layer    one Llama block on a device: its forward; the gradient of its input (dx); that and those of its weights (dx and dW)
peak     stacks of 1 x 1 convolutions with constant weights, and of products whose weight is an input

Fixed: random numbers, never zeros, which more than halve an engine's power; seed 0; weights 1 / sqrt(C). Median and 10th to 90th
percentile of repeated runs after two that are not counted. `device ms` is the time inside dispatches, `ms` all that a caller waits
for: staging and PyTorch's part too. FLOP are those of the programs' products. Watts are of the rail that a meter names, at work.
What others published stands in a column of its own.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from torchane.capture import backend
from torchane.chips.points import machine, machines
from torchane.errors import UsageError
from torchane.mil.build import Builder
from torchane.mil.ir import Program
from torchane.mil.name_constants import name_constants
from torchane.mil.save import emit
from torchane.models.config import LlamaConfig
from torchane.models.llama import LlamaDecoderLayer, rotary_tables
from torchane.runtime import power, wakeful
from torchane.runtime.ane.doctor.report import chip_name
from torchane.runtime.device import Device
from torchane.runtime.devices import open_device
from torchane.runtime.observers import Timer
from torchane.train.provenance import provenance

WARM_UP = 2
HEAD_DIM = 64

#: What others measured, by row: figure, who, chip, when.
PUBLISHED_LAYER = {
    "768,512": "9.3 ms a step, 1.78 TFLOPS: maderix/ANE, M4, as read 2026-11-28 (dW on the CPU beside it)",
}
PUBLISHED_PEAK = {
    "conv": "18.8 TFLOPS, 4.57 W, 4.1 TFLOPS/W: maderix/ANE part 4, M4, as read 2026-11-28; 16.8 TFLOPS: the same, M3 Pro",
    "matmul": "5.7 TFLOPS at 2048: maderix/ANE, M4, as read 2026-11-28; 8.1 TFLOPS at 2048: ANEForge, M6, macOS 27.0.1",
}


def bench_layer(shape: str = "768,512", *, device: str = "twin", repeats: int = 10, power_s: float = 3.0) -> dict[str, Any]:
    """shape: "DIM,SEQ". Raises UsageError for another, DeviceError for a device that is not there."""
    dim, seq_len = _shape(shape)
    opened, timer = open_device(device), Timer()
    rows = []
    for name, has_dw in (("dx", False), ("dx and dW", True)):
        run = _layer(dim, seq_len, opened, timer, has_dw)
        forward, backward = _measured(timer, run, repeats)
        watts = power.drawn(lambda run=run: [part() for part in run], power_s) if power_s else None  # type: ignore[misc]
        if not has_dw:
            rows.append({"what": "forward", **forward, "watts": None})
        rows.append({"what": name, **backward, "watts": None})
        rows.append({"what": f"forward, {name}", **_sum(forward, backward), "watts": watts})
    return _report("layer", shape, device, [_with_rates(row, device) for row in rows], PUBLISHED_LAYER.get(shape, ""), repeats)


def bench_peak(*, device: str = "twin", repeats: int = 20, power_s: float = 3.0, sizes: Sequence[int] = (512, 1024, 2048), depth: int = 8) -> dict[str, Any]:
    """sizes: channels, and columns as many. depth: of a stack."""
    opened = open_device(device)
    rows = []
    for kind, build in (("conv", conv_stack), ("matmul", matmul_stack)):
        for size in sizes:
            run, macs = _loaded(opened, build(size, depth))
            times = _times(run, repeats)
            watts = power.drawn(run, power_s) if power_s else None
            row = {"what": f"{kind} {size} x {size}, {depth} deep", **_spread(times), "device ms": statistics.median(times) * 1e3, "flop": 2 * macs}
            rows.append(_with_rates({**row, "dispatches": 1, "watts": watts, "published": PUBLISHED_PEAK[kind] if size == sizes[-1] else ""}, device))
    return _report("peak", f"{','.join(map(str, sizes))}", device, rows, "", repeats)


def conv_stack(size: int, depth: int) -> Program:
    """1 x 1 convolutions of `size` channels over `size` columns, constant weights."""
    rng, b = np.random.default_rng(0), Builder()
    value = b.input("a0_x", (1, size, 1, size))
    for _ in range(depth):
        value = b.conv(x=value, weight=(rng.standard_normal((size, size, 1, 1)) / size**0.5).astype(np.float16))
    return b.program(b.mul(x=value, y=1.0, name="z0_y"))


def matmul_stack(size: int, depth: int) -> Program:
    """Products of square matrices with one that is an input."""
    b = Builder()
    value, weight = b.input("a0_x", (1, 1, size, size)), b.input("a1_w", (1, 1, size, size))
    for _ in range(depth):
        value = b.matmul(x=value, y=weight)
    return b.program(b.mul(x=value, y=1.0, name="z0_y"))


def _loaded(device: Device, program: Program) -> tuple[Callable[[], None], int]:
    text, blobs = emit(name_constants(program))
    loaded = device.load(text, blobs, name="bench peak")
    given, results = ([device.allocate(port) for port in ports] for ports in (loaded.inputs, loaded.outputs))
    rng = np.random.default_rng(1)
    for index, buffer in enumerate(given):
        buffer.array[...] = rng.standard_normal(buffer.array.shape) / (buffer.array.shape[-1] ** 0.5 if index else 1)
    return lambda: device.run(loaded, given, results), loaded.stats.macs


class _Layer(nn.Module):
    def __init__(self, dim: int, seq_len: int):
        super().__init__()
        config = LlamaConfig(
            vocab_size=32, hidden_size=dim, intermediate_size=-(-dim * 8 // 3 // 64) * 64, num_hidden_layers=1, num_attention_heads=dim // HEAD_DIM,
            num_key_value_heads=dim // HEAD_DIM, max_position_embeddings=seq_len,
        )  # fmt: skip
        self.block = LlamaDecoderLayer(config, 0)
        for parameter in self.block.parameters():
            if parameter.dim() == 2:
                nn.init.normal_(parameter, std=parameter.shape[1] ** -0.5)
        cos, sin = rotary_tables(config)
        self.register_buffer("cos", cos[:seq_len], persistent=False)
        self.register_buffer("sin", sin[:seq_len], persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.block(x, self.cos, self.sin)


def _layer(dim: int, seq_len: int, device: Device, timer: Timer, has_dw: bool) -> tuple[Callable[[], None], Callable[[], None]]:
    """The forward of a compiled layer, and the backward that follows it."""
    torch.manual_seed(0)
    layer = _Layer(dim, seq_len).requires_grad_(has_dw)
    compiled = torch.compile(layer, backend=lambda graph, inputs: backend.ane(graph, inputs, options={"device": device, "observers": [timer]}), fullgraph=True)
    x = torch.randn(1, seq_len, dim, requires_grad=True)
    tangent = torch.randn(1, seq_len, dim) / seq_len
    held: list[Tensor] = []

    def forward() -> None:
        held[:] = [compiled(x)]

    def back() -> None:
        layer.zero_grad()
        x.grad = None
        held.pop().backward(tangent)

    return forward, back


def _measured(timer: Timer, run: tuple[Callable[[], None], ...], repeats: int) -> list[dict[str, Any]]:
    found: list[list[tuple[float, float, int, int]]] = [[] for _ in run]
    for turn in range(WARM_UP + repeats):
        for part, kept in zip(run, found, strict=True):
            timer.reset()
            start = time.perf_counter()
            part()
            elapsed_s = time.perf_counter() - start
            if turn >= WARM_UP:
                kept.append((elapsed_s, timer.device_s, timer.macs, timer.runs))
    return [
        {**_spread([one[0] for one in kept]), "device ms": statistics.median(one[1] for one in kept) * 1e3, "flop": 2 * kept[-1][2], "dispatches": kept[-1][3]}
        for kept in found
    ]


def _times(run: Callable[[], None], repeats: int) -> list[float]:
    times = []
    for turn in range(WARM_UP + repeats):
        start = time.perf_counter()
        run()
        if turn >= WARM_UP:
            times.append(time.perf_counter() - start)
    return times


def _spread(times: list[float]) -> dict[str, Any]:
    low, high = np.percentile(times, (10, 90))
    return {"ms": statistics.median(times) * 1e3, "ms_p10": float(low) * 1e3, "ms_p90": float(high) * 1e3}


def _sum(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    return {key: value + other[key] for key, value in one.items()}


def _with_rates(row: dict[str, Any], device: str) -> dict[str, Any]:
    """TFLOPS of the time inside dispatches, the share of an engine's peak, watts of what moved; or why there is none."""
    rate = row["flop"] / (row["device ms"] / 1e3)
    name = chip_name()
    peak = machine(name).peak_flops_per_s if device == "ane" and name in machines() else None
    row["TFLOPS"] = rate / 1e12
    row["share of peak"] = rate / peak if peak else None
    row["no share"] = "" if peak else "the twin is no engine" if device != "ane" else f"no clock is known of {name or 'this chip'}"
    watts = row.pop("watts")
    if watts is not None:
        row["meter"], row["watts"] = watts.meter, watts.moved
        row["rest and work, W"] = {rail: [watts.rest_w.get(rail, 0.0), drawn] for rail, drawn in watts.work_w.items()}
        row["no watts"] = "" if watts.moved else "; ".join(f"{meter}: {why}" for meter, why in watts.why.items())
        own = watts.moved.get("ANE" if device == "ane" else "package")
        # over the time that was waited for, as the meter sees it
        row["TFLOPS/W"] = row["flop"] / (row["ms"] / 1e3) / 1e12 / own if own else None
    return row


def _report(kind: str, shape: str, device: str, rows: list[dict[str, Any]], published: str, repeats: int) -> dict[str, Any]:
    return {"bench": kind, "shape": shape, "device": device, "repeats": repeats, "published": published, "state": wakeful.state(), **provenance(), "results": rows}


def _shape(text: str) -> tuple[int, int]:
    try:
        dim, seq_len = (int(part) for part in text.split(","))
    except ValueError:
        raise UsageError(f"--shape {text}: write DIM,SEQ, such as 768,512.") from None
    if dim < HEAD_DIM or dim % HEAD_DIM or seq_len < 32 or seq_len % 32:
        raise UsageError(f"--shape {text}: DIM must be a multiple of {HEAD_DIM} (heads are that wide) and SEQ one of 32 (rows of surfaces).")
    return dim, seq_len


def _rails(row: dict[str, Any]) -> str:
    """Every rail at work and at rest; those that do not move say so: they tell nothing."""
    return ", ".join(
        f"{rail} {work:.2f} W ({rest:.2f} at rest{'' if rail in row['watts'] else '; it does not move'})" for rail, (rest, work) in row["rest and work, W"].items()
    )


def to_table(report: dict[str, Any]) -> str:
    """The results as lines of text."""
    lines = [f"bench {report['bench']} {report['shape']} on {report['device']}, {report['platform']}, {report['repeats']} repeats", *report["state"]]
    if report["device"] == "twin":
        lines.append("Measured: the twin's speed on this CPU. It says nothing about an engine's.")
    lines.append(f"{'':28}{'ms':>9}{'10-90 %':>18}{'device ms':>11}{'TFLOPS':>9}{'of peak':>9}{'TFLOPS/W':>10}  published (not here)")
    for row in report["results"]:
        spread = f"{row['ms_p10']:.2f}-{row['ms_p90']:.2f}"
        share = f"{row['share of peak']:.1%}" if row["share of peak"] is not None else "n/a"
        efficiency = f"{row['TFLOPS/W']:.3f}" if row.get("TFLOPS/W") else "n/a"
        published = row.get("published") or (report["published"] if row is report["results"][-1] else "")
        lines.append(f"{row['what']:28}{row['ms']:>9.2f}{spread:>18}{row['device ms']:>11.2f}{row['TFLOPS']:>9.4f}{share:>9}{efficiency:>10}  {published}")
        if row.get("watts"):
            lines.append(f"{'':28}{row['meter']}: {_rails(row)}")
    for what, why in (("share of peak", {row["no share"] for row in report["results"]}), ("watts", {row.get("no watts", "") for row in report["results"]})):
        lines += [f"{what} n/a: {reason}" for reason in sorted(why - {""})]
    return "\n".join(lines)
