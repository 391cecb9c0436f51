"""Measure emoji-diffusion and its SAEs for the card, and draw its contact sheet.

    python -m vision_sae.assets.builders.emoji_diffusion_card

Pictures and activations are of seeds that nothing was trained or chosen on. The sheet goes to
assets/figures/emoji-diffusion.webp, the numbers to stdout.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw
from torch import Tensor

from vision_sae.assets.judge import Judge
from vision_sae.assets.models import emoji_diffusion_pipe, emoji_diffusion_saes
from vision_sae.assets.vocabulary import OBJECTS, STYLES, ask
from vision_sae.data.prompts import Prompt
from vision_sae.extract import Reading, activations_of
from vision_sae.model.adapter import load_adapter
from vision_sae.model.probing import probe_sites
from vision_sae.recipes.unlearn.draw import draw, unit

LOOKS = ("", *STYLES)
PAIRS = [(o, look) for look in LOOKS for o in OBJECTS]
FIRST_SEED, SAE_SEED = 60_000_000, 61_000_000
FIGURE = Path(__file__).parents[1] / "figures" / "emoji-diffusion.webp"
CELL, LEFT, TOP = 64, 76, 74  # pixels of a picture, of the looks' names, of the objects'


def drawn(pipe: Any, seeds: int) -> Tensor:
    """[seeds pairs 3 32 32], 25 steps at guidance 3."""
    texts = [ask(o, look) for o, look in PAIRS] * seeds
    pictures: Tensor = draw(pipe, texts, [FIRST_SEED + i for i in range(len(texts))])
    return pictures.view(seeds, len(PAIRS), *pictures.shape[1:])


def accuracy(pictures: Tensor) -> dict[str, Any]:
    """By the judge, over all pairs and seeds, and of the worst object and look."""
    judge = Judge.load()
    with torch.no_grad():
        told = [judge(unit(part)) for part in pictures]
    wanted = {
        "object": torch.tensor([OBJECTS.index(o) for o, _ in PAIRS]),
        "style": torch.tensor([LOOKS.index(look) for _, look in PAIRS]),
    }
    found: dict[str, Any] = {}
    for factor, truth in wanted.items():
        hits = torch.stack([getattr(t, factor).argmax(1) == truth for t in told]).float()
        each = {n: float(hits[:, truth == i].mean()) for i, n in enumerate(_names(factor))}
        worst = min(each, key=lambda name: each[name])
        found[factor] = {
            "mean": float(hits.mean()), "per seed": [float(h.mean()) for h in hits],
            "worst": {worst: each[worst]},
        }  # fmt: skip
    return found


def _names(factor: str) -> list[str]:
    return list(OBJECTS) if factor == "object" else [look or "plain" for look in LOOKS]


def sheet(pictures: Tensor) -> Image.Image:
    """Every pair once; looks down, objects across."""
    page = Image.new("RGB", (LEFT + CELL * len(OBJECTS), TOP + CELL * len(LOOKS)), "white")
    for i, picture in enumerate(pictures):
        row, column = divmod(i, len(OBJECTS))
        image = Image.fromarray(picture.permute(1, 2, 0).numpy()).resize((CELL - 4, CELL - 4))
        page.paste(image, (LEFT + CELL * column + 2, TOP + CELL * row + 2))
    pen = ImageDraw.Draw(page)
    for row, look in enumerate(LOOKS):
        pen.text((4, TOP + CELL * row + 24), look or "(plain)", fill="black", font_size=15)
    for column, name in enumerate(OBJECTS):
        label = Image.new("RGB", (TOP, 20), "white")
        ImageDraw.Draw(label).text((4, 1), name, fill="black", font_size=14)
        page.paste(label.rotate(90, expand=True), (LEFT + CELL * column + 22, 0))
    return page


@torch.no_grad()
def saes(pictures: int) -> dict[str, dict[str, float]]:
    """FVU, L0 and the share of latents that never fire, on trajectories of new seeds."""
    adapter: Any = load_adapter("emoji-diffusion")
    chosen = torch.randperm(len(PAIRS), generator=torch.Generator().manual_seed(0))[:pictures]
    asks = [Prompt(ask(*PAIRS[i]), SAE_SEED + n) for n, i in enumerate(chosen.tolist())]
    known = emoji_diffusion_saes()
    batch = adapter.prepare(asks)
    sites = probe_sites(adapter, list(known), batch[:1])
    acts = activations_of(adapter, batch, Reading(tuple(sites[site] for site in known)))
    return {site: _measured(sae, acts[site].flatten(0, 1)) for site, sae in known.items()}


def _measured(sae: Any, x: Tensor) -> dict[str, float]:
    out = sae(x)
    left = (x - out.x_hat).square().sum() / (x - x.mean(0)).square().sum()
    fired = (out.codes.to_dense() > 0).any(0)
    return {
        "fvu": float(left), "l0": float(out.codes.l0.float().mean()),
        "never fired": float((~fired).float().mean()),
    }  # fmt: skip


def main() -> None:
    made = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    made.add_argument("--seeds", type=int, default=5)
    made.add_argument("--pictures", type=int, default=60, help="trajectories for the SAEs")
    args = made.parse_args()
    pictures = drawn(emoji_diffusion_pipe(), args.seeds)
    sheet(pictures[0]).save(FIGURE, quality=80, method=6)
    print(json.dumps({"judged": accuracy(pictures), "saes": saes(args.pictures)}, indent=1))


if __name__ == "__main__":
    main()
