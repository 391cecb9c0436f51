"""scikit-learn's digits through a small timm ViT that is trained here, on half of them.

No weights are downloaded: test_vit (300,000 weights, 64 pixels, patches of 16) learns from the
task's train part; its SAE reads the class token of the last block on the same part.
"""

from pathlib import Path

import torch
import torch.nn.functional as F

from vision_sae import Store, extract
from vision_sae.adapters.timm_models import wrap
from vision_sae.jobs import train_store
from vision_sae.recipes.bottleneck import readers
from vision_sae.recipes.bottleneck.compare import Seen, see
from vision_sae.recipes.bottleneck.tasks import PARTS, Task, open_task

ARCHITECTURE, SITE, EPOCHS, BATCH = "test_vit", "blocks.5", 30, 64
LATENTS, K = 128, 24


def digits_parts(folder: Path, seed: int, *, validation: bool = False) -> dict[str, Seen]:
    """Train the model and its SAE, and run them over the task's parts."""
    task = open_task(f"digits?seed={seed}")
    adapter = wrap(trained(task, seed), name=f"timm:{ARCHITECTURE}, digits, seed {seed}")
    here = folder / str(seed)
    extract(adapter, task.train, SITE, here / "acts", tokens="cls", overwrite=True)
    store = Store(here / "acts")
    train_store(store, here / "sae", s=LATENTS, k=K, steps=1000, batch_size=256, seed=seed,
                overwrite=True)  # fmt: skip
    found = {part: see(adapter, task.part(part), readers([here / "sae"])) for part in PARTS}
    return {**found, "test": found["validation"]} if validation else found


def trained(task: Task, seed: int) -> torch.nn.Module:
    """Cross-entropy, for less than a minute on a quiet core."""
    import timm

    torch.manual_seed(seed)
    model = timm.create_model(ARCHITECTURE, img_size=64, num_classes=10)
    transform = wrap(model, name="digits").prepare
    x = transform([item.open() for item in task.train.items()])
    y = torch.tensor([int(label) for label in task.train.labels])
    adam = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.05)
    steps = EPOCHS * (len(x) // BATCH)
    rate = torch.optim.lr_scheduler.OneCycleLR(adam, 2e-3, total_steps=steps)
    model.train()
    for _ in range(steps):
        rows = torch.randint(len(x), (BATCH,))
        loss = F.cross_entropy(model(x[rows]), y[rows])
        adam.zero_grad()
        loss.backward()
        adam.step()
        rate.step()
    return model.eval()
