"""A `.hwx` file in plain values: what the command line shows and `--json` prints.

Sections for weights are counted whole (a program without weights has an empty one of 16 KiB, and no tiles);
multiply-adds are estimated from each task's registers
(Wout * Hout * Cout * Cin / groups * Kw * Kh) where the task multiplies by the coefficients that it reads and the
version's table has the fields. A task whose engine passes its input by (OpMode 4) may read coefficients too: the table
of a function (TGR's registers of an M1 sigmoid: one lane, OpMode 4, Nonlinear 2, no format of weights).
"""

from collections.abc import Iterator, Mapping
from typing import Any

from torchane.inspect.hwx import commands as cmd
from torchane.inspect.hwx.container import Hwx
from torchane.inspect.hwx.meanings import meanings
from torchane.inspect.hwx.registers import Field, header_of, name_of
from torchane.inspect.hwx.tasks import LAST_LINKED, STREAM_START, Gap, Packet, Task, TaskStream, Words

_WEIGHT_SECTIONS = ("__const", "__kern_")
_FVMLIB = "__FVMLIB"
_DIRECTIONS = {1: "input", 2: "output"}

#: Element types of port states; the numbers are those of the type catalogue among the symbols.
_ELEMENTS = {2: "int8", 3: "uint8", 4: "int16", 5: "float16", 6: "float32", 7: "raw10", 9: "uint4", 10: "uint6"}

_SLOTS, _TASK_ADDRESS, _TASK_WORDS, _TASK_COUNT, _NAME = 256, 512, 514, 515, 523

#: Values of MACCfg's OpMode and Nonlinear.
_CONV, _BYPASS, _TRANSPOSED_CONV, _BY_TABLE = 0, 4, 5, 2

Registers = dict[int, int]


def describe(hwx: Hwx) -> dict[str, Any]:
    """Everything the file says, JSON-ready."""
    target = hwx.header.target
    tasks = list(_tasks(hwx))
    return {
        "target": target.name if target else None,
        "chips": target.chips if target else None,
        "cpu_subtype": hwx.header.subtype,
        "task_version": target.version if target else None,
        "flags": f"{hwx.header.flags:#010x}",
        "compiler": [line for banner in hwx.of(cmd.Banner) for line in banner.lines],
        "ports": list(_ports(hwx)),
        "procedures": list(_procedures(hwx)),
        "commands": [_command(command) for command in hwx.commands],
        "weight_section_bytes": sum(section.size for _, section in _weights(hwx)),
        "weight_tiles": [
            {"hash": symbol.tile[0], "lane": symbol.tile[1], "address": symbol.value}
            for symbol in hwx.symbols
            if symbol.tile is not None
        ],
        "symbols": [{"name": s.name, "type": s.type, "section": s.section, "value": s.value} for s in hwx.symbols],
        "relocations": len(hwx.relocations),
        "unread_task_bytes": sum(_unread(stream) for stream in hwx.tasks),
        "macs": sum(task.get("macs", 0) for task in tasks),
        "tables": sum(task.get("table", False) for task in tasks),
        "tasks": tasks,
    }


def _weights(hwx: Hwx) -> Iterator[tuple[cmd.Segment, cmd.Section]]:
    """The sections that hold weights in the file."""
    for segment, section in hwx.sections:
        if segment.file_size and segment.name != _FVMLIB and section.name.startswith(_WEIGHT_SECTIONS):
            yield segment, section


def _ports(hwx: Hwx) -> Iterator[dict[str, Any]]:
    """Ports as the state commands describe them, with the strides of the symbols and the mapped address."""
    addresses = {port.name: port.address for port in hwx.of(cmd.PortAddress)}
    shapes = {symbol.port.name: symbol.port for symbol in hwx.symbols if symbol.port is not None}
    for state in hwx.of(cmd.State):
        if state.flavor != cmd.PORT_STATE:
            continue
        name = state.text_at(4)
        shape = shapes.get(name)
        yield {
            "name": name,
            "direction": _DIRECTIONS.get(state.word(1), f"?{state.word(1)}"),
            "element": _ELEMENTS.get(state.word(5), f"?{state.word(5)}"),
            "shape": [state.word(index) for index in range(6, 11)],
            "strides_bytes": [state.long(index) for index in (16, 18, 20, 22)],
            "size_bytes": state.long(24),
            "address": addresses.get(name),
            "symbol": None if shape is None else {"sizes": shape.sizes, "strides_bytes": shape.strides},
        }


def _procedures(hwx: Hwx) -> Iterator[dict[str, Any]]:
    for state in hwx.of(cmd.State):
        if state.flavor == cmd.PROCEDURE_STATE:
            slots = {index: state.long(2 * index) for index in range(min(_SLOTS, len(state.words) // 2))}
            yield {
                "name": state.text_at(_NAME),
                "task_address": state.word(_TASK_ADDRESS),
                "task_bytes": 4 * (state.word(_TASK_WORDS) + 1),
                "tasks": state.word(_TASK_COUNT),
                "address_slots": {index: address for index, address in slots.items() if address},
            }


def _command(command: cmd.Command) -> dict[str, Any]:
    shown: dict[str, Any] = {"offset": command.offset, "command": f"{command.code:#x}", "kind": type(command).__name__}
    if isinstance(command, cmd.Segment):
        shown |= {
            "name": command.name, "address": command.address, "size": command.size,
            "file_offset": command.file_offset, "file_size": command.file_size,
            "sections": [
                {"name": section.name, "address": section.address, "size": section.size,
                 "file_offset": section.file_offset, "flags": f"{section.flags:#x}"}
                for section in command.sections
            ],
        }  # fmt: skip
    elif isinstance(command, cmd.PortAddress):
        shown |= {"name": command.name, "address": command.address}
    elif isinstance(command, cmd.State):
        shown |= {"flavor": command.flavor, "words": len(command.words)}
    elif isinstance(command, cmd.Note):
        shown |= {"owner": command.owner, "offset_of_data": command.data_offset, "size": command.data_size}
    elif isinstance(command, cmd.MappedRegion):
        shown |= {"region": command.region, "name": command.name}
    elif isinstance(command, cmd.Unknown):
        shown |= {"bytes": len(command.data)}
    return shown


def _tasks(hwx: Hwx) -> Iterator[dict[str, Any]]:
    for stream in hwx.tasks:
        kept: Registers = {}
        for index, task in enumerate(stream.tasks):
            assert stream.version is not None, "a stream with tasks has a version"
            if stream.version <= LAST_LINKED:
                kept = {}
            yield _task(task, index, stream.version, kept)


def _unread(stream: TaskStream) -> int:
    """Bytes of a section for tasks that are in no descriptor, zeros and the head of a stream left out."""
    head = STREAM_START if stream.version is not None and stream.version > LAST_LINKED else 0
    gaps = (part for part in stream.parts if isinstance(part, Gap))
    pieces = ((gap.data[max(0, stream.offset + head - gap.offset) :]).strip(b"\0") for gap in gaps)
    return sum(map(len, pieces))


def _task(task: Task, index: int, version: int, kept: Registers) -> dict[str, Any]:
    """kept: the registers as the tasks before left them; updated with this one's writes."""
    writes = []
    unknown_words = 0
    for part in task.parts:
        if isinstance(part, Words):
            unknown_words += sum(1 for word in part.words if word)
            continue
        writes.extend(_writes(part, version))
        kept.update(zip(part.addresses, part.values))
    shown = {
        "index": index,
        "offset": task.offset,
        "header": [
            {"name": name, "value": f"{value:#010x}", "fields": _fields(fields, value)}
            for (name, fields), value in zip(header_of(version, len(task.header)), task.header)
        ],
        "blocks": list(dict.fromkeys(write["block"] for write in writes)),
        "registers": writes,
        "unknown_words": unknown_words,
    }
    work = _work(version, kept)
    does = meanings(version, kept)
    if not work.get("weight_lanes", 1) or work.get("table"):
        does.pop("weights", None)  # nothing is read in this format
    if work.get("table"):
        does["nonlinear"] = "by table"
    return shown | {"does": does} | work


def _writes(packet: Packet, version: int) -> Iterator[dict[str, Any]]:
    for address, value in zip(packet.addresses, packet.values):
        block, name, fields = name_of(version, address)
        write = {"block": block, "name": name, "address": f"{address:#07x}", "value": f"{value:#010x}"}
        if fields:
            write["fields"] = _fields(fields, value)
        yield write


def _fields(fields: tuple[Field, ...], value: int) -> dict[str, int]:
    return {field.name: field.of(value) for field in fields}


def _work(version: int, kept: Mapping[int, int]) -> dict[str, Any]:
    """Sizes and estimated multiply-adds of a task, from the registers that hold them in this version."""
    fields: dict[tuple[str, str], int] = {}
    for address, value in kept.items():
        block, name, known = name_of(version, address)
        fields |= {(name, field.name): field.of(value) for field in known if block in ("Common", "KernelDMA", "NE")}
    if version == 7:
        size = {axis: ("InDim", axis) for axis in ("Win", "Hin")} | {
            axis: ("OutDim", axis) for axis in ("Wout", "Hout")
        }
        size |= {"groups": ("GroupConvCfg", "NumGroups")}
    elif version >= 17:
        size = {axis: (axis, axis) for axis in ("Win", "Hin", "Wout", "Hout")} | {"groups": ("NumGroups", "NumGroups")}
    else:
        return {}
    size |= {"Cin": ("Cin", "Cin"), "Cout": ("Cout", "Cout"), "Kw": ("ConvCfg", "Kw"), "Kh": ("ConvCfg", "Kh")}
    sizes = {axis: fields[place] for axis, place in size.items() if place in fields}
    lanes = sum(value for (name, field), value in fields.items() if field == "En" and name.startswith("CoeffDMAConfig"))
    work: dict[str, Any] = {"sizes": sizes, "weight_lanes": lanes}
    cfg = "MACCfg" if version == 7 else "MacCfg"
    mode = fields.get((cfg, "OpMode"), _CONV)
    if lanes and mode == _BYPASS and fields.get((cfg, "Nonlinear")) == _BY_TABLE:
        work["table"] = True
    if lanes and mode in (_CONV, _TRANSPOSED_CONV) and len(sizes) == len(size):
        kernel = sizes["Kw"] * sizes["Kh"] * sizes["Cin"] // max(sizes["groups"], 1)
        work["macs"] = sizes["Wout"] * sizes["Hout"] * sizes["Cout"] * kernel
    return work
