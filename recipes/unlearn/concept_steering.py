"""Text steering as a method of the benchmark, and as a plan (Concept Steerers, see text.py)."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from vision_sae.recipes.unlearn.baselines.words import VocabularyWords, Words, asked, left_alone
from vision_sae.recipes.unlearn.plan import Plan, sample_of, schedule_of
from vision_sae.recipes.unlearn.removal import Draw, Removal
from vision_sae.recipes.unlearn.text import steer_text, text_edits
from vision_sae.recipes.unlearn.text_layers import Layers, text_rows
from vision_sae.sae import SAE, SAEConfig
from vision_sae.store import MemoryStore
from vision_sae.train import TrainConfig, train


@dataclass(frozen=True)
class ConceptSteering:
    """Trains a k-SAE on the text encoder, and steers away from the words of all concepts.

    Without an `sae` one is trained on the prompts of `words`: those of the concepts and those
    without them.
    """

    strength: float = 0.5
    sae: SAE | None = None
    layer: Layers | None = None
    negative: bool = True
    k: int = 16
    expansion: int = 4
    updates: int = 500
    seed: int = 0
    words: Words = field(default_factory=VocabularyWords)
    name: str = "text steering"

    def fit(self, pipe: Any, concepts: Sequence[str]) -> Removal:
        sae = self.sae or self.trained(pipe, concepts)
        texts = [self.words.words(concept) for concept in concepts]

        @contextmanager
        def removal(pipe: Any) -> Iterator[Draw]:
            layer, both = self.layer, self.negative
            with steer_text(pipe, sae, texts, self.strength, layer=layer, negative=both) as draw:
                yield draw

        return removal

    def plan(self, adapter: Any, sae: SAE, concept: str, text: str) -> Plan:
        """The plan that steers away from a text, to remove a concept."""
        given: dict[str, Any] = {"layer": self.layer, "negative": self.negative}
        edits = text_edits(adapter.pipe, sae, text, self.strength, **given)
        weights, schedule = sample_of(adapter.model), schedule_of(adapter.pipe)
        return Plan(concept, (), adapter.name, weights, schedule, {"words": text}, edits)

    def trained(self, pipe: Any, concepts: Sequence[str]) -> SAE:
        """An SAE of the tokens of all prompts. Raises DataError when there are none."""
        texts = {p for concept in concepts for p in asked(self.words, concept)}
        texts |= {p for c in concepts for p in left_alone(self.words, c, concepts)}
        return self.trained_on(pipe, sorted(texts))

    def trained_on(self, pipe: Any, texts: Sequence[str]) -> SAE:
        """An SAE of the tokens of these texts."""
        rows = text_rows(pipe, texts, self.layer)
        d = rows.shape[1]
        config = SAEConfig.of(d, self.expansion * d, "topk", k=self.k)
        size = min(1024, len(rows))
        settings = TrainConfig(steps=self.updates, batch_size=size, seed=self.seed)
        return train(SAE(config, seed=self.seed), MemoryStore(rows), settings)
