"""Every way to remove a concept from emoji-diffusion, for the benchmark, by name."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from vision_sae.recipes.unlearn.apply import removal_of
from vision_sae.recipes.unlearn.assign import Assigned, assign
from vision_sae.recipes.unlearn.choice import BEST, SAEURON, Choice
from vision_sae.recipes.unlearn.evidence import Evidence, nearest, observe
from vision_sae.recipes.unlearn.find import plan_for
from vision_sae.recipes.unlearn.labelled import labelled_rows
from vision_sae.recipes.unlearn.plan import Plan
from vision_sae.recipes.unlearn.prompts import Labelled
from vision_sae.recipes.unlearn.removal import Method, Removal
from vision_sae.sae import SAE

# settings by factor, chosen on validation seeds (docs/unlearn.md)
Choices = Mapping[str, Choice]
USUAL: Choices = {"object": BEST, "style": replace(BEST, towards="style:plain")}
ACTIVATIONS: Choices = {f: replace(c, reads="activations") for f, c in USUAL.items()}
EDITED: Choices = {
    "object": Choice(mode="scale", multiplier=-2.0, score="difference", count=16),
    "style": Choice(mode="replace", towards="nearest", count=128),
}
PATCHES: Choices = {
    "object": Choice(mode="patches", where="image+mask", score="difference", count=16)
}
ASSIGNED: Choices = {
    "object": Choice(mode="clamp", multiplier=-16.0),
    "style": Choice(mode="clamp", multiplier=-4.0),
}
FIRST_SEED = 40_000_000  # of the prompts that statistics are taken on: neither split's
ATTACKED = ("object:pizza", "object:frog", "style:neon", "style:sepia")
FEW = (
    "cross-attention tuning", "random latents", "safe guidance", "sae, assigned latents",
    "text steering",
)  # fmt: skip


def asked(per_pair: int = 4) -> list[Labelled]:
    """Every (object, look) asked plainly, `per_pair` seeds each."""
    from vision_sae.assets.vocabulary import OBJECTS, STYLES, ask
    from vision_sae.data.prompts import Prompt

    pairs = [(o, s) for _ in range(per_pair) for o in OBJECTS for s in ("", *STYLES)]
    return [
        Labelled(Prompt(ask(o, s), FIRST_SEED + i), {"object": o, "style": s or "plain"})
        for i, (o, s) in enumerate(pairs)
    ]


def all_concepts() -> list[str]:
    from vision_sae.assets.vocabulary import OBJECTS, STYLES

    return [f"object:{o}" for o in OBJECTS] + [f"style:{s}" for s in STYLES]


class Observed:
    """The evidence for all concepts, looked at once and shared by the methods that need it."""

    def __init__(
        self, pipe: Any, saes: Callable[[], Mapping[str, SAE]], *, per_pair: int = 4
    ) -> None:
        self.pipe, self._saes, self.per_pair = pipe, saes, per_pair

    @cached_property
    def saes(self) -> Mapping[str, SAE]:
        return self._saes()

    @cached_property
    def adapter(self) -> Any:
        from vision_sae.adapters.diffusion import TrajectoryAdapter

        return TrajectoryAdapter(self.pipe, steps=25, guidance=3.0, name="emoji-diffusion")

    @cached_property
    def evidence(self) -> Evidence:
        return observe(self.adapter, self.saes, asked(self.per_pair), all_concepts())


@dataclass(frozen=True)
class SAEPlans:
    """Plans from SAEs on the U-Net, with one choice of settings per factor; each is made once."""

    observed: Observed
    choices: Choices = field(default_factory=lambda: USUAL)
    name: str = "sae"
    made: dict[Any, Plan] = field(default_factory=dict)

    def fit(self, pipe: Any, concepts: Sequence[str]) -> Removal:
        return removal_of(self.plans(pipe, concepts), self.observed.saes)

    def plans(self, pipe: Any, concepts: Sequence[str]) -> list[Plan]:
        """None of the concepts is replaced by another of them."""
        return [self._plan(concept, concepts) for concept in concepts]

    def _plan(self, concept: str, removed: Sequence[str]) -> Plan:
        found, choice = self.observed.evidence, self.choices[concept.partition(":")[0]]
        if choice.towards == "nearest":
            choice = replace(choice, towards=nearest(found, concept, avoid=removed))
        key = (concept, choice.towards)
        if key not in self.made:
            self.made[key] = plan_for(found, concept, choice)
        return self.made[key]


class AssignedLatents:
    """SAEs that are fine-tuned so that each concept has one latent, which alone is edited.

    After SAEmnesia. The image gate reads latents as it does for the other methods. All concepts are
    assigned at once, when the first is removed.
    """

    name = "sae, assigned latents"

    def __init__(
        self, first: Observed, choices: Choices | None = None, *, steps: int = 400,
        positive: float = 1.0,
    ) -> None:  # fmt: skip
        self.first, self.choices = first, choices or ASSIGNED
        self.steps, self.positive = steps, positive
        saes = lambda: {site: each.sae for site, each in self.assigned.items()}  # noqa: E731
        self.observed = Observed(first.pipe, saes, per_pair=2)

    @cached_property
    def assigned(self) -> dict[str, Assigned]:
        concepts, saes = all_concepts(), self.first.saes
        rows = labelled_rows(self.first.adapter, list(saes), asked(2), concepts)
        return {
            site: assign(
                sae, rows[site].batches(2048), concepts, steps=self.steps, positive=self.positive
            )
            for site, sae in saes.items()
        }

    def fit(self, pipe: Any, concepts: Sequence[str]) -> Removal:
        plans = [self._plan(concept) for concept in concepts]
        return removal_of(plans, self.observed.saes)

    def _plan(self, concept: str) -> Plan:
        place = all_concepts().index(concept)
        mine = {site: [int(each.latents[place])] for site, each in self.assigned.items()}
        choice = self.choices[concept.partition(":")[0]]
        return plan_for(self.observed.evidence, concept, choice, latents=mine)


def all_methods(
    pipe: Any, saes: Mapping[int, Callable[[], Mapping[str, SAE]]], *, per_pair: int = 4
) -> dict[str, Callable[[], Method]]:
    """Factories of all methods; of those on SAEs one for each seed of these ("sae@1").

    `per_pair` prompts of each pair of object and look are what plans are made from.
    """
    from vision_sae.recipes.unlearn.baselines import (
        CrossAttentionTuning,
        DifferenceOfMeans,
        NegativePrompt,
        SafeGuidance,
    )
    from vision_sae.recipes.unlearn.concept_steering import ConceptSteering

    observed = {seed: Observed(pipe, of, per_pair=per_pair) for seed, of in saes.items()}
    first = next(iter(observed.values()))
    published = dict.fromkeys(USUAL, SAEURON)
    found: dict[str, Callable[[], Method]] = {
        f"sae@{seed}": lambda each=each: SAEPlans(each)  # type: ignore[misc]
        for seed, each in observed.items()
    }
    return found | {
        "activations": lambda: SAEPlans(first, ACTIVATIONS, "activations"),
        "negative prompt": NegativePrompt,
        "difference of means": lambda: DifferenceOfMeans(
            tuple(first.saes), strength=2.0, images=80
        ),
        "safe guidance": SafeGuidance,
        "sae, latents edited": lambda: SAEPlans(first, EDITED, "sae, latents edited"),
        "sae, as SAEuron": lambda: SAEPlans(first, published, "sae, as SAEuron"),
        "random latents": lambda: random_latents(first),
        "sae, assigned latents": lambda: AssignedLatents(first),
        "text steering": lambda: ConceptSteering(strength=0.85),
        "sae, patches (PER)": lambda: SAEPlans(first, PATCHES, "sae, patches (PER)"),
        "cross-attention tuning": CrossAttentionTuning,
    }


def limits(concepts: Sequence[str]) -> dict[str, list[str]]:
    """Methods that are measured on the attacked concepts alone, so that all fits in an hour and a
    half; patches on the objects among them."""
    few = [c for c in concepts if c in ATTACKED]
    objects = [c for c in few if c.startswith("object:")]
    return {"sae, patches (PER)": objects} | dict.fromkeys(FEW, few)


def random_latents(observed: Observed) -> Method:
    """As many live latents, edited in the same way."""
    from vision_sae.recipes.unlearn.baselines import RandomLatents
    from vision_sae.recipes.unlearn.baselines.random_latents import live_latents

    live = {
        site: live_latents(found.actives[-1] / found.count[-1])
        for site, found in observed.evidence.statistics.items()
    }
    return RandomLatents(SAEPlans(observed, EDITED).plans, observed.saes, live)
