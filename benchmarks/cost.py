"""What two large jobs would cost on this machine, by storage and by streaming: measured rates times
known sizes.

python benchmarks/cost.py              # a few minutes; the SD 1.5 U-Net takes 4 GB
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from vision_sae.files import size
from vision_sae.provenance import Provenance
from vision_sae.sae import SAE, SAEConfig
from vision_sae.store import MemoryStore, Row, StoreIndex, StoreWriter
from vision_sae.train import TrainConfig, Trainer

BATCH, HOUR = 4096, 3600


@dataclass(frozen=True)
class Job:
    """So many images of so many rows each, at a width; a forward gives the rows of one `part`."""

    name: str
    images: int
    parts: int  # forwards of one image
    tokens: int  # rows of one forward
    width: int
    latents: int

    @property
    def rows(self) -> int:
        return self.images * self.parts * self.tokens


IMAGENET = Job("ImageNet-1k train, ViT-B/16, all tokens", 1_281_167, 1, 197, 768, 8 * 768)
SD = Job("100k SD 1.5 trajectories, up_blocks.1.attentions.1", 100_000, 50, 256, 1280, 16 * 1280)


def seconds(work: Callable[[], object], rounds: int = 3) -> float:
    times = []
    for _ in range(rounds):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def vit() -> float:
    """Seconds of a forward of one image."""
    import timm

    model = timm.create_model("vit_base_patch16_224").eval()
    batch = torch.randn(16, 3, 224, 224)
    with torch.inference_mode():
        return seconds(lambda: model(batch)) / len(batch)


def unet() -> float:
    """Seconds of a guided step: two halves, at 64 x 64 latents."""
    from diffusers import UNet2DConditionModel

    shape = {"block_out_channels": (320, 640, 1280, 1280), "attention_head_dim": 8}
    model: Any = UNet2DConditionModel(cross_attention_dim=768, sample_size=64, **shape)
    model.eval()
    latents, text = torch.randn(2, 4, 64, 64), torch.randn(2, 77, 768)
    with torch.inference_mode():
        return seconds(lambda: model(latents, 10, text), rounds=2)


def written(job: Job) -> float:
    """Seconds to store a row as float16."""
    images = max(1, 2**28 // (job.tokens * job.width * 2))
    where = Provenance(model="m", fingerprint="f", site="s", tokens="all", data="d")
    index = StoreIndex(provenance=where, dtype="float16", width=job.width, grid=None,
                       tokens_per_image=job.tokens, prefix_tokens=0)  # fmt: skip
    acts = torch.randn(16, job.tokens, job.width)

    def work() -> None:
        with tempfile.TemporaryDirectory() as folder:
            writer = StoreWriter(Path(folder), index)
            for i in range(0, images, 16):
                writer.add(acts, [Row(i + j, str(i + j), {}) for j in range(16)])
            writer.finish()

    return seconds(work) / (-(-images // 16) * 16 * job.tokens)


def trained(job: Job) -> float:
    """Seconds of training for each row: TopK, k 32."""
    store = MemoryStore(torch.randn(2 * BATCH, job.width))
    sae = SAE(SAEConfig.of(job.width, job.latents, k=32))
    trainer = Trainer(sae, store, TrainConfig(steps=10, batch_size=BATCH, inputs="none"))
    trainer.start()
    batch = store.sample(BATCH)
    return seconds(lambda: trainer.train_step(batch)) / BATCH


def cost(job: Job, forward: float) -> dict[str, Any]:
    store, learn = written(job), trained(job)
    passes = job.images * job.parts * forward / HOUR
    epoch = job.rows * learn / HOUR
    return {
        "job": job.name,
        "rows": f"{job.rows:.3g}",
        "bytes stored (float16)": size(job.rows * job.width * 2),
        "seconds per forward": forward,
        "hours of forward passes": passes,
        "hours of writing": job.rows * store / HOUR,
        "hours of training, one epoch": epoch,
        "hours stored, one epoch": passes + job.rows * store / HOUR + epoch,
        "hours streamed, one epoch": passes + epoch,
        "bytes streamed (buffer of 2**17 rows, twice)": size(2 * 2**17 * job.width * 4),
    }


def main() -> None:
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    rows = [cost(IMAGENET, vit()), cost(SD, unet())]
    for row in rows:
        print(
            "\n".join(
                f"{k}: {v:.3g}" if isinstance(v, float) else f"{k}: {v}" for k, v in row.items()
            )
        )
        print()
    print(
        json.dumps({"torch": torch.__version__, "threads": torch.get_num_threads(), "rows": rows})
    )


if __name__ == "__main__":
    main()
