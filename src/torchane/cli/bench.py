"""`torchane bench`: measurements, each of which writes down its conditions."""

import json
from typing import Any

import click

from torchane.cli.options import Command, number
from torchane.cli.signals import load
from torchane.models.presets import PRESETS

PYTORCH_VARIANTS = ("eager-fp32", "eager-bf16", "inductor-fp32", "inductor-bf16")


@click.group("bench")
def command() -> None:
    """Measure on this machine."""


@command.command("train-step", cls=Command)
@click.option("--preset", type=click.Choice(list(PRESETS)), default="tiny", show_default=True, help="The model.")
@click.option(
    "--device", type=click.Choice(("twin", "ane")), default="twin", show_default=True, help="What to measure."
)
@click.option(
    "--variant",
    "variants",
    multiple=True,
    type=click.Choice(("twin", "ane", *PYTORCH_VARIANTS)),
    help="Only this one; may be repeated.  [default: the device and all of PyTorch's]",
)
@number("--batch-size", help="[default: the preset's]")
@number("--seq-len", help="[default: the preset's]")
@number("--threads", help="CPU threads.  [default: all]")
@number("--warmup", default=3, show_default=True, help="Steps before the first timed one.")
@number("--rounds", default=5, show_default=True, help="Turns through all variants.")
@number("--steps", default=4, show_default=True, help="Timed steps a turn.")
@click.option("--json", "as_json", is_flag=True, help="The last line on standard output is one JSON object.")
def train_step(device: str, preset: str, variants: tuple[str, ...], as_json: bool, **options: int | None) -> None:
    """How long does one training step take, beside PyTorch?

    Measures forward, loss, backward, clipping and AdamW on the device, and the same in PyTorch: eager and
    torch.compile, in float32 and under bf16 autocast. Each variant is a process of its own, so that peak memory can
    be told; their steps are interleaved, so that noise falls on all. They all stay in memory until the end.
    """
    bench = load("torchane.train.bench")
    report = bench.bench_train_step(
        preset,
        variants=variants or (device, *PYTORCH_VARIANTS),
        said=lambda text: click.echo(text, err=True),
        **options,
    )
    click.echo(bench.to_table(report), err=as_json)
    if as_json:
        click.echo(json.dumps(report))


@command.command("first-step", cls=Command)
@click.option(
    "--preset",
    "presets",
    multiple=True,
    type=click.Choice(list(PRESETS)),
    help="The model; may be repeated.  [default: tiny]",
)
@click.option(
    "--device", type=click.Choice(("twin", "ane")), default="twin", show_default=True, help="What to compile for."
)
@number("--batch-size", help="[default: the preset's]")
@number("--seq-len", help="[default: the preset's]")
@number("--threads", default=2, show_default=True, help="CPU threads.")
@click.option("--json", "as_json", is_flag=True, help="The last line on standard output is one JSON object.")
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
