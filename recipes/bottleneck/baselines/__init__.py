"""What a bottleneck is compared with, on the same images and the same split.

probe: a logistic regression on all dimensions. zero_shot: nearest text of a class's name. words: a
bottleneck from given concept words (LF-CBM). splice: one from a sparse decomposition over a
vocabulary (SpLiCE). The last two have the same head as ours.
"""

from vision_sae.recipes.bottleneck.baselines.probe import Probe, fit_probe
from vision_sae.recipes.bottleneck.baselines.splice import Splice
from vision_sae.recipes.bottleneck.baselines.words import WordConcepts
from vision_sae.recipes.bottleneck.baselines.zero_shot import zero_shot

__all__ = ["Probe", "Splice", "WordConcepts", "fit_probe", "zero_shot"]
