"""The main job on the embedded model and images."""

import time
from pathlib import Path

from vision_sae import checkpoint
from vision_sae.cli import naming, show, steps
from vision_sae.jobs import NamingConfig

MODEL, DATA, SITE = "emoji-clip", "emoji-canvas", "visual.transformer.resblocks.5"
SUMMARY = [
    "fvu",
    "l0",
    "dead",
    "zero-shot accuracy",
    "with reconstruction",
    "live latents",
    "names that detect, of those tested",
    "share with F1 of 0.5 or more",
]
TRAINING = {"family": "topk", "k": 4, "expansion": 4}
TRAINING |= {"steps": 1500, "batch_size": 1024, "lr": 2e-3, "seed": 0}


def run(out: Path) -> Path:
    """Extract, train, eval, name and report below `out`; finished steps are not done again."""
    started = time.monotonic()
    acts, sae = out / "acts", out / "sae"
    steps.extract(steps.Extraction(MODEL, [SITE], DATA, acts, options={"tokens": "cls"}))
    if not (sae / checkpoint.CONFIG).exists():
        steps.train(steps.Training(acts, sae), TRAINING)
    opened = steps.open_sae(sae, acts)
    numbers = steps.evaluate(opened, MODEL, f"{DATA}:validation", None, 731, False)
    numbers |= naming.name(opened, naming.Words(), NamingConfig(), False)
    page = steps.report(opened, out, overwrite=True)
    show.table("the demo in numbers", {key: numbers[key] for key in SUMMARY})
    show.console.print(f"{time.monotonic() - started:.0f} s; open {page.resolve()}")
    return page
