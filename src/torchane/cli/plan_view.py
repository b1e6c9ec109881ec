"""What `torchane plan` predicts, as tables for a person."""

import sys
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from torchane.cli.inspect_view import scaled, size

_WIDE = 10_000
_MOST_OPS = 30


def show(found: Sequence[Mapping[str, Any]], *, console: Console | None = None) -> None:
    """One price in full; several as a line each."""
    out = console or Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else _WIDE)
    if len(found) > 1:
        _compare(out, found)
        return
    price = found[0]
    {"program": _program, "step": _step, "schedule": _step}[price["kind"]](out, price)
    for said in price["outside"]:
        out.print(f"[yellow]Outside the data:[/yellow] {escape(said)}.")
    out.print(f"Predicted, not measured: docs/cost-model.md.{' Constants of this machine are measured.' if price['measured'] else ''}")


def _program(out: Console, price: Mapping[str, Any]) -> None:
    out.print(f"[bold]{escape(price['file'])}[/bold] on {price['machine']}: predicted {_ms(price)}, bound by {price['bound']}")
    out.print(
        f"energy of the engine's rail {_mj(price)}; of the processor {price['cpu_mj']:.3g} mJ ({_range(price['cpu_interval_mj'])}), "
        f"of the package {price['package_mj']:.3g} mJ ({_range(price['package_interval_mj'])})"
    )
    out.print(
        f"{price['dispatch_ms']:.3f} ms to start it, {price['surfaces_ms']:.3f} ms for {size(price['bytes_in'])} in and "
        f"{size(price['bytes_out'])} out, the rest in ops; {scaled(int(price['flops'] / 2))} multiply-adds, "
        f"{price['share_of_peak']:.1%} of the peak"
    )
    if price["wake_ms"] is not None:
        out.print(f"the first run after some seconds at rest: {price['wake_ms']:g} ms more (published)")
    out.print(f"verdict of {price['chip']}: {price['verdict']}")
    for title in ("refusals", "doubts"):
        for finding in price[title][:4]:
            out.print(f"  {escape(finding)}")
        if len(price[title]) > 4:
            out.print(f"  and {len(price[title]) - 4} more (torchane inspect --chip {price['chip']})")
    ordered = sorted(price["ops"], key=lambda op: -op["predicted_ms"])
    rows = (
        (op["name"], op["kind"], f"{op['predicted_ms']:.4f}", f"{op['predicted_mj']:.4f}", _bound(op), scaled(int(op["flops"] / 2)))
        for op in ordered[:_MOST_OPS]
    )
    _table(out, f"ops, the longest first, of {len(ordered)}", ("op", "kind", ">ms", ">mJ", "bound", ">multiply-adds"), rows)
    slow = [op["name"] for op in ordered if op["slow_multiple"]]
    if slow:
        out.print(
            f"[yellow]{escape(', '.join(slow[:4]))}: its weights are an exact multiple of 1 MiB in each core, which streams 1.8 to 3 "
            "times slower on this generation. Pad its outputs by 16.[/yellow]"
        )


_FROZEN = {"inputs": "inputs, as trained ones are", "reused": "inputs, staged for each use"}


def _bound(op: Mapping[str, Any]) -> str:
    return "hidden" if op["predicted_ms"] == 0 else op["bound"]


def _step(out: Console, price: Mapping[str, Any]) -> None:
    is_step = price["kind"] == "step"
    what = f"{price['preset']}, {_sequences(price)} x {price['seq_len']} tokens" if is_step else price["title"]
    out.print(f"[bold]{escape(what)}[/bold] on {price['machine']}: predicted {_ms(price)} a step of {price['tokens']:,} tokens")
    out.print(
        f"engine {price['engine_ms']:.3g} ms ({price['dispatches_per_step']} dispatches of {price['loaded_programs']} programs, "
        f"{price['dispatch_ms']:.3g} ms to start them), staging on the host {price['staging_ms']:.3g} ms, of which "
        f"{price['hidden_ms']:.3g} beside dispatches ({size(price['bytes_staged'])} in, {size(price['bytes_unstaged'])} out)"
    )
    out.print(
        f"{price['ms_per_256_tokens']:.3g} ms per 256 tokens ({_range(price['interval_ms_per_256_tokens'])}), "
        f"{price['mj_per_token']:.3g} mJ per token of the engine's rail ({_range(price['interval_mj_per_token'])}), "
        f"{scaled(int(price['flops'] / 2))} multiply-adds, {price['share_of_peak']:.1%} of the peak"
    )
    if is_step:
        _preset(out, price)
    else:
        _published(out, price)
    rows = (
        (p["graph"], p["name"], str(p["dispatches"]), scaled(int(p["dispatches"] * p["flops"] / 2)), f"{p['predicted_ms']:.2f}",
         f"{p['predicted_mj']:.2f}", p["bound"], f"{p['share_of_peak']:.0%}", size(p["bytes_in"]), size(p["bytes_out"]), size(p["padding_bytes"]))
        for p in sorted(price["programs"], key=lambda p: -p["predicted_ms"])
    )  # fmt: skip
    columns = ("graph", "program", ">dispatches", ">multiply-adds", ">ms", ">mJ", "bound", ">peak", ">in", ">out", ">padding")
    _table(out, "programs, all their dispatches together", columns, rows)


def _preset(out: Console, price: Mapping[str, Any]) -> None:
    memory = price["memory_bytes"]
    parts = ", ".join(f"{key} {size(count)}" for key, count in memory.items() if key != "total" and count)
    out.print(f"memory of a step with AdamW {size(memory['total'])}: {parts}")
    if price["lora"] is not None:
        out.print(f"trained: adapters of rank {price['lora']}; frozen weights: {_FROZEN.get(price['frozen'], price['frozen'] + ' constants')}")
    if price["recompute"] != "none":
        out.print(f"computed again in the backward: {price['recompute']} of what a layer would keep")
    if len(price["recompute_ms"]) > 1:
        out.print("compared: " + ", ".join(f"{recompute} {ms:.4g} ms" for recompute, ms in price["recompute_ms"].items()))
    for recompute, why in price["recompute_refused"].items():
        out.print(f"left out, --recompute {recompute}: {why}")
    if (apart := price["apart"]) is not None:
        out.print(
            f"merged into one batch; with loss.backward() after each of the {price['grad_accum']}: {_ms(apart)}, {apart['mj_per_token']:.3g} mJ per token, "
            f"{apart['dispatches_per_step']} dispatches, {size(apart['bytes_staged'])} staged, memory {size(apart['memory_bytes']['total'])}"
        )
    out.print(f"not priced: the optimizer{', and on the host:' if price['host_ops'] else ''}")
    for name, count in sorted(price["host_ops"].items()):
        out.print(f"  {count} {escape(name)}: {escape(price['host_reasons'][name])}")


def _sequences(price: Mapping[str, Any]) -> str:
    return str(price["batch_size"]) if price["grad_accum"] == 1 else f"{price['grad_accum']} micro-steps of {price['batch_size']}"


def _published(out: Console, price: Mapping[str, Any]) -> None:
    figure = price["published"]
    if figure is None:
        out.print(f"nobody has published this schedule on {price['machine']}")
        return
    engine = "not said" if figure["engine_ms"] is None else f"{_range(figure['engine_ms'])} ms"
    total = "not said" if figure["total_ms"] is None else f"{_range(figure['total_ms'])} ms with all that the processor does"
    out.print(f"published: engine {engine}; {total} ({escape(figure['source'])})")


def _compare(out: Console, found: Sequence[Mapping[str, Any]]) -> None:
    steps = found[0]["kind"] != "program"
    title = found[0].get("file") or found[0].get("preset") or found[0].get("title")
    out.print(f"[bold]{escape(str(title))}[/bold], predicted")
    rows = []
    for price in found:
        row = [price["machine"], f"{price['predicted_ms']:.4g}", _range(price["interval_ms"]), f"{price['predicted_mj']:.3g}"]
        if steps:
            row += [f"{price['ms_per_256_tokens']:.4g}", f"{price['mj_per_token']:.3g}", f"{price['share_of_peak']:.0%}"]
        else:
            row += [price["bound"], price["verdict"], f"{price['share_of_peak']:.0%}"]
        rows.append((*row, "; ".join(price["outside"])))
    last = (">ms per 256 tokens", ">mJ per token", ">peak") if steps else ("bound", "verdict", ">peak")
    _table(out, "", ("chip", ">ms", "interval", ">mJ", *last, "outside the data"), rows)
    out.print("Predicted, not measured: docs/cost-model.md.")


def _ms(price: Mapping[str, Any]) -> str:
    return f"{price['predicted_ms']:.4g} ms ({_range(price['interval_ms'])})"


def _mj(price: Mapping[str, Any]) -> str:
    return f"{price['predicted_mj']:.3g} mJ ({_range(price['interval_mj'])})"


def _range(pair: Sequence[float]) -> str:
    low, high = (f"{value:.3g}" for value in pair)
    return low if low == high else f"{low} to {high}"


def _table(out: Console, title: str, columns: Sequence[str], rows: Any) -> None:
    """A column whose title begins with > is aligned to the right."""
    table = Table(title=title or None, title_justify="left", box=None, pad_edge=False)
    for column in columns:
        table.add_column(column.removeprefix(">"), justify="right" if column.startswith(">") else "left", overflow="fold")
    for row in rows:
        table.add_row(*map(escape, row))
    out.print(table)
