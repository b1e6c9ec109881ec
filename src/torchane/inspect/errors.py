"""What is wrong with a binary file: the message, the file and the byte where it is wrong."""

from torchane.errors import ParseError


class FormatError(ParseError):
    """A binary file that is not what it should be; `offset` is the byte, counted from 0, where that shows."""

    def __init__(self, message: str, offset: int, path: str):
        super().__init__(f"{path}: byte {offset:,}: {message}")
        self.reason = message
        self.path = path
        self.offset = offset
