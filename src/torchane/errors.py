"""What can go wrong, by who can mend it.

Everything a caller can mend derives from `TorchaneError`; an `assert` is for what only we can break.
A message says what happened with the user's own names and numbers, why, and what to do.
"""

import difflib
from collections.abc import Iterable


def nearest(name: str, known: Iterable[str]) -> str:
    """For a message about a name that is not known: ` (did you mean NAME?)`, or nothing where none is near."""
    found = difflib.get_close_matches(name, list(known), n=1)
    return f" (did you mean {found[0]}?)" if found else ""


def shown(value: object) -> str:
    """A value for a message: what a file says may be long."""
    try:
        text = repr(value)
    except ValueError:  # an int of more digits than Python prints
        return "a number of thousands of digits"
    return text if len(text) <= 80 else f"{text[:60]}... ({len(text):,} characters)"


class TorchaneError(Exception):
    """The root: catch this to catch everything that torchane reports on purpose."""


class UsageError(TorchaneError):
    """The call itself is wrong: an unknown name, a bad option. The command line exits with 2."""


class ParseError(TorchaneError):
    """A file or text is not what it should be. Carries where: line and column (text) or offset (binary)."""


class CompileError(TorchaneError):
    """A program cannot be built or lowered: shapes that do not meet, an op without a legal form."""


class CaptureError(CompileError):
    """A module does something that no program can hold; names the module and its source line."""


class LegalityError(CompileError):
    """A program is well formed and the chosen chip refuses it."""


class DeviceError(TorchaneError):
    """A device is missing, refuses a program, or fails while running one."""


class MissingDeviceError(DeviceError, UsageError):
    """The device that was asked for by name is not in this machine."""


class AppleError(DeviceError):
    """A call into Apple's framework came to something else than its result.

    kind: "missing", "encoding", "exception", "nil", "refused", "error", "status", "partial" or "forked" (csrc/apple/fault.h says which is which).
    call: the selector or function. domain and code: of the NSError, 0 where there is none.
    """

    def __init__(self, kind: str, call: str, text: str, domain: str = "", code: int = 0):
        said = f" ({domain}, code {code})" if domain and kind in ("error", "status") else f" ({domain})" if domain else ""
        super().__init__(f"{call}: {text}{said}")
        self.kind, self.call, self.text, self.domain, self.code = kind, call, text, domain, code


class NumericsError(TorchaneError):
    """A number left the range in which training makes sense: a NaN loss, an overflow at every scale."""


class IndexRangeError(TorchaneError, IndexError):
    """A model looks up a row that there is none of: a place beyond its table of positions, a token beyond its vocabulary."""


class DataError(UsageError):
    """Training data is missing, empty, not text, or too short."""


class RunFolderError(TorchaneError):
    """A run folder or checkpoint is missing, damaged, or cannot be written."""


class TorchaneWarning(UserWarning):
    """Said once: something runs elsewhere than asked, can be done better, or has left the range of fp16."""
