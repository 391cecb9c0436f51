"""Our scores of a trained SAE are those of SAELens, number by number."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from vision_sae import checkpoint
from vision_sae.interop import convert
from vision_sae.measures.recovery import recovery
from vision_sae.sae import SAE, SAEConfig
from vision_sae.synthetic import Synthetic, SyntheticConfig
from vision_sae.train import TrainConfig, train

pytestmark = [pytest.mark.peers, pytest.mark.filterwarnings("ignore")]

ROWS = 4096


def scores_of_sae_lens(library: Any, folder: Path, world: Synthetic) -> Any:
    """Its own evaluation, of what it reads from a folder, on the rows that ours holds out."""
    draws = world.held_out(1024, ROWS // 1024)
    features = library.FeatureDictionary(world.config.features, world.width, bias=True)
    features.feature_vectors.data = world.directions
    features.bias.data = world.bias
    return library.eval_sae_on_synthetic_data(
        library.SAE.load_from_disk(folder),
        features,
        SimpleNamespace(sample=lambda _: next(draws).activations),
        num_samples=ROWS,
        batch_size=1024,
    )


@pytest.mark.parametrize("family", ["topk", "batchtopk", "gated", "jumprelu"])
def test_recovery_is_that_of_sae_lens(
    family: str, peer: Callable[[str], Any], tmp_path: Path
) -> None:
    library = SimpleNamespace(**vars(peer("sae_lens")), **{
        name: getattr(peer("sae_lens.synthetic"), name)
        for name in ("FeatureDictionary", "eval_sae_on_synthetic_data")
    })  # fmt: skip
    world = Synthetic(SyntheticConfig(d=12, features=40, l0=3, bias=1.0))
    k = 3 if family.endswith("topk") else None
    sae = SAE(SAEConfig.of(12, 24, family, k))
    train(sae, world, TrainConfig(steps=150, batch_size=128, lr=5e-3))
    with torch.no_grad():
        sae.W_enc[0], sae.b_enc[0] = 0, -1  # never fires
    checkpoint.save(sae, tmp_path / "ours")
    convert(tmp_path / "ours", tmp_path / "theirs")

    ours = recovery(sae, world, rows=ROWS)
    theirs = scores_of_sae_lens(library, tmp_path / "theirs", world)
    assert theirs.dead_latents >= 1
    for mine, its in (
        (ours.mcc, theirs.mcc),
        (ours.precision, theirs.classification.precision),
        (ours.recall, theirs.classification.recall),
        (ours.f1, theirs.classification.f1_score),
        (ours.uniqueness, theirs.uniqueness),
    ):
        assert mine == pytest.approx(its, abs=1e-6)
        assert 0.05 < mine < 0.999
