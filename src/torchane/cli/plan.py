"""`torchane plan`: what a program, a model's training step or a published schedule is predicted to take on a chip."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import click

from torchane.cli.options import Command, takes
from torchane.cli.signals import load
from torchane.errors import DeviceError, LegalityError, RunFolderError, UsageError

#: Of the multiply-adds of a step that has a price.
_LEAST_IN_PROGRAMS = 0.99


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
    _require_fitting(file, preset, function=function, batch_size=batch_size, seq_len=seq_len, anyway=anyway,
                     recompute=None if recompute == "none" else recompute, memory_gb=memory_gb, lora=lora,
                     frozen=None if frozen == "inputs" else frozen, cache=None if cache == "on" else cache,
                     timeline=timeline, trace=trace)  # fmt: skip
    if compare is not None and (timeline or trace):
        raise UsageError("--timeline and --trace show one chip. Write --chip NAME instead of --compare.")
    pricings = _pricings(chip, compare, measured)
    if file is not None:
        found = [_price_file(file, function, pricing, anyway or compare is not None) for pricing in pricings]
    elif preset is not None:
        found, graphs = _price_preset(preset, batch_size or 1, seq_len or 256, pricings, memory_gb, lora, recompute=recompute, frozen=frozen, cache=cache)
        _draw(graphs, pricings[-1], found[-1], timeline, trace)
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
    for name, belongs in (("function", file), ("anyway", file), ("batch_size", preset), ("seq_len", preset),
                          ("recompute", preset), ("memory_gb", preset), ("lora", preset), ("frozen", preset), ("cache", preset), ("timeline", preset), ("trace", preset)):  # fmt: skip
        if options[name] and belongs is None:
            raise UsageError(f"--{name.replace('_', '-')} goes with {'FILE' if name in ('function', 'anyway') else '--preset'}.")


def _pricings(chip: str | None, compare: str | None, measured: Path | None) -> Sequence[Any]:
    plan, points = load("torchane.plan"), load("torchane.chips.points")
    if (chip is None) == (compare is None):
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
        taken = [name for name in chips.names() if name != chips.DEFAULT and not chips.refusals(chosen, chips.load(name))]
        shown = "\n".join(f"  {finding}" for finding in refused[:4])
        more = f"\n  and {len(refused) - 4} more" if len(refused) > 4 else ""
        other = f"Not refused by {', '.join(taken)}: --chip {taken[0]}." if taken else "No chip takes it as it is."
        raise LegalityError(
            f"{file}: {pricing.name} does not take this program.\n{shown}{more}\n{other} --anyway prices it all the same."
        )
    price = load("torchane.plan").price_program(chosen, pricing)
    return {
        "kind": "program", "predicted": True, "file": str(file), "verdict": _verdict(refused, doubtful),
        "refusals": [str(finding) for finding in refused], "doubts": [str(finding) for finding in doubtful], **price.to_dict(),
    }  # fmt: skip


def _verdict(refused: Sequence[Any], doubtful: Sequence[Any]) -> str:
    if refused:
        return "refuses"
    values = {finding.verdict.value for finding in doubtful}
    return "reports disagree" if "reports disagree" in values else "unknown" if values else "takes"


def _price_preset(
    name: str, batch_size: int, seq_len: int, pricings: Sequence[Any], memory_gb: float | None, lora: int | None, *, recompute: str, frozen: str,
    cache: str,
) -> tuple[list[dict[str, Any]], Sequence[Any]]:
    """A price for each machine, and the outlines of the last's plan. Machines that no step tells apart share one compilation."""
    points = load("torchane.chips.points")
    config = _config(name)
    longest = config.max_position_embeddings
    if seq_len > longest:
        raise UsageError(f"--seq-len {seq_len} is longer than {name} takes. Its longest is {longest}: --seq-len {longest}.")
    if frozen != "inputs" and lora is None:
        raise UsageError(f"--frozen {frozen} says what frozen weights are, and a preset that is trained whole has none. Add --lora RANK.")
    for pricing in pricings:
        load("torchane.passes").require_form(frozen, load("torchane.runtime.ane.doctor.record").probed(pricing.name))
    planning, step = load("torchane.cli.planned"), load("torchane.plan.step")
    found, known = [], {}
    for pricing in pricings:
        hardware, engine = points.machine(pricing.name), load("torchane.plan").pricing_for(pricing.name).engine
        alike = hardware.chip, hardware.clock_hz, engine  # all that a cut and the form of a product depend on
        if alike not in known:
            # an engine's arithmetic needs range control
            options = {"chip": pricing.name, "ranges": "on", "recompute": recompute, "frozen": frozen, "cache": cache}
            known[alike] = planning.planned_step(planning.Request(config, batch_size, seq_len, lora, options), cache=cache == "on")
        planned = known[alike]
        _require_in_programs(name, batch_size, seq_len, hardware.chip, planned.share_in_programs)
        if memory_gb is not None:
            _require_memory(f"{name} at {batch_size:,} x {seq_len:,} tokens", planned.memory, batch_size, memory_gb, recompute)
        price = step.price_step(planned.graphs, pricing, tokens=batch_size * seq_len)
        found.append({
            "kind": "step", "predicted": True, "preset": name, "batch_size": batch_size, "seq_len": seq_len,
            "recompute": recompute, "frozen": frozen, "lora": lora, "memory_bytes": planned.memory.to_dict(), **price.to_dict(),
        })  # fmt: skip
    return found, planned.graphs


def _draw(graphs: Sequence[Any], pricing: Any, price: Mapping[str, Any], timeline: Path | None, trace: Path | None) -> None:
    """Raises RunFolderError where a file cannot be written."""
    drawing = load("torchane.plan.timeline")
    if timeline is None and trace is None:
        return
    spans = drawing.predicted_spans(graphs, pricing)
    title = f"{price['preset']}, {price['batch_size']} x {price['seq_len']} tokens on {pricing.name}: predicted, not measured"
    try:
        if timeline is not None:
            timeline.write_text(drawing.to_svg(spans, title), encoding="utf-8")
        if trace is not None:
            trace.write_text(json.dumps(drawing.to_trace(spans, title)), encoding="utf-8")
    except OSError as error:
        raise RunFolderError(f"{error.filename} cannot be written: {error.strerror}. Choose another file.") from error


def _config(name: str) -> Any:
    """Of a preset, or of a folder with a Hugging Face config.json."""
    path = Path(name) / "config.json"
    if path.is_file():
        return load("torchane.models.config").read_config(load("torchane.models.files").read_json(path), source=str(path))
    return load("torchane.models.presets").preset(name).config


def _require_in_programs(name: str, batch_size: int, seq_len: int, chip: str, share: float) -> None:
    """A step whose products the host does has no price: only programs have one."""
    if share >= _LEAST_IN_PROGRAMS:
        return
    limit = load("torchane.chips").load(chip).widest_matrix
    fits = limit // seq_len
    held = f"programs of {chip} hold {share:.0%} of the multiply-adds"
    smaller = f"--batch-size {fits}" if 0 < fits < batch_size else f"--seq-len {limit}" if fits == 0 else "another chip, or --preset"
    raise LegalityError(
        f"{name} at {batch_size:,} x {seq_len:,} tokens: {held}, and PyTorch on the host would do the rest, which has no price. "
        f"{chip} takes {limit:,} rows or columns of a matrix. Try {smaller}."
    )


def _require_memory(what: str, needed: Any, batch_size: int, memory_gb: float, recompute: str) -> None:
    """Raises DeviceError with what would fit."""
    memory = load("torchane.plan.memory")
    available = int(memory_gb * 2**30)
    more = needed.total + memory.RESERVE_BYTES - available
    if more <= 0:
        return
    fits = memory.largest_batch(needed, batch_size, available)
    kept = "--recompute half or all, which keep less of the forward, or " if recompute != "all" and needed.saved > more else ""
    nearest = f"--batch-size {fits}" if fits else "a shorter --seq-len, a smaller --preset" if kept else "a smaller --preset"
    raise DeviceError(
        f"{what}: {more / 2**30:.2f} GiB more than {memory_gb:g} GB are needed. {needed}; and {memory.RESERVE_BYTES / 2**30:.2f} GiB to work in. "
        f"Try {kept}{nearest}."
    )


def _price_schedule(name: str | None, pricing: Any) -> dict[str, Any]:
    schedules = load("torchane.plan.schedules").SCHEDULES
    if name not in schedules:
        raise UsageError(f"no schedule is called {name!r}. There are {', '.join(schedules)}.")
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
