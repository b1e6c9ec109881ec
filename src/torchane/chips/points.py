"""Published measurements of engine programs, and the machines that they were taken on, as the data files have them.

    points()          every published figure: a program's layers, its surfaces, milliseconds, watts, who reports it
    machine("m4max")  the data file that says what its engine takes, and the peak that its clock gives

Nothing here was measured by this project. Sources stand with the figures (published/points.toml, machines.toml).
"""

import tomllib
from dataclasses import dataclass
from functools import cache
from importlib import resources

from torchane.errors import UsageError

#: Multiply-adds of fp16 a cycle in one core, and the cores of an engine (M6S; both the same from M1 to M6).
MACS_PER_CYCLE, CORES = 256, 16
#: Numbers that element-wise work gets through a cycle: 64 squares deep, QANE M5 Max sees 58 (2,560 channels) and 50 (10,240).
NUMBERS_PER_CYCLE = 64

PRODUCTS = frozenset({"conv", "linear", "matmul", "dynamic"})


@dataclass(frozen=True)
class Layer:
    """`count` equal pieces of work in one program.

    Products are (outer x inner x kernel^2) times (inner x columns): conv with a constant weight and activations channels
    first, linear with a constant weight and activations in rows, matmul of two values made in the program, dynamic with a
    weight that is an input of it. pointwise, softmax: outer x columns numbers, softmax along columns.
    """

    form: str
    count: int
    inner: int
    outer: int
    columns: int
    kernel: int = 1
    weight_bits: float = 16
    activation_bits: int = 16

    @property
    def is_product(self) -> bool:
        return self.form in PRODUCTS

    @property
    def flops(self) -> float:
        """Of all pieces, a multiply-add counting as two."""
        return 2.0 * self.count * self.inner * self.outer * self.columns * self.kernel**2 if self.is_product else 0.0

    @property
    def weight_bytes(self) -> float:
        """Of one piece, as stored."""
        return self.inner * self.outer * self.kernel**2 * self.weight_bits / 8 if self.is_product else 0.0


@dataclass(frozen=True)
class Point:
    """One published figure. `ms` of one run of the program; watts of the engine's rail, the processor and the package."""

    chip: str
    machine: str
    macos: str
    route: str
    kind: str
    shape: str
    layers: tuple[Layer, ...]
    bytes_in: int
    bytes_out: int
    ms: float
    source: str
    surfaces: str = "fp16"
    dispatches: int = 1
    watts: float | None = None
    cpu_watts: float | None = None
    package_watts: float | None = None
    held_out: bool = False
    unusable: str = ""
    note: str = ""


@dataclass(frozen=True)
class Machine:
    """A chip that can be bought: `chip` names the data file that says what its engine takes. wake_ms: what the first run
    takes more after some seconds at rest; None where nobody reports it."""

    name: str
    chip: str
    clock_hz: float
    source: str
    wake_ms: float | None = None

    @property
    def peak_flops_per_s(self) -> float:
        """Of one engine in fp16."""
        return 2 * MACS_PER_CYCLE * CORES * self.clock_hz

    @property
    def numbers_per_s(self) -> float:
        return NUMBERS_PER_CYCLE * self.clock_hz


@cache
def points() -> tuple[Point, ...]:
    """Every published figure, in the order of the file."""
    return tuple(
        Point(**{**entry, "layers": tuple(Layer(*layer) for layer in entry["layers"])}, source=group["source"])
        for group in _read("points.toml")["sources"]
        for entry in group["points"]
    )


@cache
def machines() -> dict[str, Machine]:
    """By name, in the order of the generations."""
    return {
        name: Machine(name, entry["chip"], entry["clock_ghz"] * 1e9, entry["source"], entry.get("wake_ms"))
        for entry in _read("machines.toml")["machines"]
        for name in entry["names"]
    }


def machine(name: str) -> Machine:
    """Raises UsageError for a name that is not known, with the nearest that is."""
    known = machines()
    if name not in known:
        plain = name.lower().replace(" ", "").replace("-", "").replace("_", "").removeprefix("apple")
        near = [other for other in known if plain and (other == plain or other.startswith(plain[:2]))]
        meant = f" Did you mean {plain if plain in known else near[-1]}?" if near or plain in known else ""
        raise UsageError(f"no chip is called {name!r}: there are published figures or a clock for {', '.join(known)}.{meant}")
    return known[name]


def _read(name: str) -> dict:
    return tomllib.loads((resources.files("torchane.chips") / "published" / name).read_text(encoding="utf-8"))
