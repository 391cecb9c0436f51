"""Heat says where a latent's activation comes from: planted places must light up."""

from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from vision_sae.checkpoint import save
from vision_sae.data import open_data
from vision_sae.errors import MismatchError
from vision_sae.extract import extract
from vision_sae.measures.latents import scan
from vision_sae.model.adapter import load_adapter
from vision_sae.model.attribution import BlockInputs
from vision_sae.model.probing import probe_site
from vision_sae.provenance import Tokens
from vision_sae.report import heat
from vision_sae.report.gather import gather
from vision_sae.sae import SAE, SAEConfig
from vision_sae.store import Store


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Eight white pictures, each with one red patch of the toy's four by four."""
    folder = tmp_path / "images"
    folder.mkdir()
    for i in range(8):
        picture = Image.new("RGB", (16, 16), "white")
        picture.paste((255, 0, 0), (4 * (i % 4), 4 * (i // 4), 4 * (i % 4) + 4, 4 * (i // 4) + 4))
        picture.save(folder / f"{i}.png")
    return folder


def store_of(images: Path, tokens: Tokens, folder: Path) -> Store:
    extract(load_adapter("toy"), open_data(str(images)), "blocks.1", folder, tokens=tokens)
    return Store(folder)


def red_detector(store: Store, prefix: int) -> SAE:
    """One latent along (red patch - white patch) of the first picture's tokens."""
    sae = SAE(SAEConfig.of(store.width, 2, "topk", 1)).eval()
    tokens = store.acts([0])[0, prefix:]
    with torch.no_grad():
        sae.W_enc.zero_()
        sae.W_enc[0] = tokens[0] - tokens[-1]
        sae.b_enc[0] = -float(sae.W_enc[0] @ (tokens[0] + tokens[-1]) / 2)
        sae.b_enc[1] = -1e6
    return sae


def test_a_patch_latent_is_hot_on_its_patch_only(images: Path, tmp_path: Path) -> None:
    store = store_of(images, "patches", tmp_path / "acts")
    sae = red_detector(store, 0)
    heats = heat.of_patches(sae, store, {i: {0: 1.0} for i in range(8)}, lambda n: None)
    for i in range(8):
        one = torch.tensor(heats[0, i])
        assert (int(one.argmax()) // 4, int(one.argmax()) % 4) == (i // 4, i % 4)
        assert int((one > 0).sum()) == 1


def test_contributions_add_up_to_the_directional_derivative(images: Path, tmp_path: Path) -> None:
    """Summed over all input tokens, gradient x token is d pre(t x) / dt at t = 1."""
    adapter = load_adapter("toy")
    batch = adapter.prepare([item.open() for item in open_data(str(images)).items()])
    site = probe_site(adapter, "blocks.1", batch[:1])
    sae = SAE(SAEConfig.of(24, 8, "topk", 2)).eval()
    block = BlockInputs(adapter, site, batch)
    rows, latents = torch.tensor([0, 3, 3]), torch.tensor([1, 1, 5])
    got = block.contributions(sae, rows, latents).sum(1)

    def pre(t: float) -> Tensor:
        with torch.no_grad():
            cls = block.module(block.tokens[rows] * t)[:, 0]
            return ((cls - sae.b_dec) * sae.W_enc[latents]).sum(1)

    assert torch.allclose(got, (pre(1.001) - pre(0.999)) / 0.002, rtol=1e-2, atol=1e-2)
    assert not adapter.model.blocks[1]._forward_pre_hooks  # type: ignore[index,union-attr]


def test_a_class_token_latent_shows_its_activation_at_its_hottest_patch(
    images: Path, tmp_path: Path
) -> None:
    store = store_of(images, "cls", tmp_path / "acts")
    sae = SAE(SAEConfig.of(24, 8, "topk", 2)).eval()
    wanted = {i: {3: 2.5, 5: 0.5} for i in range(8)}
    heats = heat.of_class_token(load_adapter("toy"), sae, store, wanted, lambda n: None)
    assert set(heats) == {(s, i) for i in range(8) for s in (3, 5)}
    assert sum(torch.tensor(one).max() > 0 for one in heats.values()) >= 8
    for (s, _), one in heats.items():
        hottest = float(torch.tensor(one).max())
        assert hottest == pytest.approx(2.5 if s == 3 else 0.5) or hottest == 0.0
        assert torch.tensor(one).shape == (4, 4)


def test_class_token_heat_refuses_another_model(images: Path, tmp_path: Path) -> None:
    store = store_of(images, "cls", tmp_path / "acts")
    sae = SAE(SAEConfig.of(24, 8, "topk", 2))
    with pytest.raises(MismatchError, match="from 'toy:0', not 'toy:7'"):
        heat.of_class_token(load_adapter("toy:7"), sae, store, {0: {1: 1.0}}, lambda n: None)


@pytest.mark.parametrize("tokens", ["patches", "cls", "pooled"])
def test_gather_says_what_its_heatmaps_are(images: Path, tmp_path: Path, tokens: Tokens) -> None:
    store = store_of(images, tokens, tmp_path / "acts")
    sae = SAE(SAEConfig.of(24, 8, "topk", 2)).eval()
    save(sae, tmp_path / "sae")
    found, toy = scan(sae, store), load_adapter("toy")
    facts = gather(sae, store, found, folder=tmp_path / "sae", adapter=toy)
    words = {"patches": "activation of each patch", "cls": "gradient x token", "pooled": "none"}
    assert words[tokens] in facts.provenance["heatmaps"]
    assert all((p.heat is None) == (tokens == "pooled") for s in facts.latents for p in s.top)
    assert all(s.top[0].value == pytest.approx(s.maximum) for s in facts.latents)
