"""The SAELens form: what is written is read back, and what it cannot hold is refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from vision_sae import families
from vision_sae.dictionary import Archetypal
from vision_sae.errors import CheckpointError, DataError, OutputExists
from vision_sae.families import Family
from vision_sae.fold import fold_norms
from vision_sae.interop import detect, load, saelens
from vision_sae.nest import Prefixes
from vision_sae.provenance import Provenance
from vision_sae.sae import SAE, SAEConfig

Make = Callable[[SAEConfig], SAE]
FREE = {"atoms": "free"}
TRANSCODER = {"d_out": 6, "centred": False, "atoms": "free"}
KINDS: dict[str, tuple[Family, dict[str, Any], str]] = {
    "relu": (families.ReLU(), FREE, "standard"),
    "relu-uncentred": (families.ReLU(), FREE | {"centred": False}, "standard"),
    "relu-constant-norm": (families.ReLU(), {"rows": "constant_norm"}, "standard"),
    "relu-layer-norm": (families.ReLU(), {"rows": "layer_norm"}, "standard"),
    "relu-tied": (families.ReLU(), {"tied": True}, "standard"),
    "relu-archetypal": (
        families.ReLU(), FREE | {"dictionary": Archetypal(points=5)}, "standard",
    ),
    "panneal": (families.PAnneal(), {}, "standard"),
    "gated": (families.Gated(), FREE, "gated"),
    "topk": (families.TopK(k=4), FREE, "topk"),
    "topk-rescale": (families.TopK(k=4), FREE | {"rescale": True}, "topk"),
    "abstopk": (families.AbsTopK(k=4), FREE, "abstopk"),
    "jumprelu": (families.JumpReLU(), FREE, "jumprelu"),
    "batchtopk": (families.BatchTopK(k=4), FREE, "jumprelu"),
    "batchtopk-rescale": (families.BatchTopK(k=4), FREE | {"rescale": True}, "jumprelu"),
    "matryoshka": (
        families.BatchTopK(k=4), {"nest": Prefixes(shares=(0.25, 1.0))}, "jumprelu",
    ),
    "mp": (families.MatchingPursuit(k=4, residual=0.1), {"tied": True}, "matching_pursuit"),
    "transcoder": (families.ReLU(), TRANSCODER, "transcoder"),
    "skip-transcoder": (families.ReLU(), TRANSCODER | {"skip": True}, "skip_transcoder"),
    "jumprelu-transcoder": (families.JumpReLU(), TRANSCODER, "jumprelu_transcoder"),
    "batchtopk-skip-transcoder": (
        families.BatchTopK(k=4), TRANSCODER | {"skip": True}, "jumprelu_skip_transcoder",
    ),
}  # fmt: skip


def built(kind: str, make: Make) -> tuple[SAE, str]:
    family, options, architecture = KINDS[kind]
    return make(SAEConfig(d=8, s=24, sparsity=family, **options)), architecture


def theirs(sae: SAE, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes in SAELens' scale, and reconstructions."""
    with torch.no_grad():
        codes, x_hat = sae(x)
        norms = sae.W_dec.norm(dim=1)
    rescaled = sae.config.rescale and sae.config.sparsity.kind == "topk"
    return codes.to_dense() * (norms if rescaled else 1), x_hat


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_written_is_read_back(kind: str, random_sae: Make, tmp_path: Path) -> None:
    sae, architecture = built(kind, random_sae)
    saelens.write(sae, tmp_path / "sae")
    assert json.loads((tmp_path / "sae/cfg.json").read_text())["architecture"] == architecture
    x = torch.randn(12, 8, generator=torch.Generator().manual_seed(5))
    codes, x_hat = theirs(sae, x)
    again_codes, again = load(tmp_path / "sae")(x)
    torch.testing.assert_close(again_codes.to_dense(), codes, rtol=0, atol=1e-5)
    torch.testing.assert_close(again, x_hat, rtol=0, atol=1e-5)
    assert (codes != 0).any()


@pytest.mark.parametrize("kind", ["batchtopk", "batchtopk-rescale", "batchtopk-skip-transcoder"])
def test_a_batchtopk_comes_back_with_thresholds_that_follow_folded_norms(
    kind: str, random_sae: Make, tmp_path: Path
) -> None:
    sae, _ = built(kind, random_sae)
    saelens.write(sae, tmp_path / "sae")
    again = load(tmp_path / "sae")
    x = torch.randn(12, 8, generator=torch.Generator().manual_seed(5))
    codes, norms = sae(x).codes.to_dense(), sae.W_dec.detach().norm(dim=1)
    fold_norms(again)
    folded = again(x)
    torch.testing.assert_close(folded.codes.to_dense(), codes * norms, rtol=0, atol=1e-5)
    torch.testing.assert_close(folded.x_hat, sae(x).x_hat, rtol=0, atol=1e-5)
    assert float(norms.max() / norms.min()) > 1.5 and bool((codes != 0).any())


@pytest.mark.peers
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", KINDS)
def test_sae_lens_reads_what_is_written(
    kind: str, random_sae: Make, peer: Callable[[str], Any], tmp_path: Path
) -> None:
    sae, _ = built(kind, random_sae)
    saelens.write(sae, tmp_path / "sae", frequency=torch.full((24,), 0.1))
    other = peer("sae_lens").SAE.load_from_disk(tmp_path / "sae")
    x = torch.randn(12, 8, generator=torch.Generator().manual_seed(5))
    codes, x_hat = theirs(sae, x)
    with torch.no_grad():
        torch.testing.assert_close(other.encode(x), codes, rtol=0, atol=1e-5)
        torch.testing.assert_close(other(x), x_hat, rtol=0, atol=1e-5)


def test_a_running_threshold_is_used_when_it_is_the_choice(
    random_sae: Make, tmp_path: Path
) -> None:
    sae, _ = built("batchtopk", random_sae)
    sae.threshold_ema.fill_(0.9)
    sae.threshold_choice = "running"
    saelens.write(sae, tmp_path / "sae")
    written = load_file(tmp_path / "sae/sae_weights.safetensors")["threshold"]
    assert torch.equal(written, torch.full((24,), 0.9))


def test_provenance_and_frequencies_are_kept(random_sae: Make, tmp_path: Path) -> None:
    sae, _ = built("topk", random_sae)
    sae.provenance = Provenance(model="m", fingerprint="f", site="a.b", tokens="cls", data="x")
    frequency = torch.tensor([0.01, 0.0] * 12)
    saelens.write(sae, tmp_path / "sae", frequency=frequency)
    assert load(tmp_path / "sae").provenance == sae.provenance
    metadata = json.loads((tmp_path / "sae/cfg.json").read_text())["metadata"]
    named = {key: metadata[key] for key in ("model_name", "hook_name", "dataset_path")}
    assert named == {"model_name": "m", "hook_name": "a.b", "dataset_path": "x"}
    sparsity = load_file(tmp_path / "sae/sparsity.safetensors")["sparsity"]
    assert torch.equal(sparsity[:2], torch.tensor([-2.0, -10.0]))
    saelens.write(sae, tmp_path / "sae", overwrite=True)
    assert not (tmp_path / "sae/sparsity.safetensors").exists()


def test_frequencies_of_other_latents(random_sae: Make, tmp_path: Path) -> None:
    sae, _ = built("topk", random_sae)
    with pytest.raises(DataError, match=r"each of 24 latents is needed; got \(23,\)"):
        saelens.write(sae, tmp_path / "sae", frequency=torch.ones(23))


def test_their_metadata_is_named_in_the_log(
    tmp_path: Path, random_sae: Make, caplog: pytest.LogCaptureFixture
) -> None:
    sae, _ = built("topk", random_sae)
    saelens.write(sae, tmp_path / "sae", metadata={"model_name": "vit"})
    with caplog.at_level("INFO", logger="vision_sae"):
        assert load(tmp_path / "sae").provenance is None
    assert "kept out of the SAE" in caplog.text and "'model_name': 'vit'" in caplog.text


def test_a_folder_that_holds_something_else_is_left_alone(random_sae: Make, tmp_path: Path) -> None:
    (tmp_path / "photo.png").touch()
    sae, _ = built("topk", random_sae)
    with pytest.raises(OutputExists, match="already holds something else"):
        saelens.write(sae, tmp_path)
    assert not saelens.claims(tmp_path)
    saelens.write(sae, tmp_path / "sae")
    with pytest.raises(OutputExists, match="already holds something else"):
        saelens.write(sae, tmp_path / "sae")


@pytest.mark.parametrize(
    ("family", "options", "message"),
    [
        (families.GroupMax(k=4), {}, "groupmax family has no form in SAELens; it holds relu"),
        (families.TopK(k=4), TRANSCODER, "no transcoder of the topk family"),
        (families.Gated(), TRANSCODER, "no transcoder of the gated family"),
        (
            families.MatchingPursuit(k=4, rectified=False), {"tied": True},
            "rectifies the products of matching pursuit, this SAE does not",
        ),
    ],
)  # fmt: skip
def test_what_the_form_cannot_hold_is_refused(
    family: Family, options: dict[str, Any], message: str, random_sae: Make, tmp_path: Path
) -> None:
    sae = random_sae(SAEConfig(d=8, s=24, sparsity=family, **options))
    with pytest.raises(CheckpointError, match=message):
        saelens.write(sae, tmp_path / "sae")
    assert not (tmp_path / "sae").exists()


def test_a_batchtopk_without_a_threshold_is_refused(tmp_path: Path) -> None:
    sae = SAE(SAEConfig(d=8, s=24, sparsity=families.BatchTopK(k=4)))
    with pytest.raises(CheckpointError, match="needs a threshold: .* no inference threshold yet"):
        saelens.write(sae, tmp_path / "sae")


def test_detected(random_sae: Make, tmp_path: Path) -> None:
    saelens.write(built("topk", random_sae)[0], tmp_path / "sae")
    assert detect(tmp_path / "sae") == "saelens"
