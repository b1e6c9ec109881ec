"""Programs whose constants are frozen weights: made when the numbers are known, and made anew when they change.

    a run ── checksum of every frozen weight that it reads ──► the same as in the program that is loaded: it runs
                                                          └──► another: the weight file is written, the program loaded, the old one unloaded
One compiled graph serves all models of a class: programs of the MODELS used last stay beside each other, told apart by where their weights lie.
PyTorch changes parameters in ways that leave no trace (`.data`, load_state_dict, NumPy views), so versions prove nothing and all bytes are read, in
every forward and backward: about half of what staging them costs. Under a promise (promise.py) memory and version are enough.
"""

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from torchane import native
from torchane.abi.frozen import FROZEN_PATH, frozen_file
from torchane.errors import TorchaneWarning
from torchane.mil.save import retagged
from torchane.plan import Dispatch, Plan
from torchane.runtime.device import Device, LoadedProgram
from torchane.runtime.range_control import Placed

#: Groups of weights of one dispatch whose programs are there at once.
MODELS = 3
#: Programs made anew so often, for one place in a plan, are said once.
OFTEN = 4


@dataclass(frozen=True)
class Seen:
    """A frozen weight as a run found it. sum: of its bytes, with what they mean. lying: the power of two that it is stored under. address: of
    its memory."""

    sum: tuple[object, ...]
    lying: Placed
    factor: float = 1.0
    address: int = 0


@dataclass
class _Made:
    """A loaded program with what is in it."""

    seen: tuple[Seen, ...]
    program: LoadedProgram
    times: int = 1


@dataclass
class Frozen:
    """Of one compiled graph, forward and backward. remade: how often a program was made anew, because a weight had changed."""

    remade: int = 0
    _made: dict[tuple[str, int, tuple[str, ...]], dict[tuple[int, ...], _Made]] = field(default_factory=dict)
    _seen: dict[str, Seen] = field(default_factory=dict)
    _promised: dict[str, tuple[object, tuple[int, int], Seen]] = field(default_factory=dict)
    _has_said: bool = False

    def known(self, name: str, found: tuple[object, ...]) -> Seen | None:
        """How a weight of these bytes was seen before."""
        seen = self._seen.get(name)
        return seen if seen is not None and seen.sum == found else None

    def see(self, name: str, seen: Seen) -> Seen:
        self._seen[name] = seen
        return seen

    def promised(self, name: str, identity: tuple[int, int] | None, promise: object | None) -> Seen | None:
        """How a weight was seen under this promise, if it has not changed since. identity: where its memory is, and its version."""
        known = self._promised.get(name)
        return known[2] if promise is not None and known is not None and known[0] is promise and known[1] == identity else None

    def promise(self, name: str, identity: tuple[int, int] | None, promise: object | None, seen: Seen) -> None:
        """It was seen so."""
        if promise is not None and identity is not None:
            self._promised[name] = promise, identity, seen

    def program(
        self, plan: Plan, step: Dispatch, seen: Sequence[Seen], device: Device, given: Callable[[str], np.ndarray], named: Callable[[str], str]
    ) -> LoadedProgram:
        """The program of a dispatch, with these weights in it. given: the numbers of a weight; named: what its user calls it."""
        there = self._made.setdefault((plan.name, step.program, step.constants), {})
        key = tuple(one.address for one in seen)
        made = there.pop(key, None)  # nothing is found under it while a program is made: what fails halfway is begun again
        if made is not None and made.seen == tuple(seen):
            there[key] = made  # used last
            return made.program
        spec = plan.programs[step.program]
        held = frozen_file(spec.constants, [given(name) for name in step.constants], [one.factor for one in seen])
        loaded = device.load(retagged(spec.text, held), {**spec.blobs, FROZEN_PATH: held}, name=f"{spec.name}_{step.where or 'main'}")
        there[key] = _Made(tuple(seen), loaded, 1 if made is None else made.times + 1)
        if made is not None:
            device.unload(made.program)
            self.remade += 1
            self._say(there[key].times, [named(name) for name, old, new in zip(step.constants, made.seen, seen, strict=True) if old != new])
        while len(there) > MODELS:
            device.unload(there.pop(next(iter(there))).program)
        return loaded

    def _say(self, times: int, changed: Sequence[str]) -> None:
        if times <= OFTEN or self._has_said or not changed:
            return
        self._has_said = True
        warnings.warn(
            f"{changed[0]} wants no gradient and is a constant of its programs, and its numbers have changed {times - 1} times: each time programs "
            'are made anew. Compile with options={"frozen": "inputs"} if they change often. Said once for this graph.',
            TorchaneWarning,
            stacklevel=2,
        )


def sums(arrays: Mapping[str, np.ndarray]) -> dict[str, tuple[object, ...]]:
    """What tells the numbers of an array from others: a checksum of all bytes, shape, strides and dtype."""
    found = native.checksums([_as_it_lies(array) for array in arrays.values()])
    return {name: (one, array.shape, array.strides, array.dtype.str) for (name, array), one in zip(arrays.items(), found, strict=True)}


def _as_it_lies(array: np.ndarray) -> np.ndarray:
    """The same memory, its axes in the order in which they lie; a copy only where there are gaps."""
    order = sorted(range(array.ndim), key=lambda axis: -array.strides[axis])
    return np.ascontiguousarray(array.transpose(order))
