"""Golden SAEs of overcomplete, built and run by it (in an environment of it).

overcomplete has no format of its own but the state dict; what the state dict does not hold (the
class, k, the running threshold) goes into the settings of the case.
"""

from typing import Any

import matplotlib
import matplotlib.cm
import torch
from common import D, K, S, case, expect, fill, inputs

if not hasattr(matplotlib.cm, "get_cmap"):  # taken out of matplotlib 3.9, still used by 0.3.0
    matplotlib.cm.get_cmap = matplotlib.colormaps.get_cmap

from overcomplete.sae import SAE, BatchTopKSAE, JumpSAE, MpSAE, TopKSAE

PATH = "checkpoint/sae.pt"


@torch.no_grad()
def make(name: str, sae: Any, **settings: Any) -> None:
    """Save the state dict, and run the model in evaluation mode."""
    fill(sae)
    checkpoint = case(
        f"overcomplete-{name}",
        "overcomplete",
        "checkpoint/sae.pt",
        kind=type(sae).__name__,
        **settings,
    )
    x = inputs()
    if isinstance(sae, BatchTopKSAE):
        sae.running_threshold = torch.tensor(settings["threshold"])
    torch.save(sae.state_dict(), checkpoint / "sae.pt")
    sae.eval()
    codes = sae.encode(x)[1]
    expect(checkpoint, x, codes, sae.decode(codes))


@torch.no_grad()
def with_batch_norm() -> None:
    """An encoder that ends in a batch norm, with running statistics that are not 0 and 1."""
    sae = TopKSAE(D, S, top_k=K, encoder_module="mlp_bn_1")
    sae.encoder.final_block[1].running_mean.copy_(torch.linspace(-0.5, 0.5, S))
    sae.encoder.final_block[1].running_var.copy_(torch.linspace(0.5, 2.0, S))
    make("topk-batch-norm", sae, k=K)


def main() -> None:
    make("standard", SAE(D, S))
    make("topk", TopKSAE(D, S, top_k=K), k=K)
    make("topk-multiplier", TopKSAE(D, S, top_k=K, dictionary_params={"use_multiplier": True}), k=K)
    make(
        "topk-max-l2",
        TopKSAE(D, S, top_k=K, dictionary_params={"normalization": "max_l2"}),
        k=K,
        normalization="max_l2",
    )
    make("topk-tied", TopKSAE(D, S, top_k=K).tied(bias=True), k=K)
    make("topk-untied", TopKSAE(D, S, top_k=K).untied(bias=True), k=K)
    make("batchtopk", BatchTopKSAE(D, S, top_k=K), k=K, threshold=0.8)
    make("jumprelu", JumpSAE(D, S))
    make("matching-pursuit", MpSAE(D, S, k=K), k=K)
    with_batch_norm()


if __name__ == "__main__":
    main()
