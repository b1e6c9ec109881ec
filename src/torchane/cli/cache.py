"""`torchane cache`: what lies in the folder of compiled Neural Engine programs, and clearing it."""

import json
from typing import Any

import click

from torchane.cli.options import Command
from torchane.cli.signals import load


@click.command("cache", cls=Command)
@click.option("--clear", is_flag=True, help="Remove every program that no process is using.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object as the last line.")
def command(clear: bool, as_json: bool) -> None:
    """Show the folder of compiled Neural Engine programs, or clear it.

    What the engine compiled lies there by macOS build, at most 4 GiB; after an update of macOS the older builds' programs are
    dead and go first. Clearing costs compilations, nothing else. TORCHANE_CACHE names another folder. Doctor's record and
    first light's stay.
    """
    cache = load("torchane.runtime.ane.cache")
    store = cache.CompileCache(cache.default_root(), "none")
    removed = store.clear() if clear else 0
    found = cache.describe(store.entries())
    said: dict[str, Any] = {
        "folder": str(store.root), "removed": removed, "builds": {build: {"programs": n, "bytes": size} for build, (n, size) in found.items()}
    }  # fmt: skip
    if as_json:
        click.echo(json.dumps(said))
        return
    if clear:
        click.echo(f"{removed} programs removed from {store.root}." + (" Those that are left are in use." if found else ""))
    elif not found:
        click.echo(f"{store.root} holds no program.")
    for build, (count, size) in found.items():
        click.echo(f"build {build}: {count} programs, {size / 2**20:,.1f} MiB in {store.root}")
