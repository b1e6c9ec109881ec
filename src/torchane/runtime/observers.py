"""Who watches a plan run: one interface, called before and after each of its steps.

    compiled(plan, programs)            once, when the plan is ready for a device
    before(moment) ── step ── after(moment)    at every step; after a dispatch the moment holds each run of the program
Steps that go on beside a dispatch (plan/overlap.py) come between its `before` and its `after`.
Given to torch.compile as options={"observers": [...]}, or added to the `observers` of a graph (capture/backend.py, `told`). A graph that
nobody observes calls nothing. An observer may read surfaces with `look`; what it keeps, it copies: the next step may write there.
"""

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from torchane.plan import Dispatch, Plan, Step
from torchane.runtime.device import Buffer, LoadedProgram

#: Runs a program on surfaces: `Device.run`, or that and what looks at it. The seconds on the device, None where the call took no longer.
RunProgram = Callable[[LoadedProgram, Sequence[Buffer], Sequence[Buffer]], float | None]


@dataclass(frozen=True)
class ProgramRun:
    """One run of a program on a device: its surfaces in the order of the ports, and how long the device took."""

    program: LoadedProgram
    inputs: Sequence[Buffer]
    outputs: Sequence[Buffer]
    time_s: float


@dataclass
class Moment:
    """A step as it is carried out. runs: of a dispatch, one, or several where range control had to try again; the last one counts.
    error: what the step ended with, None where it came to its end."""

    plan: Plan
    index: int
    runs: list[ProgramRun] = field(default_factory=list)
    error: BaseException | None = None

    @property
    def step(self) -> Step:
        return self.plan.steps[self.index]


class Observer:
    """Watches; what it does not care about it leaves as it is here. wants_losses: it looks for what programs lose, so that they run where float32
    would take over for want of digits."""

    wants_losses = False

    def compiled(self, plan: Plan, programs: Sequence[LoadedProgram | None]) -> None:
        """A plan was made ready; its programs in the plan's order, None where one waits for the frozen weights that it holds."""

    def before(self, moment: Moment) -> None:
        """A step is about to be carried out."""

    def after(self, moment: Moment) -> None:
        """It was, or it raised `moment.error`, which goes on its way."""


class Watched:
    """The steps of one call, each between the observers' two calls."""

    def __init__(self, observers: Sequence[Observer], plan: Plan, run: RunProgram, step: Callable[[int], None]):
        self.observers = tuple(observers)
        self.moment = Moment(plan, 0)
        self._run, self._step = run, step

    def step(self, index: int) -> None:
        around, self.moment = self.moment, (moment := Moment(self.moment.plan, index))
        for observer in self.observers:
            observer.before(moment)
        try:
            self._step(index)
        except BaseException as error:
            moment.error = error
            raise
        finally:
            for observer in reversed(self.observers):
                observer.after(moment)
            self.moment = around

    def run(self, program: LoadedProgram, inputs: Sequence[Buffer], outputs: Sequence[Buffer]) -> None:
        start = time.perf_counter()
        device_s = self._run(program, inputs, outputs)
        took_s = time.perf_counter() - start if device_s is None else device_s
        self.moment.runs.append(ProgramRun(program, inputs, outputs, took_s))


class Timer(Observer):
    """Adds up seconds by kind of step, and of dispatches the runs: their seconds on the device, their number and multiply-adds. A dispatch
    during which the host goes on working counts whole, and so does the host's work."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.steps_s: Counter[str] = Counter()
        self.device_s, self.runs, self.macs = 0.0, 0, 0
        self._began_s: list[float] = []  # of the steps that are being carried out, one beside the other

    def before(self, moment: Moment) -> None:
        self._began_s.append(time.perf_counter())

    def after(self, moment: Moment) -> None:
        self.steps_s[type(moment.step).__name__] += time.perf_counter() - self._began_s.pop()
        if isinstance(moment.step, Dispatch):
            self.device_s += sum(run.time_s for run in moment.runs)
            self.runs += len(moment.runs)
            self.macs += sum(run.program.stats.macs for run in moment.runs)
