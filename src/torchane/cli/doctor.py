"""`torchane doctor`: does the Neural Engine of this machine compute, and how? A table, a record, a report."""

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from torchane.cli.options import Command, takes
from torchane.cli.signals import load
from torchane.errors import UsageError


@click.command("doctor", cls=Command)
@takes("doctor")
def command(quick: bool, report: Path | None, compare: Path | None, as_json: bool) -> None:
    """Probe this machine's Neural Engine and say what it does.

    Everything runs in a child process: a crash or a hang of Apple's framework is a finding. Five minutes at most. Where all
    that a training run needs is right, --device auto takes the engine from then on. The report names the machine's model and
    software and what was found; no user, path or serial number. Attach it to an issue.

    \b
      torchane doctor
      torchane doctor --quick
      torchane doctor --compare their-m4.json
    """
    reports, comparison, examine = (load(f"torchane.runtime.ane.doctor.{name}") for name in ("report", "comparison", "examine"))
    other = None if compare is None else reports.read(compare)  # before minutes of probing
    target = report or Path("torchane-doctor.json")
    if not as_json:
        _require_writable(target)
        if compare is not None and target.exists() and target.samefile(compare):
            raise UsageError(f"{compare} is where this machine's report would be written. --report names another file for it.")
    framework, findings, missing = examine.examine(quick, lambda name, found: click.echo(f"  {name:36} {_told(name, found)}", err=as_json))
    made = reports.made(quick, missing, framework, findings)
    click.echo(_summary(made), err=as_json)
    different = None if other is None else comparison.compared(made, other)
    if different is not None:
        click.echo(f"\nCompared with {compare}:\n{comparison.to_text(different)}", err=as_json)
    if as_json:
        more = {} if different is None else {"compared": [asdict(one) for one in different]}
        click.echo(json.dumps({**json.loads(reports.to_text(made)), **more}))
    else:
        load("torchane.models.files").write_text(target, reports.to_text(made) + "\n")
        click.echo(f"The report is {target}.")
    if not quick and not missing:  # last: a cache that cannot be written costs no report
        load("torchane.runtime.ane.doctor.record").keep(made)
    elif quick and made.build:
        load("torchane.runtime.ane.doctor.quick_look").keep(made.build, made)


def _require_writable(target: Path) -> None:
    """Raises UsageError before minutes of probing."""
    if target.is_dir() or not os.access(target if target.exists() else target.parent, os.W_OK):
        raise UsageError(f"{target} cannot be written, and the report would be lost. --report names another file.")


def _told(name: str, found: dict[str, Any]) -> str:
    """One line of a finding. A rule of arithmetic that is another is no fault: nothing but the twin's likeness depends on it."""
    if "crashed" in found:
        return f"CRASHED ({found['crashed']}): {found.get('last words', '')}"
    if "hung" in found:
        return f"HUNG for {found['hung']:.0f} s"
    if "error" in found and found.get("ok") is False:
        return f"refused: {found['error']}"
    marks = ("as known", "OTHERWISE") if name.startswith("arithmetic ") else ("right", "WRONG")
    mark = {True: marks[0], False: marks[1]}.get(found.get("ok"), "")  # type: ignore[call-overload]
    return "  ".join(part for part in (mark, ", ".join(f"{key} {value}" for key, value in found.items() if key != "ok")) if part)


def _summary(report: Any) -> str:
    machine = report.machine
    twin = machine["twin"]
    lines = [
        f"{machine['chip'] or machine['architecture']}, {machine['system']} {machine['release']}, {machine['processors']} processors, "
        f"{machine['memory_gib']} GiB; torch {machine['torch']}, torchane {machine['torchane']}",
        *machine["power"],
    ]
    if report.missing:
        lines.append(f"Neural Engine: {report.missing}")
        lines.append(
            f"The twin runs the same programs on this processor: {twin['instruction set']} kernels, {twin['threads']} threads; --arithmetic engine "
            "gives it the engine's own rules, as far as they are known."
        )
        return "\n".join(lines)
    lines.append(f"Neural Engine: route {report.route}, build {report.build}")
    if report.failed:
        lines.append(f"Not right: {', '.join(report.failed)}. --device auto stays with the twin. Please attach the report to an issue.")
    elif report.works:
        lines.append("All that a training run needs is right: --device auto takes the engine from now on.")
    else:
        lines.append("Nothing that was looked at failed. The full look finds more, and is what --device auto goes by: torchane doctor.")
    return "\n".join(lines)
