"""EmojiCanvas-Unlearn: how well a concept is removed, and what it costs."""

from vision_sae.recipes.unlearn.benchmark.adversary import Attack
from vision_sae.recipes.unlearn.benchmark.main import evaluate
from vision_sae.recipes.unlearn.benchmark.page import write_page
from vision_sae.recipes.unlearn.benchmark.run import QUICK, Counts, Plans, run
from vision_sae.recipes.unlearn.benchmark.tables import markdown, tables, text, without_sheets
from vision_sae.recipes.unlearn.benchmark.world import Ask, World, emoji_world

__all__ = [
    "QUICK", "Ask", "Attack", "Counts", "Plans", "World", "emoji_world", "evaluate", "markdown",
    "run",
    "tables", "text", "without_sheets",
    "write_page",
]  # fmt: skip
