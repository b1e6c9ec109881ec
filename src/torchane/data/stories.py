"""Little stories whose exact entropy is known: the default text to train on.

    _STORY ── write: draws each choice, fills it in ───────► "Igor, a loud lamplighter from Windford, ..."
           └─ read: walks the text, finds each choice ─────► -log2 p(story), or DataError

One template tells every story. `[KITE]` is a choice, even among the words of that list, `[thing:KITE]`
one that is remembered, and `{thing}` says it again. Writing and reading walk the same template.

**The floor.** In no list does a word begin another (`Choice` refuses such a list). So a text, read
from the left, allows at most one word at each choice: it has one derivation at most, and its
probability is the product of 1/n over the choices, n being the sizes of their lists. A story
therefore costs exactly sum(log2 n) bits, STORY_BITS, and no model that predicts its bytes, or tokens
that spell its bytes, spends less on average. Where it ends follows from its words and costs nothing.
The floor of a set of stories is its bits over its UTF-8 bytes: of the very stories that are measured.

**Why it is worth learning.** Who the story is about, where they live, what was found and whose it is
is open when first said and certain ever after, far beyond the reach of an n-gram; and the plums that
are left are a subtraction.
"""

import math
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torchane.data.words import CHOICES, Choice
from torchane.errors import DataError

_STORY = """\
[hero:NAME], a [SHY] [BAKER] from [home:ELMFORD], [FOUND] a [colour:RED] [thing:KITE] [NEAR] the [TALL] [MILL]. \
A [SHY] [animal:FOX] [LOST] it while [SELLING] [had:FIVE] [food:PLUMS]. "My {thing}, still {colour}!" [CRIED] the \
{animal}.
{hero} [GOT] [given:TWO] {food} and [WALKED] [PAST] the [TALL] [MILL] home to {home}. The {animal} kept {left}."""

_NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")


@dataclass(frozen=True)
class _Pick:
    """A choice, and the name under which it is remembered, if it is."""

    choice: Choice
    slot: str | None


@dataclass(frozen=True)
class _Again:
    """What was chosen before, or follows from it."""

    slot: str


def _parse(template: str) -> tuple[str | _Pick | _Again, ...]:
    parts: list[str | _Pick | _Again] = []
    for piece in re.split(r"(\[[^\]]*\]|\{[^}]*\})", template):
        if piece.startswith("["):
            slot, _, choice = piece[1:-1].rpartition(":")
            parts.append(_Pick(CHOICES[choice], slot or None))
        elif piece.startswith("{"):
            parts.append(_Again(piece[1:-1]))
        elif piece:
            parts.append(piece)
    return tuple(parts)


_PARTS = _parse(_STORY)

STORY_BITS = math.fsum(math.log2(len(part.choice)) for part in _PARTS if isinstance(part, _Pick))


def _said_again(slot: str, said: Mapping[str, str]) -> str:
    """The words for {slot}, given what was chosen."""
    if slot == "left":
        return _NUMBERS[_NUMBERS.index(said["had"]) - _NUMBERS.index(said["given"])]
    return said[slot]


def write_stories(count: int, seed: int, stream: str = "") -> list[str]:
    """count stories, the same for the same seed on every machine; each stream of a seed is its own draw."""
    rng = random.Random(f"{stream}{seed}")
    return [_write(rng) for _ in range(count)]


def _write(rng: random.Random) -> str:
    said: dict[str, str] = {}
    words = []
    for part in _PARTS:
        if isinstance(part, _Pick):
            options = part.choice.options
            # random() is the one draw that Python promises never to change; 2^-53 off even, at most.
            word = options[int(rng.random() * len(options))]
            if part.slot:
                said[part.slot] = word
        elif isinstance(part, _Again):
            word = _said_again(part.slot, said)
        else:
            word = part
        words.append(word)
    return "".join(words)


def story_bits(story: str) -> float:
    """-log2 of the probability that the generator writes this very story.

    Raises DataError, saying where, if it never does.
    """
    said: dict[str, str] = {}
    bits = []
    at = 0
    for part in _PARTS:
        if isinstance(part, _Pick):
            word = next((option for option in part.choice.options if story.startswith(option, at)), None)
            if word is None:
                raise _not_a_story(story, at, f"one of {len(part.choice)} words such as {part.choice.options[0]!r}")
            if part.slot:
                said[part.slot] = word
            bits.append(math.log2(len(part.choice)))
        else:
            word = _said_again(part.slot, said) if isinstance(part, _Again) else part
            if not story.startswith(word, at):
                raise _not_a_story(story, at, repr(word))
        at += len(word)
    if at != len(story):
        raise _not_a_story(story, at, "nothing more")
    return math.fsum(bits)


def _not_a_story(story: str, at: int, expected: str) -> DataError:
    return DataError(
        f"This is not one of our stories: at character {at} comes {expected}, and there stands {story[at : at + 20]!r}. "
        "Only a text that the story generator can write has a known probability."
    )


def floor_bits_per_byte(stories: Sequence[str]) -> float:
    """The least that a model can spend on these stories: their bits over their UTF-8 bytes."""
    return math.fsum(map(story_bits, stories)) / sum(len(story.encode()) for story in stories)
