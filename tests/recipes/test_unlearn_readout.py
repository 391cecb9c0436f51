"""Chosen latents read alone, against the whole SAE as a slow twin."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from vision_sae.recipes.unlearn.readout import Readout
from vision_sae.rows import treat_rows
from vision_sae.sae import SAE, SAEConfig

D, S = 12, 30


def sae_of(family: str, seed: int = 0, **options: Any) -> SAE:
    """With biases and atoms that are not those of the start."""
    sae = SAE(SAEConfig.of(D, S, family, **options), seed=seed).eval()
    noise = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        sae.b_enc.add_(torch.randn(S, generator=noise) * 0.3)
        sae.b_dec.add_(torch.randn(sae.b_dec.shape, generator=noise) * 0.5)
        if sae.config.atoms == "free":
            sae.W_dec.mul_(1 + torch.rand(S, 1, generator=noise))
        if family == "jumprelu":
            sae.thresholds.copy_(torch.rand(S, generator=noise) - 0.3)
    return sae


def rows_of(seed: int) -> Tensor:
    return torch.randn(40, D, generator=torch.Generator().manual_seed(seed + 1)) * 1.5


@settings(max_examples=40, deadline=None)
@given(
    family=st.sampled_from(["relu", "panneal", "jumprelu", "batchtopk", "batchtopk rescaled"]),
    rows=st.sampled_from(["none", "layer_norm", "constant_norm"]),
    centred=st.booleans(),
    seed=st.integers(0, 20),
    latents=st.lists(st.integers(0, S - 1), min_size=1, max_size=8, unique=True),
)
def test_codes_are_those_of_the_whole_sae(
    family: str, rows: Any, centred: bool, seed: int, latents: list[int]
) -> None:
    name, *rescaled = family.split()
    more: dict[str, Any] = {"atoms": "free", "rescale": True} if rescaled else {}
    more |= {"k": 5} if name == "batchtopk" else {}
    sae = sae_of(name, seed, rows=rows, centred=centred, **more)
    x, chosen = rows_of(seed), torch.tensor(latents)
    with torch.no_grad():
        sae.config.sparsity.calibrate(sae, x)
        whole = sae.encode(x).to_dense()
        readout = Readout.of(sae, chosen)
        assert readout is not None and readout.rows == rows
        mine = readout.codes(treat_rows(x, rows)[0])
    assert 0 < (whole > 0).sum() < whole.numel()
    torch.testing.assert_close(mine, whole[:, chosen], atol=1e-5, rtol=1e-4)
    assert torch.equal(readout.atoms, sae.W_dec[chosen])


def test_codes_keep_the_shape_of_maps() -> None:
    readout = Readout.of(sae_of("relu"), torch.tensor([1, 2]))
    assert readout is not None
    assert readout.codes(torch.randn(2, 3, 4, D)).shape == (2, 3, 4, 2)
    assert readout.codes(torch.randn(D)).shape == (2,)


def test_a_readout_does_not_follow_its_sae() -> None:
    """A plan stays what it was when the SAE trains on."""
    sae = sae_of("jumprelu")
    readout = Readout.of(sae, torch.tensor([0, 3]))
    assert readout is not None
    before = {name: t.clone() for name, t in readout.tensors().items()}
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter.add_(1.0)
    assert all(torch.equal(t, before[name]) for name, t in readout.tensors().items())
    assert not any(t.requires_grad for t in readout.tensors().values())


@pytest.mark.parametrize(
    ("family", "options"),
    [
        ("topk", {"k": 4}),
        ("mp", {"k": 4, "tied": True}),
        ("gated", {}),
        ("relu", {"d_out": 7, "centred": False}),
    ],
)
def test_where_all_latents_are_needed_there_is_none(family: str, options: Any) -> None:
    sae = SAE(SAEConfig.of(D, S, family, **options), seed=0)
    assert Readout.of(sae, torch.tensor([0])) is None


def test_moving_keeps_everything() -> None:
    readout = Readout.of(sae_of("relu", rows="layer_norm"), torch.tensor([0, 3]))
    assert readout is not None
    moved = readout.to(torch.device("meta"))
    assert moved.rows == "layer_norm" and moved.weight.is_meta and moved.atoms.shape == (2, D)
