"""`torchane inspect FILE`: what Apple's tools left, and what a chip would say to it."""

import json
from pathlib import Path

import click

from torchane.cli.options import Command, takes
from torchane.cli.signals import load
from torchane.errors import TorchaneError


@click.command("inspect", cls=Command)
@click.argument("file", type=click.Path(path_type=Path))
@takes("inspect")
def command(
    file: Path,
    with_ops: bool,
    with_weights: bool,
    chip: str | None,
    other: Path | None,
    graph: Path | None,
    function: str | None,
    as_json: bool,
) -> None:
    """Show what FILE is and what it holds. Nothing in it is executed.

    FILE is MIL text, a .mlmodelc or .mlpackage folder, a .mlmodel, a .hwx, an E5 bundle or descriptor, or a weight
    file; its content tells which.

    \b
      torchane inspect model.mlmodelc
      torchane inspect model.mil --chip m4 --graph model.svg
      torchane inspect before.mil --diff after.mil
      torchane inspect model.hwx --ops
    """
    inspection = load("torchane.inspect.describe").Inspection(file)
    chosen = None if chip is None else load("torchane.runtime.ane.doctor.record").probed(chip)
    found = inspection.to_dict(with_ops=with_ops, with_weights=with_weights)
    if chosen is not None:
        found["chip"] = inspection.on_chip(chosen)
    if other is not None:
        found["diff"] = inspection.differences(type(inspection)(other))
    if graph is not None:
        refused = {refusal["name"]: refusal["reason"] for refusal in found.get("chip", {}).get("refusals", ())}
        program = inspection.require_program("--graph")
        _write(graph, load("torchane.inspect.picture").to_svg(program, function=function, refused=refused))
        found["graph"] = str(graph)
    if as_json:
        click.echo(json.dumps(found))
    else:
        load("torchane.cli.inspect_view").show(found, with_ops=with_ops)


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise TorchaneError(f"{path}: the picture cannot be written: {error.strerror or error}.") from error
