"""What the compiler makes of every preset and of every small model of the tests, recorded and compared.

    python scripts/plans.py record before.json [--only GPT]      at one commit
    python scripts/plans.py record after.json                     at another
    python scripts/plans.py compare before.json after.json       lists every difference; exit code 1 where there is one

A record holds, for every model and graph, the plan's steps, each program's MIL text (its digest and op counts), the ops on
the host with their reasons, and the share of multiply-adds in programs. A redesign that promises equal programs is held to it.
Large presets are recorded with two layers: the others are equal to those.
"""

import argparse
import hashlib
import json
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "capture"))
import strangers
import zoo

import torchane
from torchane.models.build import build_model
from torchane.models.presets import PRESETS

Case = tuple[str, Callable[[], tuple[nn.Module, tuple[Any, ...], dict[str, Any]]]]


def cases() -> Iterator[Case]:
    """Each model by name, with a function that builds it and its inputs."""
    for name, preset in PRESETS.items():
        yield f"preset {name}", lambda preset=preset: _preset(preset)
    for name, build in zoo.FAMILIES.items():
        yield f"zoo {name}", lambda name=name, build=build: (build(), (), zoo.batch_for(name))
    for name, build in strangers.TEXT.items():
        yield f"stranger {name}", lambda build=build: (build(), (), zoo.text_batch(torch.Generator().manual_seed(0), "right"))


def _preset(preset: Any) -> tuple[nn.Module, tuple[Any, ...], dict[str, Any]]:
    layers = "n_layer" if hasattr(preset.config, "n_layer") else "num_hidden_layers"
    config = replace(preset.config, **{layers: min(2, getattr(preset.config, layers))})
    size = (1, min(preset.training.seq_len, 128))
    tokens = torch.randint(config.vocab_size, size, generator=torch.Generator().manual_seed(0))
    return build_model(config), (tokens,), {}


def record(only: str) -> dict[str, Any]:
    found = {}
    for name, build in cases():
        if only not in name:
            continue
        torch._dynamo.reset()
        torch.manual_seed(0)
        start = time.perf_counter()
        try:
            model, args, kwargs = build()
            with warnings.catch_warnings(record=True) as said:
                warnings.simplefilter("always")
                found[name] = _described(torchane.explain(model, *args, **kwargs))
            found[name]["warnings"] = sorted({str(w.message)[:300] for w in said if issubclass(w.category, torchane.errors.TorchaneWarning)})
        except Exception as error:  # a model that fails is recorded as failing: that, too, is compared
            found[name] = {"error": f"{type(error).__name__}: {str(error)[:200]}"}
        print(f"{name}: {time.perf_counter() - start:.1f} s", file=sys.stderr)
    return found


def _described(explained: Any) -> dict[str, Any]:
    graphs = {}
    for index, plan in enumerate(explained.plans):
        graphs[f"{index} {plan.name}"] = {
            "plan": str(plan).splitlines(),
            "programs": [
                {"name": p.name, "text": hashlib.sha256(p.text.encode()).hexdigest()[:16], "ops": dict(sorted(p.op_counts.items()))}
                for p in plan.programs
            ],
            "host": sorted(f"{count} x {op}: {why}" for (op, why), count in Counter(plan.host_ops).items()),
        }
    return {"share": round(explained.share("program"), 6), "graphs": graphs}


def compare(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    lines = []
    for name in sorted({*before, *after}):
        one, other = before.get(name), after.get(name)
        if one is None or other is None:
            lines.append(f"{name}: only in {'after' if one is None else 'before'}")
        elif one != other:
            lines += [f"{name}:", *(f"    {line}" for line in _differences(one, other))]
    return lines


def _differences(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    lines = [f"{key}: {one.get(key)} -> {other.get(key)}" for key in ("error", "share", "warnings") if one.get(key) != other.get(key)]
    for graph in sorted({*one.get("graphs", {}), *other.get("graphs", {})}):
        a, b = (side.get("graphs", {}).get(graph, {"plan": ["none"], "programs": [], "host": []}) for side in (one, other))
        if a == b:
            continue
        lines.append(f"{graph}: {a['plan'][0]} -> {b['plan'][0]}")
        lines += [f"  - host {line}" for line in a["host"] if line not in b["host"]]
        lines += [f"  + host {line}" for line in b["host"] if line not in a["host"]]
        changed = sum(p not in a["programs"] for p in b["programs"])
        lines.append(f"  {changed} of {len(b['programs'])} programs have another text; steps {'equal' if a['plan'] == b['plan'] else 'differ'}")
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    recording = commands.add_parser("record", help="write what this commit makes of every model")
    recording.add_argument("file", type=Path)
    recording.add_argument("--only", default="", help="models whose name holds this text")
    comparing = commands.add_parser("compare", help="list the differences of two records")
    comparing.add_argument("before", type=Path)
    comparing.add_argument("after", type=Path)
    given = parser.parse_args()
    if given.command == "record":
        given.file.write_text(json.dumps(record(given.only), indent=1), encoding="utf-8")
        return 0
    lines = compare(*(json.loads(path.read_text(encoding="utf-8")) for path in (given.before, given.after)))
    print("\n".join(lines) or "equal")
    return int(bool(lines))


if __name__ == "__main__":
    sys.exit(main())
