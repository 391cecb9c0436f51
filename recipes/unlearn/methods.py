"""Every way to remove a concept from emoji-diffusion, for the benchmark, by name."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from vision_sae.recipes.unlearn.apply import removal_of
from vision_sae.recipes.unlearn.find import SAEURON, Choice, Evidence, observe, plan_for
from vision_sae.recipes.unlearn.prompts import Labelled
from vision_sae.recipes.unlearn.removal import Method, Removal
from vision_sae.sae import SAE

# settings by factor; chosen on validation seeds of eight concepts (docs/unlearn.md)
OBJECTS = Choice(mode="scale", multiplier=-2.0, score="difference", count=16)
STYLES = Choice(mode="replace", towards="style:blueprint", count=128)
USUAL: Mapping[str, Choice] = {"object": OBJECTS, "style": STYLES}
FIRST_SEED = 40_000_000  # of the prompts that statistics are taken on: neither split's


def asked(per_pair: int = 4) -> list[Labelled]:
    """Every (object, look) asked plainly, `per_pair` seeds each."""
    from vision_sae.assets.vocabulary import OBJECTS, STYLES, ask
    from vision_sae.data.prompts import Prompt

    pairs = [(o, s) for _ in range(per_pair) for o in OBJECTS for s in ("", *STYLES)]
    return [
        Labelled(Prompt(ask(o, s), FIRST_SEED + i), {"object": o, "style": s or "plain"})
        for i, (o, s) in enumerate(pairs)
    ]


class Observed:
    """The evidence for all concepts, looked at once and shared by the methods that need it."""

    def __init__(self, pipe: Any, saes: Mapping[str, SAE], *, per_pair: int = 4) -> None:
        self.pipe, self.saes, self.per_pair = pipe, saes, per_pair

    @cached_property
    def evidence(self) -> Evidence:
        from vision_sae.adapters.diffusion import TrajectoryAdapter
        from vision_sae.assets.vocabulary import OBJECTS, STYLES

        adapter = TrajectoryAdapter(self.pipe, steps=25, guidance=3.0, name="emoji-diffusion")
        concepts = [f"object:{o}" for o in OBJECTS] + [f"style:{s}" for s in STYLES]
        return observe(adapter, self.saes, asked(self.per_pair), concepts)


@dataclass(frozen=True)
class SAEPlans:
    """Plans from SAEs on the U-Net, with one choice of settings per factor."""

    observed: Observed
    choices: Mapping[str, Choice] = field(default_factory=lambda: USUAL)
    name: str = "sae"

    def fit(self, pipe: Any, concepts: Sequence[str]) -> Removal:
        found = self.observed.evidence
        plans = [plan_for(found, c, self._choice(c)) for c in concepts]
        return removal_of(plans, self.observed.saes)

    def _choice(self, concept: str) -> Choice:
        """Nothing is replaced by itself."""
        choice = self.choices[concept.partition(":")[0]]
        return replace(choice, towards="style:sepia") if choice.towards == concept else choice


def all_methods(pipe: Any, *, quick: bool = False) -> Mapping[str, Callable[[], Method]]:
    """Factories of all methods; `quick` leaves out the slow ones."""
    from vision_sae.assets.models import emoji_diffusion_saes
    from vision_sae.recipes.unlearn.baselines.cross_attention import CrossAttentionTuning
    from vision_sae.recipes.unlearn.baselines.guidance import SafeGuidance
    from vision_sae.recipes.unlearn.baselines.means import DifferenceOfMeans
    from vision_sae.recipes.unlearn.baselines.negative_prompt import NegativePrompt

    saes = emoji_diffusion_saes()
    observed = Observed(pipe, saes, per_pair=2 if quick else 4)
    published = dict.fromkeys(USUAL, SAEURON)
    found: dict[str, Callable[[], Method]] = {
        "sae": lambda: SAEPlans(observed),
        "sae, as SAEuron": lambda: SAEPlans(observed, published, "sae, as SAEuron"),
        "negative prompt": NegativePrompt,
        "safe guidance": SafeGuidance,
        "difference of means": lambda: DifferenceOfMeans(tuple(saes), strength=2.0),
    }
    return found if quick else found | {"cross-attention tuning": CrossAttentionTuning}
