"""What an error of Apple's framework means, and what is done about it before it reaches the user.

    AppleError(domain, code, text) ── meaning_of ──► Meaning(remedy, why, do)

The codes and texts are those that public reports quote; for each the report's own workaround was chosen. A remedy is
tried once; what fails again is a DeviceError with Apple's words, the reason and what to do.
Sources: maderix/ANE, mechramc/Orion, christopherkarani/Espresso, skyfallsin/apple-neural-engine-field-guide, jundot/omlx,
4rg0naut/silicon-ledger-public, sbryngelson/ane-guide and issues of these.
"""

import enum
from dataclasses import dataclass

from torchane.errors import AppleError

FRAMEWORK = "com.apple.appleneuralengine"
COMPILER = "com.apple.appleneuralengine.compiler"
COCOA = "NSCocoaErrorDomain"

#: From here on a refused compile may be the process's limit and not the program (about 119 were counted).
MANY_COMPILES = 100


class Remedy(enum.Enum):
    """What is tried once."""

    NONE = "nothing: it would fail again"
    AGAIN = "the same call again"
    WAIT = "the same call again, once the service has come back"
    ROOM = "programs used least recently are unloaded, then again"
    RELOAD = "the program is loaded again"
    REBUILD = "the compiled form is thrown away and made anew"
    OVERFLOW = "the outputs count as infinite, so that the scale is lowered"


@dataclass(frozen=True)
class Meaning:
    """remedy: what is tried. why and do: for people, after Apple's own words."""

    remedy: Remedy
    why: str
    do: str = ""

    def __str__(self) -> str:
        return f"{self.why} {self.do}".strip()


_TWIN = "Take the twin: --device twin."
_BINDING = (
    "The engine takes a dispatch only with surfaces of the right number, order and size; an earlier program of this process "
    "that it could not stand has the same effect."
)
_CODES = {
    1: Meaning(Remedy.NONE, "This needs an entitlement that Apple gives to its own programs."),
    2: Meaning(Remedy.NONE, "This needs an entitlement that Apple gives to its own programs."),
    3: Meaning(Remedy.RELOAD, "The engine took too long for this program.", "If it comes back, close other users of the engine, or restart the Mac."),
    4: Meaning(Remedy.REBUILD, "The engine could not make the program."),
    5: Meaning(Remedy.OVERFLOW, "A number left fp16's range."),
    6: Meaning(Remedy.ROOM, "The engine has no room for another program.", "Close other users of the engine, or train a smaller model."),
    7: Meaning(Remedy.NONE, "This Python has no code signature.", "Sign it: codesign --force --sign - $(which python3)."),
    8: Meaning(Remedy.AGAIN, _BINDING, "Start again; if it comes back for this program, report it, and take the twin: --device twin."),
    9: Meaning(Remedy.NONE, "The engine's service may not read the folder of compiled programs.", "It must lie in your Caches or temporary folder."),
    10: Meaning(Remedy.REBUILD, "The compiled form is not valid on this system, as after an update of macOS."),
    11: Meaning(Remedy.REBUILD, "The compiled form is not valid on this system, as after an update of macOS."),
    16: Meaning(Remedy.REBUILD, "The compiled form is gone."),
    17: Meaning(Remedy.REBUILD, "The compiled form is gone."),
    18: Meaning(Remedy.REBUILD, "The compiled form is gone."),
    19: Meaning(Remedy.REBUILD, "The compiled form is gone."),
    22: Meaning(Remedy.NONE, "This machine has no engine that this system lets us use; a virtual machine has none.", _TWIN),
    23: Meaning(Remedy.RELOAD, "The engine no longer has the program, as after its service was restarted or the Mac slept."),
    24: Meaning(Remedy.RELOAD, "The engine no longer has the program's data, as after its service was restarted or the Mac slept."),
    25: Meaning(Remedy.NONE, "This system does not support the call.", "Please report it."),
    26: Meaning(Remedy.NONE, "The framework calls an argument wrong.", "Please report it."),
    27: Meaning(Remedy.NONE, "A virtual machine has no engine.", _TWIN),
    28: Meaning(Remedy.NONE, "A virtual machine has no engine.", _TWIN),
    29: Meaning(Remedy.NONE, "A virtual machine has no engine.", _TWIN),
}
_COMPILER_TEXTS = {
    "InvalidMILProgram": "The compiler takes the text or a weight file for damaged, or an op in a form that it does not know here.",
    "InvalidCompilationParam": "The compiler takes the text for something else than MIL.",
    "CompilationFailure": "The compiler knows each op and cannot place the whole, which may be too large for this chip.",
}
_REFUSED_PROGRAM = "The compiler gives no reason."
_SPLIT = "Compare with `torchane inspect --chip`; the twin runs it: --device twin."


def meaning_of(error: AppleError, compiles: int = 0) -> Meaning:
    """compiles: how many this process has asked for."""
    match error.kind, error.domain:
        case "error", domain if domain == FRAMEWORK and error.code in _CODES:
            return _CODES[error.code]
        case "error", domain if domain == COMPILER:
            why = next((why for text, why in _COMPILER_TEXTS.items() if text in error.text), _REFUSED_PROGRAM)
            if compiles >= MANY_COMPILES:
                why += f" This process has compiled {compiles} programs, and some systems stop near 119: start again, what is compiled is kept."
            return Meaning(Remedy.NONE, why, _SPLIT)
        case "error", domain if domain == COCOA and error.code == 4097:
            return Meaning(Remedy.WAIT, "The compiler's service ended, as it does on a full disk or after a failure.", "See that the disk has room.")
        case "refused", _:
            return Meaning(Remedy.AGAIN, "The framework said no and gave no reason, which happens now and then.", "Start again.")
        case "exception", _:
            return Meaning(Remedy.NONE, "The framework threw an exception.", "Please report it with these words.")
        case "nil", _:
            return Meaning(Remedy.NONE, "The framework made no object, as it does of what it takes for malformed.", "Please report it.")
        case "partial", _:
            return Meaning(Remedy.AGAIN, "The engine reported success and had not finished.", "Please report it, and take the twin: --device twin.")
        case "forked", _:
            return Meaning(
                Remedy.NONE, "Apple's frameworks do not work across a fork.",
                'Compute in the process that opened the engine; start workers that compute with multiprocessing\'s "spawn".',
            )  # fmt: skip
        case ("missing" | "encoding"), _:
            return Meaning(Remedy.NONE, "This macOS has another framework than the one that torchane knows.", _TWIN)
        case "status", "e5rt":
            return Meaning(Remedy.RELOAD, "Espresso could not do it.", _TWIN)
    return Meaning(Remedy.NONE, "The framework has not been seen to say this.", "Please report it with these words.")
