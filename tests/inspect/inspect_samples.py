"""Small files of every kind, made here: a .hwx of each descriptor layout, an E5 descriptor, a model."""

import struct

import numpy as np

from torchane.inspect import mlmodel, schema
from torchane.mil.build import Builder
from torchane.mil.ir import Program
from torchane.mil.save import extract_blobs
from torchane.mil.types import FP32


def small_program(large: bool = False) -> Program:
    """relu(x) * 0.5 twice over, by an ios18 function; with a weight of 256 bytes if `large`."""
    b = Builder()
    x = b.input("x", (1, 4, 1, 32))
    y = b.add(x=x, y=np.random.default_rng(0).standard_normal((1, 4, 1, 32)).astype(np.float16)) if large else x
    y = b.mul(x=b.relu(x=y), y=0.5)
    return b.program(b.cast(x=b.concat(values=(y, y), axis=1), dtype="fp32"))


def model_file(large: bool = False) -> bytes:
    program, _ = extract_blobs(small_program())
    if large:
        b = Builder()
        x = b.input("x", (1, 2), FP32)
        names = [b.add(x=x, y=np.ones((1, 2), np.float32), name=f"step_{index}") for index in range(12)]
        program = b.program(*names[-2:])
    return mlmodel.to_bytes(program, {"author": "nobody", "license": "none", "key": "value"})


def pipeline_file() -> bytes:
    """A program and a network in a pipeline, with ports of every kind that has parts."""
    message = schema.Model(specificationVersion=5)
    held = message.pipelineClassifier.pipeline
    for name, data in (("program", model_file()), ("network", b"\x08\x04\xa2\x1f\x00")):
        held.models.add().MergeFromString(data)
        held.names.append(name)
    port = message.description.input.add(name="picture").type.imageType
    port.enumeratedSizes.sizes.add(width=3, height=4)
    message.description.input.add(name="list").type.sequenceType.sizeRange.lowerBound = 1
    message.description.output.add(name="word").type.dictionaryType.stringKeyType = b""
    return message.SerializeToString(deterministic=True)


def command(code: int, body: bytes) -> bytes:
    return struct.pack("<II", code, 8 + len(body)) + body


def name16(text: str) -> bytes:
    return text.encode().ljust(16, b"\0")


def segment(name: str, sections: bytes, count: int, offset: int, size: int) -> bytes:
    return command(
        0x19, name16(name) + struct.pack("<QQQQIIII", 1 << 16, size, offset, size, 5, 5, count, 0) + sections
    )


def section(name: str, owner: str, offset: int, size: int, relocations: tuple[int, int] = (0, 0)) -> bytes:
    return name16(name) + name16(owner) + struct.pack("<QQIIIIIIII", 1 << 16, size, offset, 4, *relocations, 0, 0, 0, 0)


def hwx_file(subtype: int, text: bytes, weights: bytes = bytes(64)) -> bytes:
    """A file with one `__text`, one `__const`, a port, a procedure, a banner and two symbols."""
    strings = b"\0K" + b"a" * 64 + b"_ne_0\0x:t11=ar1;0;1;12=s192n:ar1;0;3;13=s64c:ar1;0;1;14=s64h:ar1;0;1;15=s2w:5\0"
    words = [0] * 30
    words[0], words[1], words[4], words[5], words[6:11] = 3, 1, 0x88, 5, [1, 3, 1, 1, 1]
    start = 32 + 232 + 32 + 144 + 32 + 24 + 4128 + 24 + 24  # where the commands end
    const, symbols = start + len(text), start + len(text) + len(weights)
    relocations = symbols + 32 + len(strings)
    sections = section("__text", "__TEXT", start, len(text), (relocations, 1))
    sections += section("__const", "__TEXT", const, len(weights))
    state = [0] * 1028
    commands = (
        segment("__TEXT", sections, 2, start, len(text) + len(weights)),
        command(0x06, struct.pack("<III", 0x14, 0, 0x30004000) + b"x\0\0\0" + bytes(8)),
        command(0x04, struct.pack("<II", 3, 30) + struct.pack("<30I", *words) + b"x".ljust(8, b"\0")),
        command(0x08, b"ANEC v1\n-t test".ljust(24, b"\0")),
        command(0x02, struct.pack("<IIII", symbols, 2, symbols + 32, len(strings))),
        command(0x04, struct.pack("<II", 1, 1028) + struct.pack("<1028I", *state)),
        command(0x31, name16("owner")),
        command(0x77, bytes(16)),
    )
    joined = b"".join(commands)
    assert len(joined) == start - 32, (len(joined), start - 32)
    entries = struct.pack("<IBBHQ", 1, 0x0F, 2, 2, 1 << 16) + struct.pack("<IBBHQ", 72, 0x20, 0, 11, 0)
    header = struct.pack("<8I", 0xBEEFFACE, 0x80, subtype, 2, len(commands), len(joined), 0, 0)
    return header + joined + text + weights + entries + strings + struct.pack("<II", 0x74, 0x05000002)


def h13_file() -> bytes:
    """Two linked descriptors: the second follows some zero words."""
    first = [
        1,
        0,
        0x422,
        0,
        0,
        0,
        0x30009800,
        4 * 20,
        0x3024025,
        0x21,
        0x0C000000 | 0x0000,
        0x10001,
        1,
        0x22,
        3,
        0,
        0,
        0,
        0,
        0,
    ]
    second = [1 << 25, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x0400C800, 0x82, 0x101C00, 0]
    return hwx_file(4, struct.pack(f"<{len(first) + len(second)}I", *first, *second))


def dense(address: int, *values: int) -> list[int]:
    return [len(values) - 1 << 15 | address // 4, *values]


def sparse(address: int, first: int, others: dict[int, int]) -> list[int]:
    """others: values by their bit of the mask."""
    mask = sum(1 << bit for bit in others)
    return [1 << 31 | mask << 15 | address // 4, first, *(others[bit] for bit in sorted(others))]


def stream_file(subtype: int) -> bytes:
    """Two descriptors of a stream, 16 bytes of padding between them."""
    length = 8 if subtype == 5 else 9
    body = dense(0x0000, 0x22, 64, 1) + sparse(0x4900 if length == 9 else 0x0D00, 0x82, {0: 5, 3: 7})
    tasks = b""
    for task in range(2):
        size = length + len(body)
        words = [task | size << 16, 9, *[0] * (length - 2), *body]
        tasks += struct.pack(f"<{size}I", *words)
        tasks += bytes(-len(tasks) % 16)
        if task == 0:
            tasks += bytes(16)
    return hwx_file(subtype, struct.pack("<4I", 1, 0, 0, 0) + tasks)


def e5_descriptor() -> bytes:
    """A FlatBuffer with two symbols, one pair of build info and one section, laid out by hand."""
    out = bytearray()

    def put(data: bytes) -> int:
        out.extend(bytes(-len(out) % 4))
        out.extend(data)
        return len(out) - len(data)

    def table(*fields: int) -> int:
        """A vtable with its table right behind it; the fields are filled with zeros."""
        size = 4 + 2 * len(fields)
        put(struct.pack(f"<HH{len(fields)}H", size, 4 + 4 * len(fields), *fields).ljust(-(-size // 4) * 4, b"\0"))
        vtable = len(out) - -(-size // 4) * 4
        return put(struct.pack("<i", len(out) - vtable) + bytes(4 * len(fields)))

    def point(place: int, target: int) -> None:
        struct.pack_into("<I", out, place, target - place)

    def string(text: str) -> int:
        return put(struct.pack("<I", len(text)) + text.encode() + b"\0")

    def vector(count: int) -> int:
        return put(struct.pack("<I", count) + bytes(4 * count))

    put(bytes(4))
    root = table(4, 0, 8, 0, 12, 0, 16)  # voffsets 4, 8, 12, 16: places 4, 8, 12, 16 of the table
    point(0, root)
    struct.pack_into("<i", out, root + 16, 4)
    names = vector(2)
    point(root + 4, names)
    for index, text in enumerate(("main", "main__arg_frame")):
        point(names + 4 + 4 * index, string(text))
    info = table(4)
    point(root + 8, info)
    pairs = vector(1)
    point(info + 4, pairs)
    pair = table(4, 8)
    point(pairs + 4, pair)
    point(pair + 4, string("built-for-profiling"))
    point(pair + 8, string("0"))
    sections = vector(1)
    point(root + 12, sections)
    entry = table(4, 8)
    point(sections + 4, entry)
    point(entry + 4, string("cast__op_attrs"))
    out[entry + 8] = 3
    return bytes(out)
