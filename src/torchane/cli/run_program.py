"""`torchane run model.mil --input x.npy --output y.npy`: any MIL program, here and now.

The module is not called `run`: as an attribute of `torchane.cli` it would hide the function of that name.
"""

import json
from pathlib import Path

import click

from torchane.cli.options import Command, takes
from torchane.cli.signals import load


@click.command("run", cls=Command)
@click.argument("file", type=click.Path(path_type=Path))
@takes("run")
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
