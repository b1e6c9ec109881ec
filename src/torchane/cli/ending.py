"""How a command that trains ends: with what `--json` prints, and the exit code that says what stopped it."""

import json
from collections.abc import Callable, Mapping
from contextlib import closing
from typing import Any, Protocol

import click


class Ending(Protocol):
    """A reporter. lost: why nobody can hear it any more."""

    lost: Any

    def close(self) -> None: ...


def run_to_end(work: Callable[[], Mapping[str, Any]], progress: Ending, *, as_json: bool, counted: tuple[str, str]) -> None:
    """Runs `work` and closes `progress` whatever comes. counted: what the run counts, and its key in the summary.
    Raises what was lost, with where the checkpoint is, and click's Exit with 128 and the signal's number where one stopped it.
    """
    with closing(progress):
        summary = work()
    if as_json:
        click.echo(json.dumps(summary))
    if progress.lost is not None:
        what, key = counted
        raise type(progress.lost)(progress.lost.error, f"The run was ended by it, with a checkpoint: it is at {what} {summary[key]:,}.")
    if summary["interrupted"]:
        raise click.exceptions.Exit(128 + summary["signal"])
