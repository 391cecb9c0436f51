"""What a benchmark asks for: every pair of object and style, with seeds of their own per split.

The pictures of one concept ("object:pizza", "style:neon") are asked as follows.
targets: every pair that holds it, `per_pair` seeds each.
others: a fixed sample of pairs without it, one picture each, the same for all concepts as far as
they do not hold it, so that the unedited pictures are drawn once.
"""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from jaxtyping import Float
from torch import Tensor

from vision_sae.errors import ConfigError, UnknownName
from vision_sae.recipes.unlearn.prompts import VALIDATION_SEED

Split = str  # "validation" or "test"
Embed = Callable[[Float[Tensor, "n 3 h w"]], Float[Tensor, "n e"]]
FIRST_SEED: Mapping[str, int] = {"validation": VALIDATION_SEED, "test": 20_000_000}
PLAIN = "plain"  # what the judge calls a picture without a style
FACTORS = ("object", "style")


class Ask(NamedTuple):
    """One picture: its prompt, its noise, and what it should show (style PLAIN for none)."""

    text: str
    seed: int
    object: str
    style: str

    def value(self, factor: str) -> str:
        return self.object if factor == "object" else self.style

    def holds(self, concept: str) -> bool:
        factor, value = parse(concept)
        return self.value(factor) == value


def parse(concept: str) -> tuple[str, str]:
    """ "object:pizza" as (factor, value). Raises ConfigError for another form."""
    factor, colon, value = concept.partition(":")
    if factor not in FACTORS or not colon or not value:
        raise ConfigError(f"a concept is object:VALUE or style:VALUE; got {concept!r}")
    return factor, value


def other_factor(factor: str) -> str:
    return FACTORS[1 - FACTORS.index(factor)]


@dataclass(frozen=True, eq=False)
class World:
    """A pipeline, who judges its pictures, and the words to ask for them.

    `judge` takes pictures [n 3 h w] in 0..1 and gives `.object` [n objects] and `.style` [n
    styles] logits in the order of `judge.objects` and `judge.styles`. `embed` gives the features in
    which Frechet and kernel distances and artefacts are measured. `ask` takes an object and a style
    ("" for none). Raises ConfigError when the judge does not know a value.
    """

    pipe: Any
    judge: Any
    objects: tuple[str, ...]
    styles: tuple[str, ...]  # without PLAIN
    ask: Callable[[str, str], str]
    embed: Embed
    layers: Callable[[Float[Tensor, "n 3 h w"]], list[Tensor]] | None = (
        None  # [n t d] of each layer
    )
    synonyms: Mapping[str, Sequence[str]] | None = None
    misspell: Callable[[str, random.Random], str] | None = None
    steps: int = 25
    guidance: float = 3.0

    def __post_init__(self) -> None:
        for kind, values, known in (
            ("object", self.objects, self.judge.objects),
            ("style", (PLAIN, *self.styles), self.judge.styles),
        ):
            unknown = [value for value in values if value not in known]
            if unknown:
                raise ConfigError(
                    f"the judge knows no {kind} {', '.join(unknown)}; it knows {', '.join(known)}"
                )

    @property
    def concepts(self) -> tuple[str, ...]:
        return (*(f"object:{o}" for o in self.objects), *(f"style:{s}" for s in self.styles))

    def check(self, concept: str) -> None:
        """Raises UnknownName with near matches, ConfigError for another form."""
        parse(concept)
        if concept not in self.concepts:
            raise UnknownName("concept", concept, self.concepts)

    def asks(self, split: Split, number: int = 0) -> list[Ask]:
        """Every pair once, with the number-th seed of each. Raises UnknownName for a split."""
        if split not in FIRST_SEED:
            raise UnknownName("split", split, FIRST_SEED)
        pairs = [(o, s) for o in self.objects for s in (PLAIN, *self.styles)]
        first = FIRST_SEED[split] + number * 1000
        return [
            Ask(self.ask(o, "" if s == PLAIN else s), first + i, o, s)
            for i, (o, s) in enumerate(pairs)
        ]

    def targets(self, concept: str, split: Split, per_pair: int) -> list[Ask]:
        """Every pair that holds the concept, `per_pair` seeds each."""
        self.check(concept)
        rounds = [self.asks(split, number) for number in range(per_pair)]
        return [ask for asks in rounds for ask in asks if ask.holds(concept)]

    def others(self, concepts: Sequence[str], split: Split, count: int) -> list[Ask]:
        """The first `count` pairs of a fixed order that hold none of the concepts."""
        for concept in concepts:
            self.check(concept)
        asks = self.asks(split)
        random.Random(0).shuffle(asks)
        left = [ask for ask in asks if not any(ask.holds(concept) for concept in concepts)]
        return left[:count]


def emoji_world(**settings: Any) -> World:
    """emoji-diffusion, emoji-judge and the features of emoji-clip, all of them embedded."""
    from vision_sae.assets.judge import Judge
    from vision_sae.assets.models import emoji_clip, emoji_diffusion_pipe
    from vision_sae.assets.vocabulary import OBJECTS, STYLES, SYNONYMS, ask, misspelt
    from vision_sae.recipes.unlearn.benchmark.features import ClipFeatures

    pipe = emoji_diffusion_pipe()
    pipe.set_progress_bar_config(disable=True)
    features = ClipFeatures(emoji_clip())
    return World(
        pipe, Judge.load(), OBJECTS, STYLES, ask, features.embed, features.layers,
        SYNONYMS, misspelt, **settings,
    )  # fmt: skip
