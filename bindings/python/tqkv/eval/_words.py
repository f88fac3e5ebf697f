# SPDX-License-Identifier: Apache-2.0
"""Words and sentences of the prompts: plain English, made by a seed, from lists that the constructed model's
vocabulary holds too. Every word stands behind a space, so that it is one token there."""
import random
from typing import Iterator, List

ADJECTIVES = """amber ancient autumn blue brave bright broad calm clear clever cold crimson curious dark
deep distant eager early empty faint fair fast fine firm gentle golden grand gray green heavy hidden high
hollow honest humble iron keen kind large late light little lively lonely long loud low lucky mellow mild
modest narrow neat noble old open pale patient plain proud pure quick quiet rapid rare rich rough round
rustic scarlet serene sharp silent silver simple slow smooth soft solid spare steady steep stern still
strong subtle sunny swift tall tender thin tidy tiny vast velvet violet warm weary white wide wild winter
wise wooden young""".split()

NOUNS = """acorn anchor apple arrow ash badger bakery ballad barn barrel basin basket beacon bell bench
berry birch blanket boat book border bottle bowl branch bread breeze brick bridge brook broom bucket
button cabin candle canoe canvas canyon carpet castle cedar chapel cherry chest chimney circle cliff
clock cloud clover coast comet compass copper coral corner cottage cotton crane creek cricket crown
crystal curtain daisy dawn desert dove dragon drum dune eagle echo elm ember engine falcon feather fern
ferry fiddle field finch flame flute forest fountain fox garden gate glacier glove goose grove guitar
hammer harbor harvest hawk hazel hedge heron hill honey horizon horse inlet island ivory ivy jacket
jasmine jewel kettle kite ladder lagoon lake lamp lantern lark laurel leaf lemon lily linen lizard locket
loom lotus magnet maple marble market marsh meadow melody mill mint mirror mist moon moss mountain needle
nest oak oasis ocean olive orchard otter owl paddle palace paper parrot path pearl pebble pepper piano
pigeon pillow pine planet plum pocket pond poplar prairie puzzle quarry quilt rabbit raft rain raven reef
ribbon ridge river robin rope rose saddle sail salmon sand sapphire scarf school shadow shell shore
signal snow sparrow spiral spring spruce squirrel stable star stone storm stream summit sunset swan table
temple thistle thunder timber torch tower trail tulip tunnel turtle valley village violin wagon walnut
water wave wheat wheel willow window wolf wren""".split()

VERBS = """carried crossed followed found guarded joined left liked moved painted passed reached
remembered saw sold visited watched wanted warmed""".split()

# What the prompts of _tasks.py say besides.
GLUE = """a above access an and answer are as at behind below beside by code codes common from has here
holds in is it keeps leads list most near now of on only one or question remember that the their then
there these this to under user was we were what which with word words you assistant The We This Here Then
A Question Answer User Assistant Remember""".split()

VOCABULARY = sorted(set(ADJECTIVES) | set(NOUNS) | set(VERBS) | set(GLUE))


def sentences(generator: random.Random) -> Iterator[str]:
    """Endless filler; each begins with a space and ends with a full stop."""
    pick = generator.choice
    while True:
        a, b, c = (f"{pick(ADJECTIVES)} {pick(NOUNS)}" for _ in range(3))
        yield pick((f" The {a} {pick(VERBS)} the {b} near the {c}.",
                    f" We {pick(VERBS)} a {a} and then the {b}.",
                    f" Then the {a} was behind the {b}, by the {c}.",
                    f" This {a} is beside a {b}."))


def keys(generator: random.Random, count: int) -> List[str]:
    """Different "adjective noun" names. Half of them share an adjective with others, and a quarter a noun: a
    match of all words but one is then near."""
    few, fewer, chosen = generator.sample(ADJECTIVES, 4), generator.sample(NOUNS, 4), {}
    while len(chosen) < count:
        kind = generator.random()
        adjective = generator.choice(few if kind < 0.5 and count <= 4 * len(NOUNS) else ADJECTIVES)
        noun = generator.choice(fewer if kind > 0.75 and count <= 4 * len(ADJECTIVES) else NOUNS)
        chosen[f"{adjective} {noun}"] = None
    return list(chosen)
