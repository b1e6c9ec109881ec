"""MIL text: `parse` reads it, `to_text` prints it, and `parse(to_text(program)) == program`."""

from torchane.mil.text.errors import MilSyntaxError
from torchane.mil.text.parser import parse
from torchane.mil.text.printer import to_text
from torchane.mil.text.style import APPLE, KERNEL, Style, style_of

__all__ = ["APPLE", "KERNEL", "MilSyntaxError", "Style", "parse", "style_of", "to_text"]
