"""English words of the demonstration: what is reviewed, how a review begins, and graded opinions.

In an opinion the part in [brackets] is what carries its sentiment; it is an entry of the lexicon by
which `demo.gold_score` judges. `{aspect}` and `{product}` are filled in.
"""

# A category: its products and the aspects that reviews of them mention.
CATEGORIES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "kitchen": (
        ("kettle", "frying pan", "blender", "lunch box", "coffee maker", "toaster"),
        ("lid", "handle", "finish", "base", "coating", "size"),
    ),
    "electronics": (
        ("headset", "speaker", "keyboard", "power bank", "desk lamp", "webcam"),
        ("battery", "sound", "cable", "switch", "build quality", "manual"),
    ),
    "clothing": (
        ("jacket", "sweater", "raincoat", "backpack", "scarf", "dress"),
        ("fabric", "stitching", "colour", "cut", "zip", "lining"),
    ),
    "home": (
        ("pillow", "blanket", "mattress", "carpet", "bookshelf", "office chair"),
        ("texture", "padding", "frame", "colour", "surface", "shape"),
    ),
    "food": (
        ("green tea", "honey", "rice", "ground coffee", "dried mango", "olive oil"),
        ("taste", "aroma", "packaging", "texture", "flavour", "aftertaste"),
    ),
}

WHEN = (
    "last week", "two months ago", "on sale", "for my mother", "for my new flat", "as a gift",
    "for the office", "after reading the reviews", "to replace an old one", "with a friend",
)  # fmt: skip
SPAN = ("a few days", "a week", "two weeks", "a month", "half a year", "one year")

# What opens a review. The first kind ends a sentence; the second leads into the first opinion.
OPENINGS = (
    "I bought this {product} {when}.",
    "We ordered the {product} {when}.",
    "My {product} was bought {when}.",
    "I have had this {product} for {span}.",
)
LEAD_INS = (
    "After {span} with this {product}, I think",
    "I bought the {product} {when}, and",
    "I have used the {product} for {span}:",
)

# Opinions by grade, −2 to 2.
ADJECTIVES: dict[int, tuple[str, ...]] = {
    2: (
        "excellent", "superb", "outstanding", "fantastic", "wonderful", "first-rate", "flawless",
        "brilliant", "amazing", "perfect", "beautiful", "impressive", "a pure delight",
    ),
    1: (
        "good", "nice", "solid", "pleasant", "better than expected", "not bad", "quite good",
        "well made", "fine", "pretty decent", "satisfying", "not bad at all",
    ),
    0: (
        "average", "ordinary", "as described", "about what I expected", "so-so", "standard",
        "neither here nor there", "nothing special",
    ),
    -1: (
        "poor", "weak", "disappointing", "not good", "rather cheap", "worse than expected",
        "mediocre", "not great", "a bit flimsy", "not very nice", "far from perfect", "annoying",
    ),
    -2: (
        "terrible", "awful", "dreadful", "horrible", "useless", "appalling", "a complete mess",
        "shockingly bad", "disgusting", "a total failure", "the worst I have seen", "ruined",
    ),
}  # fmt: skip
ASPECT_FORMS = (
    "the {aspect} is {adjective}",
    "the {aspect} turned out {adjective}",
    "I find the {aspect} {adjective}",
    "its {aspect} seems {adjective}",
)

# Opinions on what every purchase has: delivery, service, price, durability.
TOPICS: dict[str, dict[int, tuple[str, ...]]] = {
    "delivery": {
        2: ("delivery was [incredibly fast]", "it arrived [two days early]",
            "the parcel came [the very next morning]"),
        1: ("delivery was [quick]", "it arrived [on time]", "the parcel was [well packed]"),
        0: ("it [came within a week]", "delivery [took the usual time]"),
        -1: ("delivery was [slow]", "it arrived [a bit late]", "the box was [slightly dented]"),
        -2: ("delivery [took a whole month]", "the parcel arrived [completely crushed]",
             "they [sent the wrong one twice]"),
    },
    "service": {
        2: ("the seller was [extremely helpful]", "support [answered within minutes]",
            "the staff [went out of their way]"),
        1: ("the seller was [friendly]", "support was [polite]", "my questions were [answered]"),
        0: ("I [did not need support]", "the seller [sent a standard reply]"),
        -1: ("the seller was [slow to reply]", "support was [not helpful]",
             "the staff sounded [bored]"),
        -2: ("the seller was [incredibly rude]", "support [never answered]",
             "they [refused a refund]"),
    },
    "price": {
        2: ("it is [worth every penny]", "the price is [unbeatable]", "it was [a real bargain]"),
        1: ("the price is [fair]", "it is [good value]", "it costs [less than elsewhere]"),
        0: ("the price is [the same everywhere]", "it costs [what such things cost]"),
        -1: ("it is [a little overpriced]", "the price is [too high]",
             "it is [not worth the price]"),
        -2: ("it is [a waste of money]", "the price is [a rip-off]", "it is [daylight robbery]"),
    },
    "durability": {
        2: ("it [still looks brand new]", "it [survives everything]", "it [has never let me down]"),
        1: ("it [holds up well]", "it [seems sturdy]", "it [still works]"),
        0: ("it [shows normal wear]", "time [will tell]"),
        -1: ("it [scratches easily]", "it [wears out quickly]", "it [wobbles a little]"),
        -2: ("it [broke on the first day]", "it [fell apart]", "it [stopped working at once]"),
    },
}  # fmt: skip

CLOSINGS: dict[int, tuple[str, ...]] = {
    2: ("[I love it]!", "[Highly recommended]!", "[Best purchase of the year]!",
        "[Everyone should have one]!"),
    1: ("[I would buy it again].", "[A sound choice].", "[I am happy with it].",
        "[It does the job well]."),
    0: ("[Make up your own mind].", "[It is what it is].", "[Nothing more to say]."),
    -1: ("[I would not buy it again].", "[I expected more].", "[I cannot recommend it].",
         "[There are better ones]."),
    -2: ("[Avoid it]!", "[I want my money back]!", "[Never again]!", "[I threw it away]."),
}  # fmt: skip

SAME = (", and ", ", also ", "; ")
CONTRAST = (", but ", ", although ", ", yet ")
NEGATORS = (
    "not", "never", "hardly", "isn't", "wasn't", "don't", "doesn't", "didn't", "cannot", "far from",
    "anything but",
)  # fmt: skip
BETWEEN = ("very", "really", "that", "so", "at all", "particularly", "a", "quite", "exactly")
