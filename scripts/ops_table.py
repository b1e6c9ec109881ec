"""Writes docs/ops.md, the table of ATen ops that programs hold, from the rules themselves.

    python scripts/ops_table.py            writes the file
    python scripts/ops_table.py --check    fails where the file is not what the rules say
"""

import sys
from pathlib import Path

from torchane.capture.rules import ON_THE_HOST, RULES, covered_ops

TARGET = Path(__file__).resolve().parents[1] / "docs" / "ops.md"

HEAD = """# Which PyTorch ops run in programs

Written by `python scripts/ops_table.py` from the rules in `src/torchane/capture/rules/`; do not edit it.

`torch.compile(model, backend="ane")` gets a model's forward and backward as ATen calls. A call below becomes
part of a program where its dtype, rank and arguments allow; `masks` marks those that take booleans as well.
Every other call runs in PyTorch on the CPU. `torchane.explain(model, *inputs)` says which and why, and what
you would not expect there is reported once by a `TorchaneWarning`.
"""


def table() -> str:
    """The whole file."""
    masks = {str(target) for target, rule in RULES.items() if rule.masks}
    families = covered_ops()
    lines = [HEAD, f"{sum(map(len, families.values()))} overloads in {len(families)} families.", ""]
    lines += ["| family | ops |", "| --- | --- |"]
    for family, names in families.items():
        shown = (f"`{name.removeprefix('aten.')}`{' (masks)' if name in masks else ''}" for name in names)
        lines.append(f"| {family} | {', '.join(shown)} |")
    host = ", ".join(f"`{packet.__name__}`" for packet in sorted(ON_THE_HOST, key=lambda packet: packet.__name__))
    lines += ["", "On the host by design (lookups, the loss, random draws, running statistics, index arithmetic):", "", host]
    return "\n".join(lines) + "\n"


def main(arguments: list[str]) -> int:
    """The exit code."""
    if "--check" in arguments:
        fresh = TARGET.is_file() and TARGET.read_text(encoding="utf-8") == table()
        if not fresh:
            sys.stderr.write(f"{TARGET.name} is not what the rules say. Run: python scripts/ops_table.py\n")
        return 0 if fresh else 1
    TARGET.write_text(table(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
