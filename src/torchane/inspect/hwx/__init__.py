"""Compiled Neural Engine programs (`.hwx`): read, shown and written back to the same bytes.

    hwx = parse(data, "model.hwx")
    hwx.commands            segments, ports, the procedure, compiler and its options, symbols
    hwx.tasks               the task descriptors: header words and register writes
    to_bytes(hwx) == data

Nothing here is needed to run a program. What is known of the format comes from public reverse engineering, see
docs/formats.md; words without a known meaning are kept and shown as they are.
"""

from torchane.inspect.hwx.container import Hwx, parse, to_bytes

__all__ = ["Hwx", "parse", "to_bytes"]
