"""SAEs of emoji-diffusion of any seed, trained as the embedded ones of seed 0 were."""

import csv
import io
import random
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from vision_sae.files import write_bytes
from vision_sae.jobs.extraction import extract_to, folder_of
from vision_sae.jobs.loading import load_sae
from vision_sae.jobs.training import train_store
from vision_sae.sae import SAE
from vision_sae.store import Store

SITES = (
    "mid_block.attentions.0:update",
    "up_blocks.0.attentions.0:update",
    "up_blocks.0.attentions.1:update",
)
SETTINGS: dict[str, Any] = {
    "family": "batchtopk", "k": 16, "expansion": 8, "steps": 2500, "atoms": "free",
}  # fmt: skip
FIRST_SEED, PER_PAIR = 3_000_000, 15
Tell = Callable[[str], None]


def saes_of(seed: int, folder: Path, tell: Tell = lambda line: None) -> Mapping[str, SAE]:
    """By site: the embedded ones, or trained in `folder` on first use.

    2,700 trajectories are sampled (830 MB for the time of the training), then each SAE takes a
    minute or two on two cores. Goes on where it was stopped.
    """
    if seed == 0:
        from vision_sae.assets.models import emoji_diffusion_saes

        return emoji_diffusion_saes()
    homes = {site: folder / f"seed-{seed}" / folder_of(site) for site in SITES}
    missing = [site for site, home in homes.items() if not (home / "config.json").exists()]
    if missing:
        tell(f"activations for SAEs of seed {seed}")
        stores = _stores(folder / "acts")
        for site in missing:
            tell(f"training the SAE of seed {seed} at {site}")
            train_store(stores[site], homes[site], seed=seed, **SETTINGS)
    return {site: load_sae(home) for site, home in homes.items()}


def forget_activations(folder: Path) -> None:
    """Delete what `saes_of` trained on."""
    shutil.rmtree(folder / "acts", ignore_errors=True)


def _stores(folder: Path) -> dict[str, Store]:
    from vision_sae.assets.models import emoji_diffusion
    from vision_sae.data.prompts import PromptSource

    folder.mkdir(parents=True, exist_ok=True)
    table = folder / "prompts.csv"
    write_bytes(table, prompts_table().encode())
    model, source = emoji_diffusion(), PromptSource(str(table))
    extract_to(model, source, list(SITES), folder / "stores", dtype="float16")
    return {site: Store(folder / "stores" / folder_of(site)) for site in SITES}


def prompts_table() -> str:
    """Every pair in many words, in one seeded order."""
    from vision_sae.assets.vocabulary import OBJECTS, STYLES, texts

    chance = random.Random(3)
    pairs = [(o, s) for o in OBJECTS for s in ("", *STYLES)]
    found = [text for o, s in pairs for text in texts(o, s, PER_PAIR, chance)]
    chance.shuffle(found)
    table = io.StringIO()
    lines = csv.writer(table, lineterminator="\n")  # some prompts hold a comma
    lines.writerow(("prompt", "seed"))
    lines.writerows((text, FIRST_SEED + i) for i, text in enumerate(found))
    return table.getvalue()
