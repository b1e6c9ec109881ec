"""Does every preset have a plan for every machine, and does the twin with that chip's rules take each of its programs?

    python benchmarks/plans.py [--preset tiny ...] [--batch-size 1] [--seq-len 256] [--out benchmarks/results/plans-1x256.json]

Trained whole, with adapters of rank 8 beside weights that are inputs, and beside weights that are fp16 constants. A preset is traced once a way; the cut, the lowering and
the price are a machine's, by the code of `torchane plan --preset` (`price_preset`, whose refusals count). Each different program is loaded by a twin that refuses what
the chip refuses, frozen weights as zeros, and let go. Every number is predicted; nothing is timed. The last line of output is JSON.
"""

import argparse
import hashlib
import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from torchane import chips
from torchane.abi.frozen import FROZEN_PATH, frozen_file
from torchane.capture.plans import Captured, compile_steps
from torchane.chips.points import machine, machines
from torchane.cli.plan_preset import Step, config_of, price_preset
from torchane.cli.planned import builder
from torchane.errors import TorchaneError
from torchane.models.presets import PRESETS
from torchane.plan import ProgramSpec
from torchane.plan.constants import pricing_for
from torchane.runtime.twin.device import TwinDevice

#: Name of a way to train -> rank of adapters, and what frozen weights are.
WAYS: Mapping[str, tuple[int | None, str]] = {"whole": (None, "inputs"), "adapters": (8, "inputs"), "adapters, constants": (8, "fp16")}
FIELDS = ("ms_per_256_tokens", "interval_ms_per_256_tokens", "mj_per_token", "loaded_programs", "dispatches_per_step", "share_of_peak")


def refusals(specs: Sequence[ProgramSpec], chip: str) -> list[str]:
    """Of the programs that the twin with this chip's rules does not load: why."""
    device = TwinDevice(chips.load(chip))
    found, seen = [], set()
    for spec in specs:
        digest = hashlib.sha256(spec.text.encode()).digest()
        if digest in seen:
            continue
        seen.add(digest)
        blobs = dict(spec.blobs)
        if spec.constants:
            zeros = [np.zeros(constant.layout.logical, np.float16) for constant in spec.constants]
            blobs[FROZEN_PATH] = frozen_file(spec.constants, zeros, [1.0] * len(zeros))
        try:
            device.load(spec.text, blobs, name=spec.name)
        except TorchaneError as error:
            found.append(str(error))
    return found


def captured_of(step: Step, names: Sequence[str]) -> list[Captured]:
    """For one machine of each kind that steps tell apart, from one trace."""
    torch._dynamo.reset()
    options = [{**step.options(pricing_for(name), step.recompute), "cache": "off", "progress": "off"} for name in names]
    return compile_steps(builder(step.config, step.lora), batch_size=step.merged, seq_len=step.seq_len, options=options)


def rows(preset: str, way: str, batch_size: int, seq_len: int) -> Iterator[dict[str, Any]]:
    """One for each machine that is known."""
    lora, frozen = WAYS[way]
    step = Step(preset, config_of(preset), batch_size, seq_len, 1, lora, "none", frozen, "off", None)
    kinds: dict[Any, list[str]] = {}
    for name in machines():
        kinds.setdefault(step.alike(pricing_for(name), step.merged, "none"), []).append(name)
    captured = captured_of(step, [names[0] for names in kinds.values()])
    for (kind, names), one in zip(kinds.items(), captured, strict=True):
        specs = [spec for plan in one.plans for spec in plan.programs]
        refused = refusals(specs, machine(names[0]).chip)
        step.have(kind, one.outline)
        for name in names:
            row: dict[str, Any] = {"preset": preset, "way": way, "machine": name, "refused": refused, "on_host": 1 - one.share_in_programs}
            try:
                (price,), _ = price_preset(step, [pricing_for(name)])
            except TorchaneError as error:
                row["no_plan"] = str(error)
            else:
                row.update({field: price[field] for field in FIELDS}, different_programs=len({spec.text for spec in specs}))
            yield row


def line(row: Mapping[str, Any]) -> str:
    head = f"{row['preset']:12s} {row['way']:20s} {row['machine']:8s}"
    if "no_plan" in row:
        return f"{head} no plan: {row['no_plan']}"
    return (
        f"{head} {row['ms_per_256_tokens']:8.2f} ms {row['mj_per_token']:7.3f} mJ {row['different_programs']:4d} programs, {row['loaded_programs']:4d} loaded, "
        f"{row['dispatches_per_step']:4d} dispatches, {row['on_host']:.2%} on the host, {len(row['refused'])} refused"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", action="append", choices=list(PRESETS))
    parser.add_argument("--way", action="append", choices=list(WAYS))
    parser.add_argument("--batch-size", type=int, default=1)
    parser.add_argument("--seq-len", type=int, default=256)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    found: list[dict[str, Any]] = []
    for preset in given.preset or PRESETS:
        for way in given.way or WAYS:
            begun = time.process_time()
            for row in rows(preset, way, given.batch_size, given.seq_len):
                print(line(row), flush=True)
                for refused in row["refused"]:
                    print(f"    {refused}", flush=True)
                found.append(row)
            print(f"    {time.process_time() - begun:.0f} processor seconds, load {os.getloadavg()[0]:.0f}", flush=True)
            if given.out is not None:
                given.out.write_text(json.dumps({"batch_size": given.batch_size, "seq_len": given.seq_len, "predicted": True, "rows": found}, indent=1) + "\n", encoding="utf-8")
    bad = [row for row in found if row["refused"] or "no_plan" in row]
    print(f"{len(found)} plans, all predicted; {len(bad)} with a program that is refused or without a price")
    print(json.dumps({"plans": len(found), "bad": len(bad), "most_loaded": max(row.get("loaded_programs", 0) for row in found)}))


if __name__ == "__main__":
    main()
