"""Remove concepts from a text-to-image model while it samples.

    from vision_sae.recipes.unlearn import find, unlearn

    find(adapter, saes, prompts, "object:pizza").save("pizza/")
    with unlearn(pipe, "pizza/"):
        image = pipe("a pizza in neon style").images[0]

Several functions have the name of their file (`find`, `show`, `assign`): what is not listed here
comes from the file, as in `from vision_sae.recipes.unlearn.evidence import nearest`.
"""

from vision_sae.recipes.unlearn.apply import removal_of, unlearn
from vision_sae.recipes.unlearn.assign import Assigned, assign
from vision_sae.recipes.unlearn.choice import Choice
from vision_sae.recipes.unlearn.concept_steering import ConceptSteering
from vision_sae.recipes.unlearn.evidence import Evidence, observe
from vision_sae.recipes.unlearn.find import find, plan_for
from vision_sae.recipes.unlearn.judging import Trial, ZeroShot
from vision_sae.recipes.unlearn.plan import Plan, SiteEdit
from vision_sae.recipes.unlearn.prompts import Labelled, concepts_of, read
from vision_sae.recipes.unlearn.removal import Draw, Method, Removal
from vision_sae.recipes.unlearn.show import Comparison, compare, show
from vision_sae.recipes.unlearn.statistics import Statistics, collect
from vision_sae.recipes.unlearn.sweep import Table, in_window, where_removable, windows
from vision_sae.recipes.unlearn.text import steer_text
from vision_sae.recipes.unlearn.text_layers import steering_vector
from vision_sae.recipes.unlearn.tune import Tuned, tune

__all__ = [
    "Assigned", "Choice", "Comparison", "ConceptSteering", "Draw", "Evidence", "Labelled", "Method",
    "Plan", "Removal", "SiteEdit", "Statistics", "Table", "Trial", "Tuned", "ZeroShot", "assign",
    "collect", "compare", "concepts_of", "find", "in_window", "observe", "plan_for", "read",
    "removal_of", "show", "steer_text", "steering_vector", "tune", "unlearn", "where_removable",
    "windows",
]  # fmt: skip
