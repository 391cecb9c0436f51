"""Images with known factors, and codes that were planted for them."""

from typing import Any

import pytest
import torch
from torch import Tensor

from vision_sae.measures.labelled.task import Task, held_out, properties, task

N = 400


@pytest.fixture(scope="session")
def about() -> list[dict[str, Any]]:
    """Three independent factors: kind (4 values), style (3), rare (on one image in ten)."""
    g = torch.Generator().manual_seed(0)
    kind, style = torch.randint(4, (N,), generator=g), torch.randint(3, (N,), generator=g)
    rare = torch.rand(N, generator=g) < 0.1
    rows: list[dict[str, Any]] = []
    for k, s, r in zip(kind.tolist(), style.tolist(), rare.tolist(), strict=True):
        rows.append({"kind": "abcd"[k], "style": "xyz"[s]} | ({"rare": "yes"} if r else {}))
    return rows


@pytest.fixture(scope="session")
def known(about: list[dict[str, Any]]) -> Task:
    return task(properties(about), held_out([f"image-{i}" for i in range(N)]))


@pytest.fixture(scope="session")
def one_hot(known: Task) -> Tensor:
    """[images values]: the codes of an ideal SAE, one latent per value."""
    return known.members.float()


@pytest.fixture(scope="session")
def noise(known: Task) -> Tensor:
    """Codes that know nothing: 12 latents, each on for 3 images in 10."""
    g = torch.Generator().manual_seed(1)
    on = torch.rand(N, 12, generator=g) < 0.3
    return on * torch.rand(N, 12, generator=g)
