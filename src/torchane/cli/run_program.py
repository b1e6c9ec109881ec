"""`torchane run model.mil --input x.npy --output y.npy`: any MIL program, here and now.

The module is not called `run`: as an attribute of `torchane.cli` it would hide the function of that name.
"""

import json
from pathlib import Path

import click

from torchane.cli.options import Command
from torchane.cli.signals import load

#: The names in mil.evaluate.ARITHMETICS, which would load NumPy.
ARITHMETICS = ("exact", "ideal", "engine")


@click.command("run", cls=Command)
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--input", "inputs", multiple=True, metavar="[NAME=]X.npy",
              help="An input's value. The name may be left out where the program has one input. Repeatable.")  # fmt: skip
@click.option("--output", "outputs", multiple=True, metavar="[NAME=]Y.npy",
              help="Where to write an output. The name may be left out where there is one output. Repeatable.")  # fmt: skip
@click.option("--function", metavar="NAME", help="Which function; if not said the only one, the default one, or main.")
@click.option("--arithmetic", type=click.Choice(ARITHMETICS), default="exact", show_default=True,
              help="exact: each result is rounded once. engine: as the chip is thought to compute. ideal: float64 "
                   "from end to end, all in NumPy.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="One JSON object on standard output instead of lines.")
def command(
    file: Path,
    inputs: tuple[str, ...],
    outputs: tuple[str, ...],
    function: str | None,
    arithmetic: str,
    as_json: bool,
) -> None:
    """Run the program in FILE (MIL text, .mlmodelc, .mlpackage or .mlmodel) with its weights.

    The twin runs it. An op that the twin has no kernel for (fp32, integers, rarer ops) goes through its slow NumPy
    rule, and standard error names it and says why. States begin as zeros.

    \b
      torchane run model.mil --input x.npy --output y.npy
      torchane run model.mlmodelc --input audio=a.npy --input state=s.npy --output probability=p.npy --json
    """
    running = load("torchane.cli.running")
    done = running.run(file, inputs, outputs, function=function, arithmetic=arithmetic)
    notice = done.notice()
    if notice is not None:
        click.echo(notice, err=True)
    if as_json:
        click.echo(json.dumps(done.to_dict()))
        return
    for name, output in done.outputs.items():
        click.echo(f"{name}: {output.describe()}")
