"""`torchane plan`: what a program, a model's training step or a published schedule is predicted to take on a chip."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import click

from torchane.cli.options import Command, takes
from torchane.cli.signals import load
from torchane.errors import LegalityError, UsageError, nearest


@click.command("plan", cls=Command)
@click.argument("file", type=click.Path(path_type=Path), required=False)
@takes("plan")
def command(
    file: Path | None,
    chip: str | None,
    compare: str | None,
    function: str | None,
    preset: str | None,
    batch_size: int | None,
    seq_len: int | None,
    grad_accum: int | None,
    recompute: str,
    frozen: str,
    lora: int | None,
    memory_gb: float | None,
    timeline: Path | None,
    trace: Path | None,
    schedule: str | None,
    measured: Path | None,
    cache: str,
    anyway: bool,
    as_json: bool,
) -> None:
    """Predict time and energy on a Neural Engine that need not be here. Nothing is run, nothing is measured.

    Give one of: FILE (MIL text, .mlmodelc, .mlpackage, .mlmodel), --preset, --schedule; and --chip or --compare.
    Every number is predicted, from constants fitted to measurements that others published; its interval is made of the
    errors on measurements that were kept out of the fit (docs/cost-model.md).

    \b
      torchane plan model.mil --chip m4
      torchane plan --preset stories110m --batch-size 8 --seq-len 256 --compare m1,m4,m5
      torchane plan --schedule slv --chip m4 --json
    """
    _require_one(file, preset, schedule)
    _require_fitting(file, preset, function=function, batch_size=batch_size, seq_len=seq_len, grad_accum=grad_accum, anyway=anyway,
                     recompute=None if recompute == "none" else recompute, memory_gb=memory_gb, lora=lora,
                     frozen=None if frozen == "inputs" else frozen, cache=None if cache == "on" else cache,
                     timeline=timeline, trace=trace)  # fmt: skip
    if compare is not None and (timeline or trace):
        raise UsageError("--timeline and --trace show one chip. Write --chip NAME instead of --compare.")
    pricings = _pricings(chip, compare, measured)
    if file is not None:
        found = [_price_file(file, function, pricing, anyway or compare is not None) for pricing in pricings]
    elif preset is not None:
        steps = load("torchane.cli.plan_preset")
        step = steps.Step(preset, steps.config_of(preset), batch_size or 1, seq_len or 256, grad_accum or 1, lora, recompute, frozen, cache, memory_gb)
        found, planned = steps.price_preset(step, pricings)
        _draw(planned.graphs, pricings[-1], found[-1], timeline, trace)
    else:
        found = [_price_schedule(schedule, pricing) for pricing in pricings]
    view = load("torchane.cli.plan_view")
    view.show(found)
    if as_json:
        click.echo(json.dumps(found[0] if compare is None else {"compared": found}))


def _require_one(*ways: object) -> None:
    given = sum(way is not None for way in ways)
    if given != 1:
        raise UsageError(f"give one of FILE, --preset and --schedule; there {'are' if given else 'is'} {given or 'none'}.")


def _require_fitting(file: Path | None, preset: str | None, **options: object) -> None:
    """Options that belong to another way of asking are refused, not passed over."""
    for name, belongs in (("function", file), ("anyway", file), ("batch_size", preset), ("seq_len", preset), ("grad_accum", preset),
                          ("recompute", preset), ("memory_gb", preset), ("lora", preset), ("frozen", preset), ("cache", preset), ("timeline", preset), ("trace", preset)):  # fmt: skip
        if options[name] and belongs is None:
            raise UsageError(f"--{name.replace('_', '-')} goes with {'FILE' if name in ('function', 'anyway') else '--preset'}.")


def _pricings(chip: str | None, compare: str | None, measured: Path | None) -> Sequence[Any]:
    plan, points = load("torchane.plan"), load("torchane.chips.points")
    if chip is not None and compare is not None:
        raise UsageError(f"--chip and --compare both name chips. Write --chip {chip}, or --compare {compare} alone.")
    if chip is None and compare is None:
        raise UsageError(f"say --chip NAME or --compare NAME,NAME; there are {', '.join(points.machines())}.")
    listed = [chip] if chip is not None else str(compare).split(",")
    names = list(dict.fromkeys(name.strip() for name in listed if name.strip()))
    if not names:
        raise UsageError("no chip is named. Write --chip m4 or --compare m1,m4,m5.")
    record = load("torchane.runtime.ane.doctor.record").kept_measurements() if measured is None else plan.read_measurements(measured)
    if measured is not None and record.machine not in names:
        raise UsageError(f"{measured} is of {record.machine}, which is not asked for. Add it: --chip {record.machine}.")
    return [plan.pricing_for(name, record if record is not None and record.machine == name else None) for name in names]


def _price_file(file: Path, function: str | None, pricing: Any, anyway: bool) -> dict[str, Any]:
    chips = load("torchane.chips")
    program = load("torchane.inspect.recognize").load_program(file, with_weights=False)
    chosen = replace(program, functions=(load("torchane.mil.evaluate").function_of(program, function),))
    chip = load("torchane.runtime.ane.doctor.record").probed(pricing.name)
    refused, doubtful = chips.refusals(chosen, chip), chips.doubts(chosen, chip)
    if refused and not anyway:
        shown = "\n".join(f"  {finding}" for finding in _each_rule_first(refused)[:4])
        more = f"\n  and {len(refused) - 4} more" if len(refused) > 4 else ""
        raise LegalityError(
            f"{file}: {pricing.name} does not take this program.\n{shown}{more}\n{_elsewhere(chosen)} --anyway prices it all the same."
        )
    price = load("torchane.plan").price_program(chosen, pricing)
    return {
        "kind": "program", "predicted": True, "file": str(file), "verdict": _verdict(refused, doubtful),
        "refusals": [str(finding) for finding in refused], "doubts": [str(finding) for finding in doubtful], **price.to_dict(),
    }  # fmt: skip


def _elsewhere(program: Any) -> str:
    """Which chips take the program as it is. Where nobody has tried it is no advice, and is said to be so."""
    chips = load("torchane.chips")
    others = {name: chips.load(name) for name in chips.names() if name != chips.DEFAULT}
    open_to_it = [name for name, chip in others.items() if not chips.refusals(program, chip)]
    taken = [name for name in open_to_it if not chips.doubts(program, others[name])]
    if taken:
        return f"Taken by {', '.join(taken)}: --chip {taken[0]}."
    unknown = f" Reports on {', '.join(open_to_it)} are missing or disagree." if open_to_it else ""
    return f"No chip is known to take it as it is.{unknown}" if open_to_it else "No chip takes it as it is."


def _each_rule_first(findings: Sequence[Any]) -> list[Any]:
    """One finding of each rule before further ones: what is broken everywhere must not hide what is broken once."""
    first = {finding.rule: finding for finding in reversed(findings)}
    return [finding for finding in findings if first[finding.rule] is finding] + [finding for finding in findings if first[finding.rule] is not finding]


def _verdict(refused: Sequence[Any], doubtful: Sequence[Any]) -> str:
    if refused:
        return "refuses"
    values = {finding.verdict.value for finding in doubtful}
    return "reports disagree" if "reports disagree" in values else "unknown" if values else "takes"


def _draw(graphs: Sequence[Any], pricing: Any, price: Mapping[str, Any], timeline: Path | None, trace: Path | None) -> None:
    """Raises RunFolderError where a file cannot be written."""
    if timeline is None and trace is None:
        return
    drawing = load("torchane.plan.timeline")
    title = f"{price['preset']}, {price['batch_size'] * price['grad_accum']} x {price['seq_len']} tokens on {pricing.name}: predicted, not measured"
    drawing.draw(drawing.predicted_spans(graphs, pricing), title, timeline, trace)


def _price_schedule(name: str | None, pricing: Any) -> dict[str, Any]:
    schedules = load("torchane.plan.schedules").SCHEDULES
    if name not in schedules:
        raise UsageError(f"no schedule is called {name!r}{nearest(str(name), schedules)}. There are {', '.join(schedules)}.")
    schedule = schedules[name]
    staged, unstaged = schedule.surface_bytes
    price = load("torchane.plan.step").price_programs(
        [("", title, count, work) for title, count, work in schedule.programs], pricing, tokens=schedule.tokens,
        staged=staged, unstaged=unstaged, host_ops=(), loaded=len(schedule.programs),
    )  # fmt: skip
    figure = schedule.published.get(pricing.name)
    return {
        "kind": "schedule", "predicted": True, "schedule": name, "title": schedule.title,
        "published": None if figure is None else asdict(figure), **price.to_dict(),
    }  # fmt: skip
