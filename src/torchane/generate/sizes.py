"""What prompts are filled up to and how long caches are, so that few programs are compiled and those that are there are used again.

    tokens ──► up to 512: 32, 64, 128, 256 or 512            one program for each pair of these and the cache's positions
           ──► beyond:    pieces of 512, and a last one      pieces of one width share a program, wherever in the cache they are written
Caches have a power of two of positions. Fill and positions that nothing is written to cost work: up to four times as many tokens, and positions,
as are needed are taken where that saves a compilation.
"""

#: Of the pieces that prompts are read in.
WIDTHS = (32, 64, 128, 256, 512)
PIECE = WIDTHS[-1]
LEAST_POSITIONS = 256
_MOST_TIMES = 4


def width_of(tokens: int) -> int:
    """What so many tokens are filled up to, where no program is there yet."""
    return next((width for width in WIDTHS if width >= tokens), -(-tokens // PIECE) * PIECE)


def positions_of(places: int, least: int = LEAST_POSITIONS) -> int:
    """Of a cache for so many places."""
    return max(least, 1 << (places - 1).bit_length())


class Programs:
    """Those that a writer's model has: (texts at once, tokens, positions of the cache) of each."""

    def __init__(self) -> None:
        self._there: set[tuple[int, int, int]] = set()

    def used(self, texts: int, width: int, positions: int) -> None:
        """A text's tokens were read, filled up to `width`."""
        pieces = {PIECE if width >= PIECE else 0, width % PIECE} - {0}
        self._there |= {(texts, piece, positions) for piece in pieces}

    def width(self, texts: int, tokens: int, positions: int) -> int | None:
        """What the tokens are filled up to with the programs that are there for such a cache; None where one would be missing."""
        whole, rest = divmod(tokens, PIECE)
        if whole and (texts, PIECE, positions) not in self._there:
            return None
        most = PIECE if whole else _MOST_TIMES * width_of(rest)
        last = [width for width in WIDTHS if rest <= width <= most and (texts, width, positions) in self._there] if rest else [0]
        return whole * PIECE + last[0] if last else None

    def choose(self, texts: int, tokens: int, more: int) -> tuple[int, int]:
        """(what the tokens are filled up to, the positions of a cache for them and `more`)."""
        wanted = positions_of(width_of(tokens) + more)
        for times in (1, 2, _MOST_TIMES):
            width = self.width(texts, tokens, wanted * times)
            if width is not None and width + more <= wanted * times:
                return width, wanted * times
        return width_of(tokens), wanted
