"""A lowered program as bytes, for a file: what one process has lowered, another one reads.

    line 1   torchane lowered program 2
    line 2   SHA-256 of all that follows, in hexadecimal
    line 3   a JSON object: ports, counts, ranges, the sizes of what follows
    then     the MIL text, and the weight files one behind the other, compressed: matrices that select are zeros nearly everywhere

Nothing in it is executed: text, numbers and names. What does not fit its digest, or is of another shape than this, is refused.
"""

import hashlib
import itertools
import json
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from torchane.abi.frozen import STORED, Constant
from torchane.abi.ports import PortLayout
from torchane.abi.ranges import Bound, Form, Measure, Ranges
from torchane.errors import CompileError, ParseError
from torchane.plan.plan import PortSpec, ProgramSpec

_MAGIC = b"torchane lowered program 2\n"
_DIGEST_SIZE = 64


def to_bytes(spec: ProgramSpec, key: str) -> bytes:
    """The program without its name, which is its plan's. key: what it is found by; only who asks for the same is given it."""
    text = spec.text.encode()
    header = {
        "key": key,
        "text": len(text),
        "blobs": [[path, len(data)] for path, data in spec.blobs.items()],
        "inputs": [_port_to_json(port) for port in spec.inputs],
        "outputs": [_port_to_json(port) for port in spec.outputs],
        "op_counts": dict(spec.op_counts),
        "macs": spec.macs,
        "ranges": None if spec.ranges is None else _ranges_to_json(spec.ranges),
        "constants": [
            [one.position, _layout_to_json(one.layout), one.shape, one.is_transposed, one.form, one.rounded] for one in spec.constants
        ],
    }
    content = zlib.compress(b"".join((text, *spec.blobs.values())), level=1)
    body = b"".join((json.dumps(header).encode(), b"\n", content))
    return b"".join((_MAGIC, hashlib.sha256(body).hexdigest().encode(), b"\n", body))


def from_bytes(data: bytes, key: str) -> ProgramSpec:
    """The program that `to_bytes` wrote under that key; its name is empty. Raises ParseError for anything else, with what is wrong."""
    start = len(_MAGIC) + _DIGEST_SIZE + 1
    if not data.startswith(_MAGIC) or data[start - 1 : start] != b"\n":
        raise ParseError("it does not begin as a lowered program does.")
    body = memoryview(data)[start:]
    if hashlib.sha256(body).hexdigest().encode() != data[len(_MAGIC) : start - 1]:
        raise ParseError(f"its {len(body):,} bytes are not those that were written: their SHA-256 is another.")
    try:
        return _program(data, start, key)
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError, CompileError, zlib.error) as error:
        raise ParseError(f"its header is not a lowered program's ({type(error).__name__}: {error}).") from error


def _program(data: bytes, start: int, key: str) -> ProgramSpec:
    end = data.index(b"\n", start)
    header = json.loads(data[start:end])
    if header["key"] != key:
        raise ValueError(f"it is of {header['key']}, and lies under {key}")
    sizes = [_whole(header["text"]), *(_whole(size) for _, size in header["blobs"])]
    unpacking = zlib.decompressobj()
    content = unpacking.decompress(memoryview(data)[end + 1 :], sum(sizes) + 1)
    if len(content) != sum(sizes) or not unpacking.eof or unpacking.unused_data:
        raise ValueError(f"its text and weight files are not of {sum(sizes):,} bytes")
    ends = list(itertools.accumulate(sizes))
    parts = [content[end - size : end] for size, end in zip(sizes, ends, strict=True)]
    return ProgramSpec(
        "",
        parts[0].decode(),
        {_word(path): part for (path, _), part in zip(header["blobs"], parts[1:], strict=True)},
        tuple(map(_port, header["inputs"])),
        tuple(map(_port, header["outputs"])),
        Counter({_word(kind): _whole(count) for kind, count in header["op_counts"].items()}),
        _whole(header["macs"]),
        None if header["ranges"] is None else _ranges(header["ranges"]),
        constants=tuple(map(_constant, header["constants"])),
    )


def _port_to_json(port: PortSpec) -> list[Any]:
    return [port.name, *_layout_to_json(port.layout)]


def _layout_to_json(layout: PortLayout) -> list[Any]:
    return [layout.logical, layout.perm, layout.shape, layout.used]


def _port(said: Sequence[Any]) -> PortSpec:
    name, *layout = said
    return PortSpec(_word(name), _layout(layout))


def _layout(said: Sequence[Any]) -> PortLayout:
    logical, perm, shape, used = said
    return PortLayout(_wholes(logical), _wholes(perm), _wholes(shape), _whole(used))  # type: ignore[arg-type]


def _constant(said: Sequence[Any]) -> Constant:
    position, layout, shape, is_transposed, form, rounded = said
    if type(is_transposed) is not bool or not {form, rounded} <= STORED.keys():
        raise ValueError(f"{said!r} is no constant")
    return Constant(_whole(position), _layout(layout), _wholes(shape), is_transposed, form, rounded)


def _ranges_to_json(ranges: Ranges) -> dict[str, Any]:
    return {
        "variables": ranges.variables,
        "multipliers": [form.terms for form in ranges.multipliers],
        "outputs": [form.terms for form in ranges.outputs],
        "measures": [[one.place, one.index, one.form.terms] for one in ranges.measures],
        "bounds": [[one.measure, one.form.terms, one.target, one.ceiling, one.knob, one.what, one.guess] for one in ranges.bounds],
        "rows": ranges.rows,
    }


def _ranges(said: Mapping[str, Any]) -> Ranges:
    return Ranges(
        tuple(map(_word, said["variables"])),
        tuple(map(_form, said["multipliers"])),
        tuple(map(_form, said["outputs"])),
        tuple(Measure(_word(place), _int(index), _form(form)) for place, index, form in said["measures"]),  # type: ignore[arg-type]
        tuple(
            Bound(
                _int(measure), _form(form), _int(target), _int(ceiling), None if knob is None else _word(knob), _word(what),
                None if guess is None else tuple(map(_int, guess)),  # type: ignore[arg-type]
            )
            for measure, form, target, ceiling, knob, what, guess in said["bounds"]
        ),
        _whole(said["rows"]),
    )  # fmt: skip


def _form(terms: Sequence[Sequence[Any]]) -> Form:
    return Form(tuple((_word(name), _int(count)) for name, count in terms))


def _word(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is no text")
    return value


def _int(value: Any) -> int:
    if type(value) is not int:
        raise TypeError(f"{value!r} is no whole number")
    return value


def _whole(value: Any) -> int:
    if _int(value) < 0:
        raise ValueError(f"{value} is below 0")
    return value


def _wholes(values: Sequence[Any]) -> tuple[int, ...]:
    return tuple(map(_whole, values))
