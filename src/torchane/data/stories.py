"""Little stories whose exact entropy is known: the default text to train on.

    telling (one script) ── Writer: draws each choice, writes the words ──► story, bits
                         └─ Reader: reads the words, finds each choice  ──► bits, or DataError

A story is told by one script, `_tell`, that says fixed words and makes choices; every choice is
uniform among its options. Writing and reading run the same script, so they cannot disagree.

**The floor.** The options of a choice are prefix-free: none begins another, and `Choice` refuses a
set where one does. Read from the left, a text therefore allows at most one option at each choice,
so it has one derivation, and its probability is the product of 1/n over its choices, n being the
options open at each. A story costs the sum of log2(n) bits: no model that predicts it byte by byte,
or token by token with the bytes fixed by the tokens, can spend less on average. The end of a story
follows from its words and costs nothing. The floor of a set of stories is their bits over their
UTF-8 bytes: of the very stories that are measured, not of the average story.

**Why it is worth learning.** Who the story is about, where they live, what was found and how many
plums were packed is fresh once and certain ever after, but far beyond the reach of an n-gram; "she"
or "he" agrees with the first one said; what is left of the plums is a subtraction.
"""

import math
import random
from collections.abc import Sequence
from typing import Protocol

from torchane.errors import DataError


class Choice:
    """A set of strings, none a prefix of another, one of which is said with equal chance."""

    def __init__(self, *options: str):
        ordered = sorted(options)
        for first, second in zip(ordered, ordered[1:], strict=False):
            # In sorted order a prefix is followed at once by a string that it begins.
            if second.startswith(first):
                raise ValueError(f"the option {first!r} begins {second!r}: a reader could not tell them apart")
        self.options = options

    def __len__(self) -> int:
        return len(self.options)


def _words(text: str) -> Choice:
    return Choice(*text.split())


_GIRL = tuple(
    "Ada Bea Cleo Dora Edie Fern Gwen Hana Iris June Kate Lily Maud Nora Olive Pearl Rosa Sally Tess Una "
    "Vera Wilma Zoe Amy Bess Cora Daisy Ella Flora Greta Hilda Ida".split()
)
_BOY = tuple(
    "Abel Boris Carl Dan Emil Finn Gus Hugo Igor Jack Karl Leo Max Ned Otto Paul Quinn Rex Sam Tom Ulf "
    "Vito Walt Yuri Zack Axel Bert Cyril Dirk Ezra Felix Gil".split()
)
_NAME = Choice(*_GIRL, *_BOY)
_TRAIT = _words(
    "brave shy sleepy clever gentle merry proud curious hungry dreamy cheerful patient stubborn nimble "
    "quiet jolly thoughtful lazy polite bold fussy lucky careful noisy wise kind grumpy playful silly "
    "humble daring young"
)
_TRADE = _words(
    "miller baker sailor tailor weaver potter cobbler fisher farmer painter piper juggler gardener "
    "carpenter shepherd doctor teacher drummer dancer clown poet singer cook knitter mason tinker postman "
    "ranger beekeeper clockmaker captain wizard"
)
_VILLAGE = Choice(
    *(
        start + end
        for start in ("Elm", "Oak", "Red", "Wind", "Stone", "Brook", "Mill", "Fox")
        for end in ("ford", "dale", "wick", "ton", "ham", "ley", "by", "mouth")
    )
)
_SIZE = _words("small big tiny huge lovely pretty odd funny round heavy light soft dusty shiny broken magic")
_COLOUR = _words("red blue green yellow purple silver white black pink orange golden brown grey striped spotted crimson")
_THING = _words(
    "kite lantern drum key ribbon clock bell map spoon teapot button hat scarf basket violin flute candle "
    "mirror feather marble compass boat book letter ladder whistle kettle blanket bucket cushion doll "
    "puppet ring crown coin bottle brush broom wheel hammer box pillow trumpet locket thimble saddle "
    "pencil parasol vase jug bowl rope sail cup lamp chair top flag ball stool cake shoe coat harp"
)
_WHERE = _words("under behind beside inside near against beneath below")
_STATE = _words("old mossy crooked stony sunken leafy ruined narrow sandy shady windy hollow frozen lonely sleeping tall")
_PLACE = _words(
    "mill bridge harbour orchard tower forest meadow well quarry castle pond garden market lighthouse "
    "barn cave marsh chapel valley waterfall vineyard library bakery smithy windmill ferry fountain "
    "stable inn ruin hill school"
)
_WEATHER = _words("rainy windy misty snowy sunny stormy frosty golden chilly cloudy foggy warm grey bright still breezy")
_TIME = _words("morning evening afternoon night day Sunday Monday Friday")
_ANIMAL = _words(
    "fox owl hare mole otter badger goose wolf bear mouse duck squirrel hedgehog beaver toad newt rabbit "
    "robin raven crow swan heron deer goat sheep pony donkey lynx weasel ferret turtle lizard"
)
_HOBBY = _words(
    "fishing singing painting digging baking reading juggling sweeping knitting dancing dozing humming "
    "whistling fiddling gardening sewing sketching climbing skating sneezing weaving counting "
    "daydreaming rowing"
)
_FOOD = _words(
    "plums figs pears buns cakes nuts cherries peaches carrots acorns turnips radishes muffins biscuits "
    "apples berries pies tarts lemons olives dates beans onions eggs"
)
_GO = _words("walked skipped hurried wandered marched ran strolled sailed")
_PAST = _words("past around over through")
_SAY = _words("laughed cried sang whispered shouted gasped beamed sighed")
_THANKS = Choice("Thank you", "Bless you", "Well done", "How kind")
_NUMBER = ("two", "three", "four", "five", "six", "seven", "eight", "nine")
_PACKED = Choice(*_NUMBER[3:])
_GIVEN = Choice(*_NUMBER[:2])


class _Teller(Protocol):
    """What the script needs: to say fixed words, and to make a choice and learn which it was."""

    def say(self, text: str) -> None: ...

    def pick(self, choice: Choice, but: Sequence[str] = ()) -> str: ...


def _tell(t: _Teller) -> None:
    """One story. Words are chosen where they are first said; after that they are certain."""
    hero = t.pick(_NAME)
    who = "she" if hero in _GIRL else "he"
    t.say(", a ")
    t.pick(_TRAIT)
    t.say(" ")
    t.pick(_TRADE)
    t.say(" from ")
    home = t.pick(_VILLAGE)
    t.say(", found a ")
    t.pick(_SIZE)
    t.say(" ")
    colour = t.pick(_COLOUR)
    t.say(" ")
    thing = t.pick(_THING)
    t.say(" ")
    t.pick(_WHERE)
    t.say(" the ")
    t.pick(_STATE)
    t.say(" ")
    place = t.pick(_PLACE)
    t.say(" one ")
    t.pick(_WEATHER)
    t.say(" ")
    t.pick(_TIME)
    t.say(". It belonged to a ")
    t.pick(_TRAIT)
    t.say(" ")
    animal = t.pick(_ANIMAL)
    t.say(" who liked ")
    t.pick(_HOBBY)
    t.say(f".\n{hero} packed ")
    number = t.pick(_PACKED)
    t.say(" ")
    food = t.pick(_FOOD)
    t.say(", a ")
    t.pick(_THING, but=[thing])
    t.say(" and a ")
    t.pick(_COLOUR, but=[colour])
    t.say(" ")
    t.pick(_THING, but=[thing])
    t.say(" and ")
    t.pick(_GO)
    t.say(" ")
    t.pick(_PAST)
    t.say(" the ")
    t.pick(_STATE)
    t.say(" ")
    t.pick(_PLACE, but=[place])
    t.say(f'.\n"My {colour} {thing}!" ')
    t.pick(_SAY)
    t.say(f' the {animal}. "')
    t.pick(_THANKS)
    t.say(f', {hero}!" {hero} gave the {animal} ')
    given = t.pick(_GIVEN)
    left = _NUMBER[_NUMBER.index(number) - _NUMBER.index(given) - 2]
    t.say(f" {food} and kept {left}. Then {who} ")
    t.pick(_GO)
    t.say(f" home to {home}.")


class _Writer:
    """Makes up a story, drawing from rng, and adds up its bits."""

    def __init__(self, rng: random.Random):
        self.parts: list[str] = []
        self.bits = 0.0
        self._rng = rng

    def say(self, text: str) -> None:
        self.parts.append(text)

    def pick(self, choice: Choice, but: Sequence[str] = ()) -> str:
        options = choice.options
        word = options[int(self._rng.random() * len(options))]
        while word in but:  # uniform among the rest
            word = options[int(self._rng.random() * len(options))]
        self.bits += math.log2(len(options) - len(but))
        self.parts.append(word)
        return word


class _Reader:
    """Reads a story back, finds the choices that made it, and adds up their bits."""

    def __init__(self, text: str):
        self.text = text
        self.at = 0
        self.bits = 0.0

    def say(self, text: str) -> None:
        if not self.text.startswith(text, self.at):
            raise self._fail(repr(text))
        self.at += len(text)

    def pick(self, choice: Choice, but: Sequence[str] = ()) -> str:
        for word in choice.options:
            if word not in but and self.text.startswith(word, self.at):
                self.at += len(word)
                self.bits += math.log2(len(choice) - len(but))
                return word
        raise self._fail(f"one of {len(choice) - len(but)} words such as {choice.options[0]!r}")

    def _fail(self, expected: str) -> DataError:
        found = self.text[self.at : self.at + 24]
        return DataError(
            f"This is not one of our stories: character {self.at} should begin {expected}, and there stands {found!r}. "
            "Only texts that the story generator wrote have a known probability."
        )


def write_stories(count: int, seed: int, stream: str = "") -> list[str]:
    """count stories, the same for the same seed on every machine; each stream of a seed is its own draw."""
    rng = random.Random(f"{stream}{seed}")
    return [_write(rng)[0] for _ in range(count)]


def _write(rng: random.Random) -> tuple[str, float]:
    writer = _Writer(rng)
    _tell(writer)
    return "".join(writer.parts), writer.bits


def story_bits(story: str) -> float:
    """-log2 of the probability that the generator writes this very story, in bits.

    Raises DataError where the text is not a story.
    """
    reader = _Reader(story)
    _tell(reader)
    if reader.at != len(story):
        raise reader._fail("nothing more")
    return reader.bits


def floor_bits_per_byte(stories: Sequence[str]) -> float:
    """The least that a model can spend on these stories: their bits over their UTF-8 bytes."""
    return sum(map(story_bits, stories)) / sum(len(story.encode()) for story in stories)
