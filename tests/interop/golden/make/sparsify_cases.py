"""Golden sparse coders of sparsify, written and run by it (in its environment).

Needs SPARSIFY_DISABLE_TRITON=1 where there is no CUDA device.
"""

from typing import Any

import torch
from common import D, K, S, case, expect, fill, inputs, normal
from sparsify import SparseCoder, SparseCoderConfig


@torch.no_grad()
def make(name: str, **extra: Any) -> None:
    """Save one and run it: codes by its encode, the output by its forward."""
    coder = SparseCoder(D, SparseCoderConfig(num_latents=S, k=K, **extra))
    fill(coder)
    checkpoint = case(f"sparsify-{name}", "sparsify")
    coder.save_to_disk(checkpoint)
    coder = SparseCoder.load_from_disk(checkpoint)
    x = inputs()
    out = coder(x, y=normal((len(x), D), 99, 1.0))
    codes = torch.zeros(len(x), S).scatter(1, out.latent_indices, out.latent_acts)
    expect(checkpoint, x, codes, out.sae_out)


def main() -> None:
    make("topk")
    make("groupmax", activation="groupmax")
    make("transcoder", transcode=True)
    make("skip-transcoder", transcode=True, skip_connection=True)
    make("skip-autoencoder", skip_connection=True)


if __name__ == "__main__":
    main()
