"""Which dispatches are compared with the twin, and what becomes of a program that is not confirmed.

    due? ── engine's numbers, twin's ──► right: its inputs are remembered, by version and checksum
                                    └──► wrong: loaded again ──► spelled otherwise ──► the twin's from then on

Due are, of each program: the first dispatch after a load; then, once each, the first with other surfaces and the first of known
surfaces whose contents have changed, since an engine that keeps the weights it saw first shows it there and not before;
and one in N of all. So is a dispatch out of which infinities, NaN or nothing but zeros come, at once (`confirm`). A dispatch that was wrong is
repeated until its numbers are right, by the twin at last, so no step is lost.
"""

import warnings
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from torchane import native
from torchane.errors import AppleError, DeviceError, TorchaneWarning
from torchane.mil.name_constants import name_constants
from torchane.mil.save import emit
from torchane.runtime.ane.source import Source, separated, source_of
from torchane.runtime.twin import TwinProgram, load_program, read_program

#: Classes of device.py, which imports this module.
AneBuffer = AneDevice = AneProgram = Any

#: So many inputs are named in a message.
_NAMED = 4
#: A program whose numbers were right again after so many loads is not loaded once more for it: something is wrong with it.
MOST_RELOADS = 3


@dataclass
class Seen:
    """What is known of a program's inputs. right: of each surface, by its serial, the version and checksum when it was last right."""

    key: tuple[int, ...] | None = None
    versions: tuple[int, ...] = ()
    has_seen_others: bool = False
    has_seen_changes: bool = False
    right: dict[int, tuple[int, int]] = field(default_factory=dict)
    reloads: int = 0
    zeros: int = 0  # dispatches that gave an output of zeros
    spellings: int = 0  # of OTHER_SPELLINGS, those that were tried

    def is_due(self, key: tuple[int, ...], inputs: Sequence[AneBuffer]) -> bool:
        """For a dispatch that is not the first since its program was loaded."""
        if self.has_seen_others and self.has_seen_changes:
            return False
        if key != self.key:
            first, self.has_seen_others = not self.has_seen_others, True
            return first
        if not self.has_seen_changes and tuple(buffer.version for buffer in inputs) != self.versions:
            self.has_seen_changes = True
            return True
        return False

    def remember(self, key: tuple[int, ...], inputs: Sequence[AneBuffer]) -> None:
        """A dispatch whose numbers are right."""
        if self.key is None:
            self.key = key
        if self.key == key:
            self.versions = tuple(buffer.version for buffer in inputs)
        if len(self.right) > 1024:
            self.right.clear()
        self.right.update((buffer.serial, (buffer.version, checksum(buffer.look()))) for buffer in inputs)

    def changed(self, names: Sequence[str], inputs: Sequence[AneBuffer]) -> list[str]:
        """The inputs that hold other numbers than when they were last right."""
        known = ((name, buffer, self.right.get(buffer.serial)) for name, buffer in zip(names, inputs, strict=True))
        return [
            f"{name} (version {was[0]}, now {buffer.version})"
            for name, buffer, was in known
            if was is not None and was[0] != buffer.version and was[1] != checksum(buffer.look())
        ]


def checksum(array: np.ndarray) -> int:
    return zlib.crc32(array.data)  # type: ignore[arg-type]


def key_of(inputs: Sequence[AneBuffer], outputs: Sequence[AneBuffer]) -> tuple[int, ...]:
    """Of the surfaces that a dispatch has."""
    return tuple(buffer.serial for buffer in (*inputs, *outputs))


def confirm(device: AneDevice, made: AneProgram, inputs: Sequence[AneBuffer], outputs: Sequence[AneBuffer]) -> bool:
    """Device.confirm, of the dispatch that was carried out last. What comes of infinities that were given is not looked at; zeros are at the
    first, second, fourth, ... time, for a gradient may be 0 in every step."""
    if made.quarantine or made.compared == made.used:
        return False
    if all(native.scan(buffer.look())[1] == 0 for buffer in outputs):
        made.seen.zeros += 1
        if made.seen.zeros & (made.seen.zeros - 1):
            return False
    if any(native.scan(buffer.look())[1] for buffer in inputs):
        return False
    return not verify(device, made, key_of(inputs, outputs), inputs, outputs)


def verify(device: AneDevice, made: AneProgram, key: tuple[int, ...], inputs: Sequence[AneBuffer], outputs: Sequence[AneBuffer]) -> bool:
    """Leaves right numbers in the outputs: the engine's, or else the twin's. Whether they were right as they were."""
    device.counts["verified"] += 1
    made.compared = made.used
    given, got = [b.look() for b in inputs], [b.array for b in outputs]
    want = device.verifier.expected(made.twin, given)
    found = device.verifier.differences(made.twin, given, got, want)
    if not found:
        made.seen.remember(key, inputs)
        return True
    why = "; ".join(str(one) for one in found)
    changed = made.seen.changed(made.input_names, inputs)
    if changed:
        why += f"; since it was last right, {', '.join(changed[:_NAMED])} changed, of which it may have kept what was there"
    for how in _second_chances(device, made):
        if _is_right_now(device, made, inputs, outputs):
            made.seen.remember(key, inputs)
            made.is_told = made.is_told or _told(made, why, how)
            return False
    for target, right in zip(got, want, strict=True):
        target[...] = right
    device.quarantine(made, why)
    return False


def _second_chances(device: AneDevice, made: AneProgram) -> Iterator[str]:
    """Changes the program on the engine; says how."""
    if made.seen.reloads < MOST_RELOADS:
        made.seen.reloads += 1
        device.counts["reloads"] += 1
        device.drop(made)
        yield "Loaded again,"
    usual = made.source, made.twin
    while made.seen.spellings < len(OTHER_SPELLINGS):
        name, other = OTHER_SPELLINGS[made.seen.spellings]
        made.seen.spellings += 1
        found = other(device, made)
        if found is not None:
            device.counts["respelled"] += 1
            device.drop(made)
            made.source, made.twin = found
            yield f"With {name}"
    device.drop(made)
    made.source, made.twin = usual


def _is_right_now(device: AneDevice, made: AneProgram, inputs: Sequence[AneBuffer], outputs: Sequence[AneBuffer]) -> bool:
    """Runs it once more. A program that is refused, too, is not right."""
    try:
        device.attempt(made, [b.surface for b in inputs], [b.surface for b in outputs])
    except (AppleError, DeviceError):
        return False
    given = [b.look() for b in inputs]
    return not device.verifier.differences(made.twin, given, [b.array for b in outputs], device.verifier.expected(made.twin, given))


# Other spellings: each gives source and twin, or None where it changes nothing


def _with_files(device: AneDevice, made: AneProgram) -> tuple[Source, TwinProgram] | None:
    text, weights = separated(made.source.plain, made.source.weights)
    return (source_of(text, weights, device.framework.architecture), made.twin) if len(weights) > len(made.source.weights) else None


def _with_other_ops(device: AneDevice, made: AneProgram) -> tuple[Source, TwinProgram] | None:
    if device.respell is None:
        return None
    usual = read_program(made.source.plain, made.source.weights, made.name)
    other = device.respell(usual)
    if other == usual:
        return None
    text, weights = emit(name_constants(other))
    return source_of(text, weights, device.framework.architecture), load_program(other, made.name, "engine")


OTHER_SPELLINGS: tuple[tuple[str, Any], ...] = (
    ("its weights in files of their own", _with_files),
    ("its ops written otherwise", _with_other_ops),
)


def _told(made: AneProgram, why: str, how: str) -> bool:
    warnings.warn(
        f"{made.name}: the Neural Engine's numbers were wrong: {why}. {how} they are right, and training goes on with those. Please report "
        "it with the program (--dump). Said once for this program.",
        TorchaneWarning,
        stacklevel=4,
    )
    return True
