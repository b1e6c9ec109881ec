"""`torchane cache`: what lies in the folders of lowered programs, of plans and of compiled programs, and clearing them."""

import json
from typing import Any

import click

from torchane.cli.options import Command, takes
from torchane.cli.signals import load


@click.command("cache", cls=Command)
@takes("cache")
def command(clear: bool, as_json: bool) -> None:
    """Show the folders of lowered and of compiled Neural Engine programs and of plans, or clear them.

    Lowered programs are what torch.compile made of a model's graphs, at most 1 GiB: another process that compiles the same
    model reads them. Plans are what `torchane plan --preset` prices, at most 64 MiB. Of both, those of another version of torchane or PyTorch
    go first. What the engine compiled lies beside them by
    macOS build, at most 4 GiB; after an update of macOS the older builds' programs are dead and go first. Clearing costs
    compilations, nothing else. TORCHANE_CACHE names another folder. Doctor's record and first light's stay.
    """
    said = {**_compiled(clear), "lowered": _lowered(clear), "plans": _plans(clear)}
    if as_json:
        click.echo(json.dumps(said))
        return
    for kind, found in (("lowered programs", said["lowered"]), ("plans", said["plans"]), ("programs", said)):
        if clear:
            click.echo(f"{found['removed']} {kind} removed from {found['folder']}.{_left(found)}")
        else:
            click.echo("\n".join(_shown(kind, found)))


def _lowered(clear: bool) -> dict[str, Any]:
    lowered = load("torchane.capture.lowered")
    return _kept(lowered.LoweredPrograms(lowered.default_root()), "programs", clear)


def _plans(clear: bool) -> dict[str, Any]:
    return _kept(load("torchane.cli.planned").kept_plans(), "plans", clear)


def _kept(store: Any, what: str, clear: bool) -> dict[str, Any]:
    removed = store.clear() if clear else 0
    entries = store.entries()
    return {
        "folder": str(store.root),
        "removed": removed,
        what: len(entries),
        "bytes": sum(entry.size_bytes for entry in entries),
        "of_other_versions": sum(not entry.is_current for entry in entries),
    }


def _compiled(clear: bool) -> dict[str, Any]:
    cache = load("torchane.runtime.ane.cache")
    store = cache.CompileCache(cache.default_root(), "none")
    removed = store.clear() if clear else 0
    found = cache.describe(store.entries())
    return {
        "folder": str(store.root), "removed": removed, "builds": {build: {"programs": n, "bytes": size} for build, (n, size) in found.items()}
    }  # fmt: skip


def _left(found: dict[str, Any]) -> str:
    return " Those that are left are in use." if any(found.get(what) for what in ("builds", "programs", "plans")) else ""


def _shown(kind: str, found: dict[str, Any]) -> list[str]:
    if "builds" in found:
        lines = [f"build {build}: {_size('programs', one)} in {found['folder']}" for build, one in found["builds"].items()]
        return lines or [f"{found['folder']} holds no compiled program."]
    what = kind.rpartition(" ")[2]
    if not found[what]:
        return [f"{found['folder']} holds no {kind.removesuffix('s')}."]
    others = f", {found['of_other_versions']} of other versions" if found["of_other_versions"] else ""
    return [f"{kind.removesuffix(' programs')}: {_size(what, found)} in {found['folder']}{others}"]


def _size(what: str, one: dict[str, Any]) -> str:
    return f"{one[what]} {what}, {one['bytes'] / 2**20:,.1f} MiB"
