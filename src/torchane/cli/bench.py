"""`torchane bench`: measurements, each of which writes down its conditions."""

import json
from pathlib import Path
from typing import Any

import click

from torchane.cli.options import Command, takes
from torchane.cli.signals import load
from torchane.errors import UsageError
from torchane.options import PYTORCH_VARIANTS


@click.group("bench")
def command() -> None:
    """Measure on this machine."""


@command.command("train-step", cls=Command)
@takes("bench train-step")
def train_step(device: str, preset: str, variants: tuple[str, ...], parts: bool, out: Path | None, as_json: bool, **options: int | None) -> None:
    """How long does one training step take, compared with PyTorch?

    Measures forward, loss, backward, clipping and fused AdamW on the device, and the same in PyTorch: eager and
    torch.compile (default and max-autotune), in float32 and under bf16 autocast. Each variant is a process of its own, so
    that peak memory can be told; their steps are interleaved, so that noise falls on all. A variant of PyTorch's that takes
    1.5 times as long as its best one is timed once, by itself; so are all that memory cannot hold beside each other. Where one
    of the first 20 losses of ours is more than 1 % from PyTorch's in fp32, the command fails after its table; twin-fast may be as
    far as PyTorch's own autocast to bf16 is.

    \b
    torchane bench train-step --preset stories15m
    torchane bench train-step --preset stories110m --batch-size 4 --seq-len 256 --parts --out results/
    torchane bench train-step --preset qwen3-0.6b --warmup 2 --rounds 2 --steps 1
    torchane bench train-step --variant twin --variant eager-fp32
    """
    bench = load("torchane.train.bench")
    if out is not None:
        bench.require_writable(out)
    fast = ("twin-fast",) if device == "twin" and load("torchane.native").has_fast() else ()
    report = bench.bench_train_step(
        preset,
        variants=variants or (device, *fast, *PYTORCH_VARIANTS),
        parts=parts,
        said=lambda text: click.echo(text, err=True),
        **options,
    )
    click.echo(bench.to_table(report), err=as_json)
    if out is not None:
        click.echo(f"written: {bench.save(report, out)}", err=True)
    if as_json:
        click.echo(json.dumps(report))
    bench.require_alike(report)


@command.command("first-step", cls=Command)
@takes("bench first-step")
def first_step(presets: tuple[str, ...], as_json: bool, **options: Any) -> None:
    """How long until the first training step is done, and where does it go?

    A process of its own for every preset: imports, building the model, capture, tracing, lowering, loading, and
    the second step, which compiles nothing.
    """
    bench = load("torchane.train.first_step")
    report = bench.bench_first_step(presets or ("tiny",), said=lambda text: click.echo(text, err=True), **options)
    click.echo(bench.to_table(report), err=as_json)
    if as_json:
        click.echo(json.dumps(report))


@command.command("layer", cls=Command)
@takes("bench layer")
def layer(shape: str, device: str, repeats: int, no_watts: bool, as_json: bool) -> None:
    """How long do forward, dx and dW of one Transformer layer take?

    A Llama block on random numbers. Times by the clock and inside dispatches, TFLOPS, the share of the chip's peak, and watts
    where a meter moves against rest: zeus, or powermetrics after `sudo -v`. What others published stands in its own column.
    """
    _show(load("torchane.train.bench_engine").bench_layer(shape, device=device, repeats=repeats, power_s=0.0 if no_watts else 3.0), as_json)


@command.command("peak", cls=Command)
@takes("bench peak")
def peak(device: str, sizes: str, depth: int, repeats: int, no_watts: bool, as_json: bool) -> None:
    """How fast can it multiply? Stacks of 1 x 1 convolutions and of matrix products, random numbers, resident surfaces."""
    wanted = [int(size) for size in sizes.split(",") if size.isdecimal()]
    if not wanted or any(size < 32 or size % 32 for size in wanted) or len(wanted) != len(sizes.split(",")):
        raise UsageError(f"--sizes {sizes}: write multiples of 32, such as 512,1024.")
    bench = load("torchane.train.bench_engine")
    _show(bench.bench_peak(device=device, repeats=repeats, power_s=0.0 if no_watts else 3.0, sizes=wanted, depth=depth), as_json)


def _show(report: dict[str, Any], as_json: bool) -> None:
    click.echo(load("torchane.train.bench_engine").to_table(report), err=as_json)
    if as_json:
        click.echo(json.dumps(report))
