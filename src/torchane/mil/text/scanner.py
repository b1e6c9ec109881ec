"""The lowest layer of the parser: a position in a text, white space, words, numbers, strings.

Every step is one regular expression matched at the position, so the time is linear in the text and no
list of tokens is held. White space is free, `// ...` and `/* ... */` are comments.
"""

import re
from typing import NoReturn

from torchane.mil.text.errors import MilSyntaxError

#: What MIL text calls things: values, ops, arguments, functions.
NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.$@]*")

#: Nested types, values and blocks; Apple's own texts stay below ten. Each level is a few Python frames.
MAX_DEPTH = 64

# 1,000 characters: no number needs more, and Python's int() grows quadratically.
_NUMBER = re.compile(
    r"[+-]?(?:0[xX][0-9a-fA-F]*\.?[0-9a-fA-F]*(?:[pP][+-]?\d+)?"
    r"|(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"
    r"|inf(?:inity)?\b|nan(?:\(0x[0-9a-fA-F]+\)|\b))",
    re.ASCII,
)
_MAX_NUMBER = 1000
_SPACE = re.compile(r"(?:[ \t\r\n\f\v]+|//[^\n]*|/\*[\s\S]*?\*/)*")
_STRING = re.compile(r'"([^"\\\n]*)"')
_STRING_PIECE = re.compile(r'[^"\\\n]+|\\x[0-9a-fA-F]{2}|\\u[0-9a-fA-F]{4}|\\[^\n]')
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "0": "\0", "a": "\a", "b": "\b", "f": "\f", "v": "\v"}


class Scanner:
    """Reads `text` from `pos` on; `path` names it in errors."""

    def __init__(self, text: str, path: str):
        self.text = text
        self.path = path
        self.pos = 0
        self.depth = 0

    def fail(self, message: str, at: int | None = None) -> NoReturn:
        raise MilSyntaxError(message, self.text, self.pos if at is None else at, self.path)

    def space(self) -> None:
        """Steps over white space and comments."""
        self.pos = _SPACE.match(self.text, self.pos).end()  # type: ignore[union-attr]
        if self.text.startswith("/*", self.pos):
            self.fail("this comment has no end. Close it with */.")

    def peek(self) -> str:
        """The next character after white space; empty at the end of the text."""
        self.space()
        return self.text[self.pos : self.pos + 1]

    def at(self, symbol: str) -> bool:
        """Whether `symbol` comes next."""
        self.space()
        return self.text.startswith(symbol, self.pos)

    def follows(self, end: int, symbol: str) -> bool:
        """Whether `symbol` comes next behind `end`, white space between; the position stays."""
        return self.text.startswith(symbol, _SPACE.match(self.text, end).end())  # type: ignore[union-attr]

    def accept(self, symbol: str) -> bool:
        """Steps over `symbol` if it comes next."""
        if not self.at(symbol):
            return False
        self.pos += len(symbol)
        return True

    def expect(self, symbol: str, after: str) -> None:
        """Steps over `symbol`; `after` says in words where it belongs."""
        if not self.accept(symbol):
            self.fail(f"expected {symbol!r} {after} and found {self.found()}.")

    def found(self) -> str:
        """What comes next, for a message."""
        self.space()
        if self.pos >= len(self.text):
            return "the end of the text"
        word = NAME.match(self.text, self.pos)
        piece = word.group() if word else self.text[self.pos]
        return repr(piece if len(piece) <= 40 else piece[:40] + "...")

    def name(self, what: str) -> str:
        """A name; `what` says of what, for a message."""
        self.space()
        match = NAME.match(self.text, self.pos)
        if match is None:
            self.fail(f"expected {what} and found {self.found()}.")
        self.pos = match.end()
        return match.group()

    def number(self) -> str:
        """The spelling of a number, decimal or hexadecimal, or of an infinity or NaN."""
        self.space()
        match = _NUMBER.match(self.text, self.pos)
        if match is None:
            self.fail(f"expected a number and found {self.found()}.")
        if match.end() - self.pos > _MAX_NUMBER:
            self.fail(f"this number has {match.end() - self.pos:,} characters; the most is {_MAX_NUMBER}.")
        self.pos = match.end()
        return match.group()

    def string(self) -> str:
        """A string in double quotes, its escapes resolved."""
        self.space()
        match = _STRING.match(self.text, self.pos)
        if match is not None:
            self.pos = match.end()
            return match.group(1)
        start = self.pos
        self.expect('"', "at the start of a string")
        pieces = []
        while not self.text.startswith('"', self.pos):
            piece = _STRING_PIECE.match(self.text, self.pos)
            if piece is None:
                self.fail("this string has no end on its line.", start)
            pieces.append(_unescaped(piece.group()))
            self.pos = piece.end()
        self.pos += 1
        return "".join(pieces)

    def enter(self) -> None:
        """One level deeper; pair with `leave`."""
        self.depth += 1
        if self.depth > MAX_DEPTH:
            self.fail(f"nested more than {MAX_DEPTH} levels deep.")

    def leave(self) -> None:
        self.depth -= 1


def _unescaped(piece: str) -> str:
    if piece[0] != "\\":
        return piece
    if len(piece) > 2:
        return chr(int(f"0x{piece[2:]}", 0))
    return _ESCAPES.get(piece[1], piece[1])
