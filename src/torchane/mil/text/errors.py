"""Where a text is wrong: the message, the file, line and column, the line itself and a caret under it.

model.mil:3:31: the name 'z' is not defined here.
    tensor<fp16, [2]> y = relu(x = z);
                                   ^
"""

from torchane.errors import ParseError

# 60 columns to each side: Apple's lines run to thousands of characters.
_AROUND = 60


class MilSyntaxError(ParseError):
    """A MIL text that cannot be read. `line` and `column` count from 1; `offset` counts characters from 0."""

    def __init__(self, message: str, text: str, offset: int, path: str):
        offset = min(max(offset, 0), len(text))
        start = text.rfind("\n", 0, offset) + 1
        end = text.find("\n", offset)
        self.reason = message
        self.path = path
        self.offset = offset
        self.line = text.count("\n", 0, offset) + 1
        self.column = offset - start + 1
        shown, caret = _excerpt(text, start, len(text) if end < 0 else end, offset)
        super().__init__(f"{path}:{self.line}:{self.column}: {message}\n{shown}\n{caret}")


def _excerpt(text: str, start: int, end: int, offset: int) -> tuple[str, str]:
    """The part of the line around the offset, one column per character, and the line with the caret."""
    left = max(start, offset - _AROUND)
    right = min(end, offset + _AROUND)
    prefix = "..." if left > start else ""
    shown = "".join(char if char.isprintable() else " " for char in text[left:right])
    suffix = "..." if right < end else ""
    return prefix + shown + suffix, " " * (len(prefix) + offset - left) + "^"
