"""What the edit costs at true size: SD 1.5's U-Net (random weights) with an SAE of 20,480 latents
at up_blocks.1.attentions.2, as a share of a U-Net call.

python benchmarks/unlearn_true_size.py         # a few minutes; needs 6 GB
"""

import argparse
import json
import statistics
import time
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import torch

from vision_sae.model.adapter import fingerprint
from vision_sae.recipes.unlearn.apply import site_changes, unlearn
from vision_sae.recipes.unlearn.plan import Plan, SiteEdit, sample_of, schedule_of
from vision_sae.recipes.unlearn.readout import Readout
from vision_sae.sae import SAE, SAEConfig

SITE, WIDTH, LATENTS = "up_blocks.1.attentions.2:update", 1280, 20_480
SD15: dict[str, Any] = {
    "sample_size": 64, "block_out_channels": (320, 640, 1280, 1280), "layers_per_block": 2,
    "cross_attention_dim": 768, "attention_head_dim": 8,
}  # fmt: skip


def pipe_of(**config: Any) -> Any:
    """What `unlearn` needs of a pipeline."""
    from diffusers import DDIMScheduler, UNet2DConditionModel

    unet: Any = UNet2DConditionModel(**config)
    unet.eval().requires_grad_(False)
    return SimpleNamespace(
        unet=unet, scheduler=DDIMScheduler(), do_classifier_free_guidance=True, components={}
    )


def plan_of(pipe: Any, sae: SAE, chosen: int, mode: str = "replace") -> Plan:
    """`chosen` latents, replaced per image as a detector says that always finds the concept."""
    latents = torch.arange(chosen)
    maps: dict[str, Any] = {"write": torch.randn(1, chosen, WIDTH), "shift": torch.randn(2, WIDTH)}
    times, zeros = torch.tensor([999, 0]), torch.zeros(2, chosen)
    edit = SiteEdit(
        SITE, fingerprint(sae), latents, times, zeros + 1, zeros + 1, zeros, zeros, zeros,
        torch.ones(2), mode=mode, where="image", readout=Readout.of(sae, latents),
        **(maps if mode == "transport" else {}),
    )  # fmt: skip
    return Plan("object:any", (edit,), "sd15", sample_of(pipe.unet), schedule_of(pipe))


def sae_of(family: str) -> SAE:
    torch.manual_seed(0)
    sae = SAE(SAEConfig.of(WIDTH, LATENTS, family, k=32)).eval()
    if family == "batchtopk":
        sae.threshold.fill_(1.0)
    return sae


def edit_alone(pipe: Any, plan: Plan, sae: SAE, rounds: int = 20) -> float:
    """Median seconds of the edit of one call's tensor, where the call itself is too noisy."""
    change = site_changes(pipe, pipe.unet, [plan], {SITE: sae})[SITE]
    update, taken = torch.randn(2, WIDTH, 16, 16), []  # 64 / 4 at this site
    for _ in range(rounds):
        started = time.perf_counter()
        change(update)
        taken.append(time.perf_counter() - started)
    return statistics.median(taken)


def main() -> None:
    made = argparse.ArgumentParser(description=__doc__)
    made.add_argument("--calls", type=int, default=7)
    made.add_argument("--chosen", type=int, default=256, help="latents that are edited")
    args = made.parse_args()
    torch.manual_seed(0)
    pipe = pipe_of(**SD15)
    inputs = (torch.randn(2, 4, 64, 64), torch.tensor(500), torch.randn(2, 77, 768))
    kinds: dict[str, Any] = {"plain": nullcontext}
    edits: dict[str, float] = {}
    for family, mode in (("topk", "replace"), ("batchtopk", "replace"), ("batchtopk", "transport")):
        sae, name = sae_of(family), f"{family}, {mode}"
        plan = plan_of(pipe, sae, args.chosen, mode)
        edits[name] = edit_alone(pipe, plan, sae)
        kinds[name] = lambda plan=plan, sae=sae: unlearn(pipe, plan, saes={SITE: sae})
    times: dict[str, list[float]] = {name: [] for name in kinds}
    with torch.no_grad():
        for _ in range(args.calls + 1):
            for name, block in kinds.items():
                with block():
                    started = time.perf_counter()
                    pipe.unet(*inputs)
                    times[name].append(time.perf_counter() - started)
    middle = {name: statistics.median(t[1:]) for name, t in times.items()}  # the first warms up
    for name, seconds in middle.items():
        alone = f", edit alone {edits[name] / middle['plain']:.2%}" if name in edits else ""
        print(f"{name:20} {seconds:7.3f} s a call   {seconds / middle['plain'] - 1:+.2%}{alone}")
    print(json.dumps({"seconds": times, "threads": torch.get_num_threads(), **vars(args)}))


if __name__ == "__main__":
    main()
