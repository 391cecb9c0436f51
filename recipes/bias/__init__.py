"""Turn a concept in an embedding up or down, and see what a classifier makes of it.

from vision_sae.recipes.bias import bias, turned

brighter = turned(sae, x, {17: 2.0})
found = bias(sae, Store("acts/"), label="concept", concept="gender:woman")
for effect in found.effects:
    print(effect.name, effect.change, effect.p_holm, effect.control_p)
"""

from vision_sae.recipes.bias.analysis import Bias, Effect, bias
from vision_sae.recipes.bias.concept import Concept, concept_of
from vision_sae.recipes.bias.edit import turned
from vision_sae.recipes.bias.page import write_page

__all__ = ["Bias", "Concept", "Effect", "bias", "concept_of", "turned", "write_page"]
