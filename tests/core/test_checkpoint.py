"""Saved SAEs: round trip, and refusal of what is not one."""

import json
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from vision_sae.checkpoint import load, read_config, save
from vision_sae.errors import CheckpointError, OutputExists
from vision_sae.provenance import Provenance
from vision_sae.sae import SAE, SAEConfig


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=20)
@given(d=st.integers(1, 9), s=st.integers(2, 17), family=st.sampled_from(["topk", "batchtopk"]))
def test_save_and_load_give_the_same_sae(d: int, s: int, family: str, tmp_path: Path) -> None:
    """Every variant's weights: see test_families.py; here what is kept beside them."""
    sae = SAE(SAEConfig.of(d, s, family, 2), seed=3)
    if family == "batchtopk":
        sae.threshold.fill_(0.25)
    sae.provenance = Provenance(model="m", fingerprint="f", site="a.b", tokens="cls", data="x")
    save(sae, tmp_path / "sae", training={"steps": 3}, overwrite=True)
    again = load(tmp_path / "sae")
    assert again.config == sae.config
    assert again.provenance == sae.provenance
    x = torch.randn(4, d)
    assert torch.equal(again(x).x_hat, sae.eval()(x).x_hat)
    assert read_config(tmp_path / "sae").training == {"steps": 3}


def test_the_threshold_to_use_is_chosen_on_loading(tmp_path: Path) -> None:
    sae = SAE(SAEConfig.of(4, 8, "batchtopk", 2))
    sae.threshold.fill_(0.25)
    sae.threshold_ema.fill_(0.75)
    save(sae, tmp_path / "sae")
    assert float(load(tmp_path / "sae").inference_threshold()) == 0.25
    assert float(load(tmp_path / "sae", threshold="running").inference_threshold()) == 0.75


def test_an_sae_keeps_the_atoms_it_was_saved_with(tmp_path: Path) -> None:
    """Whatever is usual for its family today; what does not say has unit atoms."""
    for atoms in ("unit", "free"):
        save(SAE(SAEConfig.of(4, 8, "batchtopk", 2, atoms=atoms)), tmp_path / atoms)
        written = json.loads((tmp_path / atoms / "config.json").read_text())
        assert written["sae"]["atoms"] == load(tmp_path / atoms).config.atoms == atoms
        del written["sae"]["atoms"]
        (tmp_path / atoms / "config.json").write_text(json.dumps(written))
        assert load(tmp_path / atoms).config.atoms == "unit"


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    save(SAE(SAEConfig.of(4, 8, "topk", 2)), tmp_path / "sae")
    return tmp_path / "sae"


def test_an_empty_folder_is_no_sae(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="holds no SAE: it has no config.json"):
        load(tmp_path)


def test_an_unknown_key_is_refused(saved: Path) -> None:
    config = json.loads((saved / "config.json").read_text())
    config["sae"]["gate"] = True
    (saved / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="sae.gate: Extra inputs are not permitted"):
        load(saved)


def test_another_schema_is_refused(saved: Path) -> None:
    config = json.loads((saved / "config.json").read_text()) | {"schema_number": 99}
    (saved / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="has schema 99; this version reads 1"):
        load(saved)


def test_weights_of_another_shape_are_refused(saved: Path) -> None:
    state = load_file(saved / "sae.safetensors")
    save_file(state | {"b_enc": torch.zeros(9)}, saved / "sae.safetensors")
    with pytest.raises(CheckpointError, match="does not fit its config.*b_enc"):
        load(saved)


def test_weights_of_another_family_are_refused(saved: Path) -> None:
    config = json.loads((saved / "config.json").read_text())
    config["sae"]["sparsity"] = {"kind": "batchtopk", "k": 2}
    (saved / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="does not fit its config.*threshold"):
        load(saved)


def test_a_family_that_is_not_installed_is_named(saved: Path) -> None:
    config = json.loads((saved / "config.json").read_text())
    config["sae"]["sparsity"] = {"kind": "theirs", "k": 2}
    (saved / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="no family 'theirs'; there are: topk"):
        load(saved)


def test_truncated_weights_are_refused(saved: Path) -> None:
    path = saved / "sae.safetensors"
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(CheckpointError, match="sae.safetensors cannot be read"):
        load(saved)


def test_a_folder_with_something_else_is_not_written_to(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(OutputExists, match="already holds something else .thesis.tex."):
        save(SAE(SAEConfig.of(4, 8, "topk", 2)), tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]
