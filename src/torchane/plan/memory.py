"""How much memory a training step will take, before it runs.

    weights      fp32, the caller's         4 bytes a parameter; frozen ones as they are
    gradients    fp32                       4 a parameter that is trained; in `torchane train` 0 for most matrices, whose gradients lie where staged weights were
    optimizer    what it keeps, fp32        8 a parameter that is trained, for AdamW's two averages
    staged       fp16 surfaces of weights, alive as long as the model
    constants    frozen weights in programs, as each holds them
    saved        surfaces that the forward keeps for the backward
    surfaces     the most that one plan has in use at once besides those
    results      fp32, what the forward gives to the loss, and what the loss makes of it: torch's cross-entropy keeps
                 logarithms and makes a gradient, so three times
    host         fp32, what PyTorch computes between programs: ops without a rule, a softcap of scores too wide for programs

Python, torch and what compiling leaves behind are not in it: RESERVE stands for them. What a step takes
beyond the forecast was measured as 60 to 110 MiB (tests/train/test_memory.py has the bound).
"""

import math
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields

from torchane.errors import DeviceError
from torchane.native import pages
from torchane.plan.plan import Dispatch, Plan, Stage, Unstage, surfaces_of

#: Python, torch and its libraries (0.3 GiB once imported), graphs and programs, the twin's scratch.
RESERVE_BYTES = 1 << 30
FP32 = 4
RESULT_COPIES = 3  # with torch's own cross-entropy


@dataclass(frozen=True)
class Forecast:
    """Bytes of one model's training step, by what they hold."""

    weights: int
    gradients: int
    optimizer: int
    staged: int
    saved: int
    surfaces: int
    results: int = 0
    host: int = 0
    constants: int = 0

    @property
    def total(self) -> int:
        return sum(getattr(self, field.name) for field in fields(self))

    def to_dict(self) -> dict[str, int]:
        return {**asdict(self), "total": self.total}

    def __str__(self) -> str:
        return self.said("AdamW")

    def said(self, optimizer: str) -> str:
        """For a step of this optimizer, whose numbers are counted."""
        return f"memory of a training step with {optimizer}: {size_text(self.total)} ({self.parts()})"

    def parts(self) -> str:
        return ", ".join(f"{name} {size_text(size)}" for name, size in asdict(self).items() if size)


def forecast(
    plans: Sequence[Plan],
    parameters: int,
    *,
    host_bytes: int = 0,
    optimizer_states: int = 2,
    param_copies: int = 1,
    trained: int | None = None,
    frozen_bytes: int = 0,
    result_copies: int = RESULT_COPIES,
    left_bytes: int = 0,
) -> Forecast:
    """The memory that these plans and their parameters take.

    parameters: how many numbers there are; trained: how many of them are, if not all. host_bytes: of what PyTorch computes on the host in one graph.
    optimizer_states: numbers that the optimizer keeps for each (AdamW 2, SGD 0). param_copies: how many times the
    weights are there in fp32. frozen_bytes: of weights that are not among the parameters. result_copies: how many tensors of the results' size the loss has at once, them included.
    left_bytes: of gradients that are no fp32 tensors (runtime/gradients.py).
    """
    weights: dict[str, int] = {}
    for plan in plans:
        for copy in (copy for step in plan.steps if isinstance(step, Stage) for copy in step.copies if copy.stays):
            weights[copy.value] = copy.layout.type.size_bytes
    trained = parameters if trained is None else trained
    return Forecast(
        weights=FP32 * parameters * param_copies + frozen_bytes,
        gradients=FP32 * trained - left_bytes,
        optimizer=FP32 * trained * optimizer_states,
        staged=sum(weights.values()),
        saved=sum(_kept_bytes(plan) for plan in plans),
        surfaces=max((peak_of(plan) for plan in plans), default=0),
        results=sum(result_copies * results_of(plan) for plan in plans if plan.name == "forward"),
        host=host_bytes,
        constants=sum(constants_of(plan) for plan in plans),
    )


#: What asks for less memory, in the flags of `torchane train`.
ADVICE = "Use a smaller batch (--batch-size, with --grad-accum to keep the step the same), a shorter sequence (--seq-len) or a smaller model."


def require_fits(needed: Forecast, available_bytes: int | None = None, advice: str = ADVICE) -> None:
    """Raises DeviceError, with the numbers and the advice, where a step cannot fit into this machine's free memory."""
    free = free_bytes() if available_bytes is None else available_bytes
    if free is not None and needed.total + RESERVE_BYTES > free:
        raise DeviceError(
            f"A training step needs about {size_text(needed.total)} and {size_text(RESERVE_BYTES)} to work in, and "
            f"{size_text(free)} of memory are free. It would hold: {needed}. {advice}"
        )


def largest_batch(needed: Forecast, batch_size: int, available_bytes: int) -> int:
    """How many sequences of the batch_size of this forecast would fit, in what a step works in besides; 0 where none would. Weights and
    the optimizer's state stay, the rest grows with the batch."""
    growing = needed.saved + needed.surfaces + needed.results + needed.host
    room = available_bytes - RESERVE_BYTES - (needed.total - growing)
    return max(0, room * batch_size // max(growing, 1))


def free_bytes() -> int | None:
    """Memory that a new allocation can have without swapping, bytes, that which is fetched ahead for one included; None where the system does not say."""
    ahead = pages.fetched_ahead()  # before the rest: it grows meanwhile
    try:
        with open("/proc/meminfo", encoding="ascii") as lines:
            known = {name: int(rest.split()[0]) * 1024 for name, _, rest in (line.partition(":") for line in lines)}
        free = known.get("MemAvailable")
        return None if free is None else free + ahead
    except FileNotFoundError:  # macOS: what is installed; the system compresses and swaps what others hold
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def sizes_of(plan: Plan) -> dict[str, int]:
    """Bytes of every surface that the plan touches, by the value's name."""
    sizes = {name: layout.type.size_bytes for name, layout in plan.surfaces_in.items()}
    for step in plan.steps:
        if isinstance(step, Dispatch):
            program = plan.programs[step.program]
            ports = zip((*step.inputs, *step.outputs), (*program.inputs, *program.outputs), strict=True)
            sizes |= {name: port.size_bytes for name, port in ports}
        elif isinstance(step, Stage | Unstage):
            sizes |= {copy.value: copy.layout.type.size_bytes for copy in step.copies if not copy.is_constant}
    return sizes


def _kept_bytes(plan: Plan) -> int:
    sizes = sizes_of(plan)
    return sum(sizes[name] for name in plan.kept_names)


def peak_of(plan: Plan) -> int:
    """The most bytes of surfaces in use at once, without weights, what came in and what is kept."""
    sizes, frees = sizes_of(plan), plan.last_uses()
    elsewhere = {c.value for s in plan.steps if isinstance(s, Stage) for c in s.copies if c.stays or c.is_constant}
    elsewhere |= plan.kept_names | set(plan.surfaces_in)
    held: set[str] = set()
    peak = 0
    for step, freed in zip(plan.steps, frees, strict=True):
        held |= set(surfaces_of(step)) - elsewhere
        peak = max(peak, sum(sizes[name] for name in held))
        held -= set(freed)
    return peak


def constants_of(plan: Plan) -> int:
    """Bytes of the frozen weights in loaded programs: one for each group of weights that dispatches name."""
    loaded = {(dispatch.program, dispatch.constants) for dispatch in plan.dispatches}
    return sum(constant.size_bytes for program, _ in loaded for constant in plan.programs[program].constants)


def results_of(plan: Plan) -> int:
    """Bytes of the fp32 tensors that programs give to the host."""
    copies = (copy for step in plan.steps if isinstance(step, Unstage) for copy in step.copies)
    return sum(FP32 * math.prod(copy.layout.logical) for copy in copies)


def size_text(size: int) -> str:
    """1.25 GiB, 1.2 MiB, 3 KiB: in the unit that fits."""
    if size >= 2**30:
        return f"{size / 2**30:.2f} GiB"
    return f"{size / 2**20:.1f} MiB" if size >= 2**20 else f"{-(-size // 2**10):,} KiB"
