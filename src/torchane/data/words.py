"""The words of our stories: lists in which no word begins another, so that a reader can tell them apart.

A word that can follow "a" begins with the sound of a consonant. Each list is drawn from evenly.
"""

import itertools


class Choice:
    """Strings of which one is said, each with the same chance. None is a prefix of another, nor empty."""

    def __init__(self, *options: str):
        ordered = sorted(options)
        # In sorted order, the string right after a prefix begins with it too.
        clash = [(a, b) for a, b in itertools.pairwise(ordered) if b.startswith(a)]
        if clash or "" in options:
            raise ValueError(f"a reader could not tell these apart: {clash or options}")
        self.options = options

    def __len__(self) -> int:
        return len(self.options)


def _words(text: str) -> Choice:
    return Choice(*text.split())


CHOICES = {
    "NAME": _words(
        "Abel Ada Amy Axel Bea Ben Bert Bess Beth Boris Carl Cleo Cora Cyril Daisy Dan Dirk Dora Edie Ella Emil Emma "
        "Ezra Fay Felix Fern Finn Fred Gil Gina Greta Gus Gwen Hal Hana Hilda Holly Hugo Ida Igor Iris Ivan Jack Jane "
        "Jim June Karl Kate Ken Kim Kurt Leo Lily Lou Lucy Luke Maud Max Mia Milo Molly Ned Nell Nick Nora Olga Otto "
        "Pam Paul Pearl Penny Pete Quinn Ray Rex Rob Rosa Ruby Sally Sam Seth Sue Ted Tess Tilly Tom Ulf Una Vera Vito "
        "Walt Wilma Yuri Zack Zara Zoe"
    ),
    "ELMFORD": _words(
        "Ashby Ashford Ashton Beckdale Beckham Beckmouth Bramford Bramley Bramwick Brookby Brookdale Brookton Crowham "
        "Crowmouth Crowwick Deerford Deerley Deerton Dunby Dundale Dunham Eastley Eastmouth Eastwick Elmby Elmford "
        "Elmton Fendale Fenham Fenmouth Foxford Foxley Foxwick Glenby Glendale Glenton Hartham Hartmouth Hartwick "
        "Kirkford Kirkley Kirkton Lamby Lamdale Lamham Marlley Marlmouth Marlwick Millby Millford Millton Nordale "
        "Norham Normouth Oakford Oakley Oakwick Owlby Owldale Owlton Penham Penmouth Penwick Quarford Quarley Quarton "
        "Redby Reddale Redham Rushley Rushmouth Rushwick Stoneby Stoneford Stoneton Sundale Sunham Sunmouth Thornford "
        "Thornley Thornwick Upby Updale Upton Westham Westmouth Westwick Windford Windley Windton Woolby Wooldale "
        "Woolham Yarley Yarmouth Yarwick"
    ),
    "SHY": _words(
        "bold brave calm careful cheery clever clumsy cosy cross curious daring dizzy dreamy fair famous fierce funny "
        "fussy gentle glad greedy grumpy happy hasty humble hungry jolly keen kind lazy lively lonely loud lucky merry "
        "modest neat nimble noisy nosy patient playful plucky plump polite proud quiet rich rude sad shaky shy silly "
        "sleepy smart strict stubborn thirsty tidy tired vain warm wise young"
    ),
    "BAKER": _words(
        "baker banker barber beekeeper bellringer butcher captain carpenter chimneysweep clockmaker clown cobbler cook "
        "cowherd dancer diver doctor drummer farmer fiddler fisher gardener grocer hatter hunter jeweller judge juggler "
        "king knight knitter lamplighter magician mason miller nurse painter pilot piper pirate plumber poet postman "
        "potter printer queen ranger rider runner saddler sailor shepherd singer skater smith spy tailor tanner teacher "
        "thatcher tinker weaver wizard writer"
    ),
    "FOUND": _words("found noticed saw spotted"),
    "RED": _words(
        "beige black blue bronze brown checked cobalt copper coral cream crimson dotted flowery gilded golden green "
        "grey jade khaki lemon lilac lime marbled maroon mauve navy peachy pink plaid purple red rose ruby salmon "
        "scarlet sienna silver speckled spotted striped tan tartan teal turquoise violet white wine yellow"
    ),
    "KITE": _words(
        "ball basket bell belt blanket boat book boot bottle bowl box brooch broom brush bucket button cage cake candle "
        "cart chain chair chest cloak clock coat coin comb compass crown cup cushion dish doll drum fan feather fiddle "
        "flag flute fork globe glove hammer harp hat jug kettle key kite ladder lamp lantern letter locket map marble "
        "mirror parasol pencil pillow puppet ribbon ring rope rug sack saddle sail saw scarf shawl shoe sock spade "
        "spoon stamp stool table teapot thimble top tray trumpet tub vase violin watch wheel whip whistle wig"
    ),
    "NEAR": _words("against behind below beneath beside inside near under"),
    "TALL": _words(
        "bare bright burnt busy crooked crumbling damp dark deep drowned dry flooded foggy frozen gloomy grand hidden "
        "hollow humming leafy leaning lonely long mossy muddy nameless narrow northern pale quiet royal ruined "
        "sandy secret shady silent sleeping snowy steep stony sunken sunny tall tidy vast wild windy"
    ),
    "MILL": _words(
        "bakery barn beach bog bridge brook canal castle cave cellar chapel cliff court dam dock farm ferry forest fort "
        "fountain garden gate grove harbour hill hut inn island jetty lake lane library lighthouse market marsh maze "
        "meadow mill moor orchard palace park path pier pond quarry road ruin school shed shop smithy spring square "
        "stable temple tower tree valley vineyard wall waterfall well wharf windmill wood"
    ),
    "FOX": _words(
        "ape badger bear beaver boar bull calf camel cat cow crab crow deer dog donkey dove duck eagle elk ferret finch "
        "fox frog goat goose gull hamster hare hawk hedgehog hen heron horse jay kid lamb lark lion lizard lynx magpie "
        "mole moose mouse mule newt otter owl ox panda parrot pig pony quail rabbit raven robin seal sheep snail spider "
        "squirrel stork swan tiger toad toucan trout turtle vole wasp weasel whale wolf wren yak zebra"
    ),
    "LOST": _words("buried dropped forgot hid left lost mislaid misplaced"),
    "SELLING": _words(
        "baking boiling buying chasing cooking counting drying eating frying grating growing hauling juggling mashing "
        "packing painting peeling picking piling planting roasting salting selling sharing slicing smelling sorting "
        "stacking stealing tasting washing weighing"
    ),
    "FIVE": _words("four five six seven eight nine ten"),
    "TWO": _words("two three"),
    "PLUMS": _words(
        "acorns almonds apples apricots bananas beans beets berries biscuits buns cakes carrots cherries chestnuts "
        "chips cookies crackers crisps dates dumplings eggs figs grapes herrings kippers leeks lemons limes loaves "
        "mangoes melons mints muffins noodles nuts olives onions oranges pancakes parsnips peaches pears peas peppers "
        "pickles pies plums prunes pumpkins quinces radishes raisins rolls sardines sausages scones sprouts tarts "
        "toffees tomatoes truffles turnips waffles walnuts"
    ),
    "GOT": _words("ate got took won"),
    "WALKED": _words(
        "ambled climbed crept cycled danced dashed drifted flew galloped hopped hurried jogged limped marched paddled "
        "plodded raced ran rode rolled rushed sailed skipped sneaked strolled stumbled swam tiptoed trotted waddled "
        "walked wandered"
    ),
    "PAST": _words("around over past through"),
    "CRIED": _words(
        "barked beamed bellowed chirped chuckled cried gasped giggled growled grunted hooted howled hummed laughed "
        "moaned mumbled muttered neighed panted purred roared sang screamed shouted sighed sobbed squeaked wailed "
        "whined whispered yawned yelled"
    ),
}
