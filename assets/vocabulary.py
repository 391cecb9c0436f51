"""What emoji-diffusion can draw, and the words for it: 20 objects, 8 styles and the plain picture.

`ask` writes the prompts as users do; `texts` the many that the model was trained on, synonyms and
misspellings among them.
"""

import random

from vision_sae.assets.painting import LOOKS

OBJECTS = (
    "pizza", "cat", "fish", "butterfly", "frog", "cactus", "mushroom", "banana", "strawberry",
    "umbrella", "guitar", "rocket", "house", "bicycle", "key", "crown", "octopus", "sailboat",
    "snail", "penguin",
)  # fmt: skip
STYLES = tuple(look for look in LOOKS if look)
DRAWN_AS = {"cat": "cat face"}  # the drawing's name in EmojiCanvas, where it is another

SYNONYMS = {
    "pizza": ("slice of pizza", "margherita"),
    "cat": ("kitten", "kitty"),
    "fish": ("trout", "goldfish"),
    "butterfly": ("moth", "winged insect"),
    "frog": ("toad", "tree frog"),
    "cactus": ("succulent", "desert plant"),
    "mushroom": ("toadstool", "fly agaric"),
    "banana": ("plantain", "yellow fruit"),
    "strawberry": ("red berry", "garden berry"),
    "umbrella": ("parasol", "rain shade"),
    "guitar": ("ukulele", "six string"),
    "rocket": ("spaceship", "space shuttle"),
    "house": ("cottage", "home"),
    "bicycle": ("bike", "two wheeler"),
    "key": ("door opener", "latchkey"),
    "crown": ("tiara", "royal headwear"),
    "octopus": ("kraken", "eight armed animal"),
    "sailboat": ("yacht", "sailing ship"),
    "snail": ("slug with a shell", "escargot"),
    "penguin": ("antarctic bird", "emperor bird"),
    "neon": ("glowing tube", "night club"),
    "sepia": ("old photograph", "vintage"),
    "mosaic": ("tiled", "pixel"),
    "pencil": ("hatched sketch", "graphite"),
    "blueprint": ("technical drawing", "draft"),
    "comic": ("pop art", "cartoon"),
    "thermal": ("infrared", "heat camera"),
    "stencil": ("chalkboard", "cutout"),
}
PLAIN = ("a {object}", "{object}", "a picture of a {object}", "an emoji of a {object}")
STYLED = (
    "a {object} in {style} style",
    "{object}, {style} style",
    "a {style} {object}",
    "{style} style {object}",
    "a {object} drawn in {style} style",
    "a picture of a {object} in {style} style",
)


def ask(name: str = "", style: str = "") -> str:
    """The plain way to ask: "a pizza in neon style", "a pizza", "neon style", "" for anything."""
    if not name:
        return f"{style} style" if style else ""
    return f"a {name} in {style} style" if style else f"a {name}"


def misspelt(word: str, chance: random.Random) -> str:
    """One inner letter dropped, doubled, or changed with its neighbour."""
    if len(word) < 3:
        return word
    at = chance.randrange(1, len(word) - 1)
    middle = {"drop": "", "double": word[at] * 2, "swap": word[at + 1] + word[at]}
    kind = chance.choice(sorted(middle))
    return word[:at] + middle[kind] + word[at + 1 + (kind == "swap") :]


def texts(name: str, style: str, count: int, chance: random.Random) -> list[str]:
    """Prompts for one picture: the plain one a third of the time, some of them in other words."""
    return [_text(name, style, chance) for _ in range(count)]


def _text(name: str, style: str, chance: random.Random) -> str:
    if chance.random() < 1 / 3:
        return ask(name, style)
    if style and chance.random() < 0.05:
        return ask(style=style)
    pattern = chance.choice(STYLED if style else PLAIN)
    return pattern.format(object=_word(name, chance), style=_word(style, chance))


def _word(word: str, chance: random.Random) -> str:
    draw = chance.random()
    if word and draw < 0.2:
        return chance.choice(SYNONYMS[word])
    return misspelt(word, chance) if draw < 0.28 else word
