"""What removes concepts without an SAE, under the same interface."""

from vision_sae.recipes.unlearn.baselines.cross_attention import CrossAttentionTuning
from vision_sae.recipes.unlearn.baselines.guidance import SafeGuidance
from vision_sae.recipes.unlearn.baselines.means import DifferenceOfMeans
from vision_sae.recipes.unlearn.baselines.negative_prompt import NegativePrompt
from vision_sae.recipes.unlearn.baselines.random_latents import RandomLatents
from vision_sae.recipes.unlearn.baselines.words import VocabularyWords, Words

__all__ = [
    "CrossAttentionTuning", "DifferenceOfMeans", "NegativePrompt", "RandomLatents", "SafeGuidance",
    "VocabularyWords", "Words",
]  # fmt: skip
