"""The faults that public reports tell of, as the stand-in has them, and what must become of a training run that meets one.

Tests strike them (test_faults.py); scripts/faults_table.py writes docs/faults.md from the table and what the tests found.
Sources are named as in src/torchane/chips/SOURCES.md.
"""

from dataclasses import dataclass

from standin import COMPILER, CONNECTION, ERROR, EXCEPTION, HANGS, NIL, NO

SAME, ERRORS, REPLACED, RESUMED = "same bits", "named error", "right numbers", "resumed"


@dataclass(frozen=True)
class Fault:
    """event and what: for StandIn.fail. becomes: one of the words above. symptom: as reported, with who reports it."""

    name: str
    event: str
    what: int | str
    becomes: str
    symptom: str

    @property
    def is_met_again(self) -> bool:
        """A fault that stays; others come once."""
        return self.becomes == ERRORS


FAULTS = (
    Fault("refused without a reason", "evaluate", NO, SAME, "a call says NO without an NSError, now and then (RPB, SLI)"),
    Fault("0x1d once", "evaluate", ERROR + 8, SAME, "code 8, status 0x1d, gone at the next call (RPB)"),
    Fault("timed out", "evaluate", ERROR + 3, SAME, "code 3, status 0xf"),
    Fault("program gone", "evaluate", ERROR + 23, SAME, "code 23, status 0xe, after sleep or a restart of the daemon"),
    Fault("data gone", "evaluate", ERROR + 24, SAME, "code 24"),
    Fault("daemon restarted", "evaluate", "restart", SAME, "all loaded programs are gone between two calls (GDE, LED)"),
    Fault("half an output", "evaluate", "partial", SAME, "success is reported and part of an output was not written (SLI)"),
    Fault("an exception", "evaluate", EXCEPTION, ERRORS, "an NSException out of the framework"),
    Fault("0x1d for good", "evaluate", ERROR + 8, ERRORS, "every call fails after a program with `tile` ran in the process (FG)"),
    Fault("entitlement", "evaluate", ERROR + 1, ERRORS, "code 1"),
    Fault("no signature", "evaluate", ERROR + 7, ERRORS, "code 7, an unsigned Python"),
    Fault("sandbox", "evaluate", ERROR + 9, ERRORS, "code 9, the folder cannot be read by the service"),
    Fault("invalid model", "evaluate", ERROR + 10, ERRORS, "code 10, after an update of macOS (OMX #3124)"),
    Fault("virtual machine", "evaluate", ERROR + 22, ERRORS, "code 22, a guest has no engine (TMC, ANF)"),
    Fault("bad argument", "evaluate", ERROR + 26, ERRORS, "code 26"),
    Fault("a compiler's error at a dispatch", "evaluate", COMPILER, ERRORS, "an error of the compiler's domain"),
    Fault("a code nobody has seen", "evaluate", ERROR + 77, ERRORS, "a code of a later macOS"),
    Fault("no request", "request", NIL, ERRORS, "the request's factory gives nil"),
    Fault("swapped ports", "evaluate", "swapped", REPLACED, "outputs bound in another order (ORI, QANE)"),
    Fault("stale contents", "evaluate", "stale", REPLACED, "old contents of surfaces are used (ORI, LIB, QANE)"),
    Fault("zeros", "evaluate", "zeros", REPLACED, "outputs are silently zero (IMP, QANE, FG)"),
    Fault("not a number", "evaluate", "nan", REPLACED, "outputs are NaN (QANE)"),
    Fault("an infinity", "evaluate", "infinite", REPLACED, "a single number is infinite, as after an overflow"),
    Fault("halves", "evaluate", "half", REPLACED, "every number off by a factor"),
    Fault("one number", "evaluate", "one", REPLACED, "a single number off by as much as the largest"),
    Fault("compiler's service gone", "compile", CONNECTION, SAME, "Cocoa's 4097, the service died or the disk is full (LED, GDE)"),
    Fault("compile refused once", "compile", NO, SAME, "NO without an NSError"),
    Fault("load refused once", "load", NO, SAME, "NO without an NSError"),
    Fault("no room", "load", ERROR + 6, SAME, "code 6, 0x50004, at 126 to 128 loaded programs (MDX, ORI, QANE)"),
    Fault("compiled form gone", "load", ERROR + 16, SAME, "code 16, the daemon dropped it"),
    Fault("compiled form invalid", "load", ERROR + 10, SAME, "code 10 once, after an update of macOS"),
    Fault("load refused for good", "load", ERROR + 4, ERRORS, "code 4"),
    Fault("no more compilations", "compile", COMPILER, ERRORS, "the compiler refuses, as after about 119 compilations (MDX, ORI)"),
    Fault("a call that never returns", "evaluate", HANGS, RESUMED, "the driver is wedged (OMX #2974, TMX)"),
)
BY_NAME = {fault.name: fault for fault in FAULTS}
assert len(BY_NAME) == len(FAULTS)
