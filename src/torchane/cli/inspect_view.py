"""What `torchane inspect` found, as tables for a person."""

import json
import re
import sys
from collections.abc import Iterable, Mapping
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

_WIDE = 10_000
#: How many files that were not read are named.
_NAMED = 8
_UNITS = ("bytes", "KB", "MB", "GB", "TB")
_SCALES = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def show(found: Mapping[str, Any], *, with_ops: bool, console: Console | None = None) -> None:
    """Prints to standard output; where that is no terminal, a row of a table stays on one line."""
    out = console or Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else _WIDE)
    out.print(f"[bold]{escape(found['path'])}[/bold]: {found['kind']}, {size(found['size_bytes'])}")
    if found.get("model"):
        _show_model(out, found["model"], with_program="program" in found)
    if "program" in found:
        _show_program(out, found["program"])
    for stage in found.get("stages", ()):
        out.print()
        show(stage, with_ops=with_ops, console=out)
    if "weights_missing" in found:
        out.print(f"[yellow]Without its weights:[/yellow] {escape(found['weights_missing'])}")
    if found.get("not_read"):
        names = found["not_read"]
        more = f" and {len(names) - _NAMED:,} more" if len(names) > _NAMED else ""
        out.print(f"Not read: {escape(', '.join(names[:_NAMED]))}{more}.")
    if "hwx" in found:
        _show_hwx(out, found["hwx"], with_ops)
    if "e5" in found:
        _show_e5(out, found["e5"])
    if "records" in found:
        _show_records(out, found)
    if "chip" in found:
        _show_chip(out, found["chip"])
    if "diff" in found:
        _show_diff(out, found["diff"])
    if "graph" in found:
        out.print(f"The picture is {escape(found['graph'])}.")


def size(count: int) -> str:
    """Bytes in the unit that fits."""
    value, unit = float(count), 0
    while value >= 1000 and unit + 1 < len(_UNITS):
        value, unit = value / 1000, unit + 1
    return f"{count:,} bytes" if unit == 0 else f"{value:.3g} {_UNITS[unit]}"


def scaled(count: int) -> str:
    """A large number with its scale."""
    for scale, letter in _SCALES:
        if count >= scale:
            return f"{count / scale:.3g} {letter}"
    return str(count)


def _show_records(out: Console, found: Mapping[str, Any]) -> None:
    records, counted = found["records"], found["records_counted"]
    rows = (
        (f"{r['offset']:,}", f"{r['data']:,}", r["dtype"], f"{r['values']:,}", size(r["bytes"])) for r in records
    )
    _table(out, f"{len(records)} records", ("offset", "data", ">dtype", ">values", ">size"), rows)
    if len(records) > counted:
        out.print(f"[yellow]The header counts {counted:,} of them.[/yellow]")
    for fault in found["faults"]:
        out.print(f"[yellow]{escape(fault)}[/yellow]")


def _show_model(out: Console, model: Mapping[str, Any], *, with_program: bool) -> None:
    version = model.get("specification_version", model.get("specificationVersion", "?"))
    kind = model.get("kind") or model.get("modelType")
    about = ", ".join(_said(key, value) for key, value in model.get("metadata", model).items() if key not in _APART)
    out.print(f"Specification {version}{', ' + escape(kind) if kind else ''}.{' ' + escape(about) if about else ''}")
    _show_ports(out, model.get("description", {}), with_program)
    for name, description in model.get("functions", {}).items():
        out.print(f"[bold]{escape(name)}[/bold]")
        _show_ports(out, description, with_program)
    if "layers" in model:
        out.print("  " + escape(_said("layers", model["layers"])))
    for dropped in model.get("dropped", ()):
        out.print(f"[yellow]Not read:[/yellow] {escape(dropped)}")


#: What of a summary has a place of its own.
_APART = ("specificationVersion", "modelType", "description", "layers")


def _said(key: str, value: Any) -> str:
    """A pair of a summary in one line."""
    if isinstance(value, Mapping):
        value = " ".join(f"{inner} {value[inner]}" for inner in value)
    return f"{key}: {value}"


#: Ports that a program describes just as well.
_PLAIN_PORT = re.compile(r"\w+ \[[0-9, ]*\]|\w+ \([^()]*\)")


def _show_ports(out: Console, description: Mapping[str, Any], with_program: bool) -> None:
    """The ports of a model; beside a program only what it cannot say of them: flexible shapes, images, defaults."""
    for what, ports in description.items():
        if what == "predicted":
            out.print(f"  predicts {escape(', '.join(ports))}")
            continue
        for name, said in ports.items():
            if not with_program or _PLAIN_PORT.fullmatch(said) is None:
                out.print(f"  {what[:-1]:<7} {escape(name)}: {escape(said)}")


def _show_program(out: Console, program: Mapping[str, Any]) -> None:
    made_by = ", ".join(f"{key} {value}" for key, value in program["build_info"].items() if value)
    out.print(f"program({program['version']}){escape(', ' + made_by if made_by else '')}")
    if program["fault"] is not None:
        out.print(f"[red]Not well formed:[/red] {escape(program['fault'])}")
    default = program.get("default_function")
    for function in program["functions"]:
        chosen = ", the default function" if function["name"] == default else ""
        out.print(f"\n[bold]{escape(function['name'])}[/bold]<{function['opset']}>{chosen}")
        for what in ("inputs", "states", "outputs"):
            for name, type_ in function[what]:
                out.print(f"  {what[:-1]:<7} {escape(name)}: {escape(type_)}")
        for name, value in function["attributes"].items():
            out.print(f"  {escape(name)}: {escape(json.dumps(value))}")
        ops = function["ops"]
        out.print(f"  {sum(ops.values()):,} ops: " + ", ".join(f"{kind} {count:,}" for kind, count in ops.items()))
        unsized = f" and {function['unsized']} ops of open sizes" if function["unsized"] else ""
        out.print(
            f"  {scaled(function['parameters'])} parameters, {function['constants']:,} const statements, "
            f"{size(function['constant_bytes'])} of constants, {scaled(function['macs'])} multiply-adds a run{unsized}"
        )
        if function["unknown"]:
            out.print(
                f"  [yellow]ops that torchane has no rules for:[/yellow] {escape(', '.join(function['unknown']))}"
            )
        if "lines" in function:
            rows = (
                (line["name"], line["kind"], ", ".join(line["results"]), f"{line['macs']:,}")
                for line in function["lines"]
            )
            _table(out, "ops", ("name", "op", "result", ">multiply-adds"), rows)
        if "weights" in function:
            rows = ((c["name"], c["type"], size(c["size_bytes"]), c["place"]) for c in function["weights"])
            _table(out, "constants", ("name", "type", ">size", "place"), rows)


def _show_chip(out: Console, chip: Mapping[str, Any]) -> None:
    refused, doubtful, warned = chip["refusals"], chip["doubts"], chip["warnings"]
    verdict = _VERDICTS[chip["verdict"]].format(len(refused))
    doubted = f", doubts: {len(doubtful)}" if doubtful else ""
    out.print(f"\n{escape(chip['title'] or chip['name'])}: {verdict}{doubted}, {len(warned)} warnings")
    columns = ("what", "verdict", "why", "what to do", "source")
    for title, found in (("refused", refused), ("doubts: reports disagree, or nobody has tried", doubtful), ("warnings", warned)):
        if found:
            rows = ((_within(r), r["verdict"], r["reason"], r["do"], f"{r['source']}; {r['certainty']}") for r in found)
            _table(out, title, columns, rows)
    rows = ((kind, op["verdict"], f"{op['source']}; {op['certainty']}") for kind, op in chip["ops"].items())
    _table(out, "ops on this chip", ("op", "verdict", "source"), rows)


_VERDICTS = {
    "takes": "[green]takes it[/green]",
    "refuses": "[red]refuses {}[/red]",
    "reports disagree": "[yellow]reports disagree whether it takes it[/yellow]",
    "unknown": "[yellow]nobody has reported whether it takes it[/yellow]",
}


def _within(refusal: Mapping[str, str]) -> str:
    """What is refused, with its function where there are several."""
    return f"{refusal['function']}: {refusal['name']}" if "function" in refusal else refusal["name"]


def _show_diff(out: Console, differences: list[Mapping[str, str]]) -> None:
    out.print(f"\nDifferences: {len(differences)}" if differences else "\nThe programs do the same.")
    styles = {"changed": ("~", "yellow"), "added": ("+", "green"), "removed": ("-", "red")}
    for difference in differences:
        sign, style = styles[difference["change"]]
        what = f": {difference['what']}" if difference["what"] else ""
        out.print(f"[{style}]{sign}[/{style}] {escape(difference['where'] + what)}")


def _show_hwx(out: Console, hwx: Mapping[str, Any], with_ops: bool) -> None:
    chips = f" ({hwx['chips']})" if hwx["chips"] else ""
    out.print(
        f"Target {hwx['target'] or '?'}{chips}, subtype {hwx['cpu_subtype']}, tasks of version {hwx['task_version']}"
    )
    out.print(escape(" ".join(hwx["compiler"])))
    rows = (
        (port["name"], port["direction"], port["element"], shown(port["shape"]), shown(port["strides_bytes"]),
         f"{port['size_bytes']:,}", "?" if port["address"] is None else f"{port['address']:#x}")
        for port in hwx["ports"]
    )  # fmt: skip
    columns = ("port", "", "element", "N C H W D", "strides", ">bytes", "address")
    _table(out, "ports", columns, rows)
    out.print(
        f"{len(hwx['weight_tiles'])} weight tiles, {size(hwx['weight_section_bytes'])} of sections for weights, "
        f"{hwx['relocations']} relocations, about {scaled(hwx['macs'])} multiply-adds"
    )
    if hwx["tables"]:
        out.print(f"{hwx['tables']} tasks read the table of a function where others read weights")
    if hwx["unread_task_bytes"]:
        out.print(f"[yellow]{hwx['unread_task_bytes']:,} bytes of the sections for tasks could not be read as tasks.[/yellow]")
    for task in hwx["tasks"]:
        sizes = ", ".join(f"{name} {value}" for name, value in task.get("sizes", {}).items())
        out.print(f"\n[bold]task {task['index']}[/bold] at byte {task['offset']:,}: {', '.join(task['blocks'])}")
        does = ", ".join(f"{name} {word}" for name, word in task["does"].items())
        out.print(f"  {sizes}; {task['unknown_words']} words outside packets")
        if does:
            out.print(f"  {escape(does)}")
        if with_ops:
            header = (("header", word["name"], "", word["value"], fields(word)) for word in task["header"])
            writes = ((w["block"], w["name"], w["address"], w["value"], fields(w)) for w in task["registers"])
            _table(out, "registers", ("block", "register", "address", "value", "fields"), [*header, *writes])
    if with_ops:
        rows = ((f"{c['offset']:,}", c["command"], c["kind"], str(c.get("name", ""))) for c in hwx["commands"])
        _table(out, "load commands", (">offset", "code", "kind", "name"), rows)


def shown(numbers: Iterable[int]) -> str:
    return " ".join(map(str, numbers))


def fields(word: Mapping[str, Any]) -> str:
    return " ".join(f"{name}={value}" for name, value in word.get("fields", {}).items() if value)


def _show_e5(out: Console, found: Mapping[str, Any]) -> None:
    if "files" in found:
        rows = ((file["path"], file["what"], size(file["size_bytes"])) for file in found["files"])
        _table(out, "files", ("file", "what", ">size"), rows)
        for backend, count in found["backends"].items():
            time_ms = found["estimated_ms"].get(backend)
            took = "" if time_ms is None else f", estimated by Apple at {time_ms:.3g} ms"
            out.print(f"{count:,} ops on {escape(backend)}{took}")
        for fault in found["faults"]:
            out.print(f"[yellow]{escape(fault)}[/yellow]")
    for name, descriptor in found.get("descriptors", {"": found}).items():
        out.print(f"\n[bold]{escape(name or 'descriptor')}[/bold], format {descriptor['format_version']}")
        _table(out, "built", ("key", "value"), descriptor["build_info"])
        _table(out, "sections", ("name", ">kind"), ((s[0], str(s[1])) for s in descriptor["sections"]))
        out.print(f"{len(descriptor['symbol_names'])} symbols: {escape(', '.join(descriptor['symbol_names']))}")
        for voffset, place in descriptor["unknown"]:
            out.print(f"unknown field {voffset} at byte {place:,}")


def _table(out: Console, title: str, columns: Iterable[str], rows: Iterable[Iterable[str]]) -> None:
    """A column whose title begins with > is aligned to the right."""
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for column in columns:
        table.add_column(
            column.removeprefix(">"), justify="right" if column.startswith(">") else "left", overflow="fold"
        )
    for row in rows:
        table.add_row(*map(escape, row))
    out.print(table)
