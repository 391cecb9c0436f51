"""Files that cannot be read faithfully are refused, with the reason."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from vision_sae.errors import CheckpointError, ConfigError, UnknownName
from vision_sae.interop import convert, detect, load

GOLDEN = Path(__file__).parent / "golden"


def taken(case: str, to: Path) -> Path:
    """A copy of a golden checkpoint, to be spoilt."""
    shutil.copytree(GOLDEN / case / "checkpoint", to / case)
    return to / case


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def edit_tensors(path: Path, **changes: torch.Tensor | None) -> None:
    state = load_file(path) | changes
    save_file({key: value for key, value in state.items() if value is not None}, path)


def edit_torch(path: Path, **changes: Any) -> None:
    torch.save(torch.load(path, weights_only=True) | changes, path)


SAELENS, CFG = "sae_weights.safetensors", "cfg.json"


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="none does not exist"):
        detect(tmp_path / "none")


def test_no_known_format(tmp_path: Path) -> None:
    (tmp_path / "photo.png").write_bytes(b"png")
    for path in (tmp_path, tmp_path / "photo.png"):
        with pytest.raises(CheckpointError, match="no SAE in a format that is known here: vision"):
            detect(path)


def test_a_folder_of_saes(tmp_path: Path) -> None:
    taken("saelens-topk", tmp_path)
    taken("sparsify-topk", tmp_path)
    with pytest.raises(
        CheckpointError, match="not an SAE itself, its folders are: saelens-topk, s"
    ):
        load(tmp_path)


def test_two_formats_at_once(tmp_path: Path) -> None:
    folder = taken("saelens-topk", tmp_path)
    shutil.copy(GOLDEN / "sparsify-topk/checkpoint/sae.safetensors", folder)
    with pytest.raises(CheckpointError, match="may be saelens or sparsify: name the format"):
        load(folder)
    assert load(folder, "saelens").config.s == 24


def test_an_unknown_format_or_setting(tmp_path: Path) -> None:
    folder = taken("saelens-topk", tmp_path)
    with pytest.raises(UnknownName, match="no format 'sealens'; did you mean saelens"):
        load(folder, "sealens")
    with pytest.raises(ConfigError, match="saelens reader has no k; it has: norm_factor"):
        load(folder, k=3)
    with pytest.raises(UnknownName, match="no format to write 'prisma'"):
        convert(folder, tmp_path / "out", to="prisma")


class Whole(torch.nn.Module):
    pass


def test_a_pickled_model_is_never_run(tmp_path: Path) -> None:
    torch.save(Whole(), tmp_path / "model.pt")
    with pytest.raises(CheckpointError, match=r"could run any code: .* save its state_dict\(\)"):
        load(tmp_path / "model.pt")


def test_a_torch_file_of_something_else(tmp_path: Path) -> None:
    torch.save(torch.zeros(3), tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match="holds a Tensor; a state dict was expected"):
        load(tmp_path / "x.pt")


def test_broken_files(tmp_path: Path) -> None:
    folder = taken("saelens-topk", tmp_path)
    (folder / SAELENS).write_bytes(b"short")
    with pytest.raises(CheckpointError, match="cannot be read as safetensors"):
        load(folder)
    (folder / CFG).write_text("{")
    with pytest.raises(CheckpointError, match="cfg.json is not JSON"):
        load(folder)
    (folder / CFG).write_text("[]")
    with pytest.raises(CheckpointError, match="holds a list; a JSON object was expected"):
        load(folder)
    (folder / CFG).unlink()
    with pytest.raises(CheckpointError, match="cfg.json cannot be read: No such file"):
        load(folder)
    (tmp_path / "cut.pt").write_bytes(b"PK\x03\x04cut")
    with pytest.raises(CheckpointError, match="cut.pt is broken: File is not a zip file"):
        load(tmp_path / "cut.pt")
    (tmp_path / "cut.npz").write_bytes(b"PK\x03\x04cut")
    with pytest.raises(CheckpointError, match="cut.npz"):
        load(tmp_path / "cut.npz", "gemma_scope")


def test_a_tensor_of_another_shape(tmp_path: Path) -> None:
    folder = taken("saelens-topk", tmp_path)
    edit_tensors(folder / SAELENS, b_enc=torch.zeros(23))
    with pytest.raises(CheckpointError, match=r"b_enc in .* has shape \(23,\); \(24,\) was expect"):
        load(folder)


def test_a_tensor_too_few_and_too_many(tmp_path: Path) -> None:
    folder = taken("saelens-jumprelu", tmp_path)
    edit(folder / CFG, architecture="standard")
    with pytest.raises(CheckpointError, match="tensors that an SAE of the architecture 'standard'"):
        load(folder)
    folder = taken("saelens-topk", tmp_path)
    edit(folder / CFG, architecture="jumprelu")
    with pytest.raises(CheckpointError, match="lacks threshold; it holds nothing"):
        load(folder)


def test_saelens_settings_that_are_not_known(tmp_path: Path) -> None:
    folder = taken("saelens-topk", tmp_path)
    edit(folder / CFG, gate_power=2)
    with pytest.raises(CheckpointError, match="gate_power: Extra inputs are not permitted; got 2"):
        load(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"architecture": "temporal"},
            "architecture: Input should be 'standard', .* got 'temporal'",
        ),
        (
            {"normalize_activations": "covariance_whitening"},
            "'expected_average_only_in'; got 'covariance_whitening'",
        ),
        ({"normalize_activations": "expected_average_only_in"}, "pass norm_factor"),
        ({"k": 0}, "k: Input should be greater than or equal to 1; got 0"),
        ({"k": 25}, r"no such SAE can be built: k must lie in 1..24"),
        ({"d_in": None}, "d_in: Input should be a valid integer; got None"),
        ({"k": 3.5}, "k must be whole; got 3.5"),
        ({"metadata": {"vision_sae_provenance": {}}}, "hold what it should: model: Field required"),
    ],
)
def test_saelens_configs(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    folder = taken("saelens-topk", tmp_path)
    edit(folder / CFG, **changes)
    with pytest.raises(CheckpointError, match=message):
        load(folder)


def test_saelens_without_an_architecture(tmp_path: Path) -> None:
    folder = taken("saelens-topk", tmp_path)
    found = json.loads((folder / CFG).read_text())
    del found["architecture"]
    (folder / CFG).write_text(json.dumps(found))
    with pytest.raises(CheckpointError, match="architecture: Field required"):
        load(folder)


@pytest.mark.parametrize("case", ["saelens-unfolded-standard", "saelens-unfolded-jumprelu"])
def test_a_norm_factor_can_be_given(case: str, tmp_path: Path) -> None:
    folder = taken(case, tmp_path)
    (folder / "activation_scaler.json").unlink()
    expected = load_file(GOLDEN / case / "expected.safetensors")
    out = load(folder, norm_factor=1.7)(expected["x"])
    torch.testing.assert_close(out.x_hat, expected["x_hat"], rtol=0, atol=1e-5)


def test_saelens_transcoders_with_rows_or_scales(tmp_path: Path) -> None:
    folder = taken("saelens-transcoder", tmp_path)
    edit(folder / CFG, normalize_activations="layer_norm")
    with pytest.raises(CheckpointError, match="transcoder with normalize_activations='layer_norm'"):
        load(folder)
    edit(folder / CFG, normalize_activations="expected_average_only_in")
    with pytest.raises(CheckpointError, match="architecture cannot be folded: transcoder"):
        load(folder, norm_factor=2.0)


def test_saelens_of_before_6(tmp_path: Path) -> None:
    folder = taken("saelens-legacy-topk", tmp_path)
    edit(folder / CFG, finetuning_scaling_factor=True)
    with pytest.raises(CheckpointError, match="has a finetuning scaling factor"):
        load(folder)
    edit(folder / CFG, finetuning_scaling_factor=False)
    edit_tensors(folder / SAELENS, scaling_factor=torch.ones(24))
    assert load(folder).config.sparsity.kind == "topk"
    edit_tensors(folder / SAELENS, scaling_factor=torch.full((24,), 2.0))
    with pytest.raises(CheckpointError, match="has a scaling_factor that is not 1"):
        load(folder)
    edit(folder / CFG, activation_fn_str="tanh-relu")
    with pytest.raises(CheckpointError, match="has the activation 'tanh-relu'"):
        load(folder)


def test_batchtopk_thresholds_that_were_never_set(tmp_path: Path) -> None:
    folder = taken("saelens-unfinished-batchtopk", tmp_path)
    edit_tensors(folder / SAELENS, topk_threshold=torch.tensor(0.0, dtype=torch.float64))
    with pytest.raises(
        CheckpointError, match="threshold in .* is 0, which means that it was never"
    ):
        load(folder)
    folder = taken("dictionary_learning-batchtopk", tmp_path)
    edit_torch(folder / "ae.pt", threshold=torch.tensor(-1.0))
    with pytest.raises(CheckpointError, match="threshold in .* is -1, which means that it was nev"):
        load(folder)


def test_dictionary_learning_classes(tmp_path: Path) -> None:
    folder = taken("dictionary_learning-topk", tmp_path)
    edit(folder / "config.json", trainer={"dict_class": "GatedAutoEncoder"})
    with pytest.raises(CheckpointError, match="a GatedAutoEncoder, but its tensors are those of a"):
        load(folder)
    (folder / "config.json").unlink()
    with pytest.raises(CheckpointError, match="may be a AutoEncoderTopK or a BatchTopKSAE"):
        load(folder / "ae.pt")
    assert load(folder, kind="AutoEncoderTopK").config.sparsity.kind == "topk"
    edit_torch(folder / "ae.pt", gate=torch.zeros(1))
    with pytest.raises(CheckpointError, match="is no dictionary of AutoEncoder"):
        load(folder)


def test_dictionary_learning_groups(tmp_path: Path) -> None:
    folder = taken("dictionary_learning-matryoshka", tmp_path)
    edit_torch(folder / "ae.pt", group_sizes=torch.tensor([6, 6]))
    with pytest.raises(CheckpointError, match=r"group_sizes \[6, 6\] .* do not add up to 24"):
        load(folder)


def test_sparsify(tmp_path: Path) -> None:
    folder = taken("sparsify-topk", tmp_path)
    edit(folder / CFG, activation="softmax")
    with pytest.raises(
        CheckpointError, match="activation: Input should be 'topk' or 'groupmax'; got"
    ):
        load(folder)
    edit(folder / CFG, activation="topk", signed=True)
    with pytest.raises(CheckpointError, match="signed codes"):
        load(folder)
    edit(folder / CFG, transposed=1)
    with pytest.raises(CheckpointError, match="transposed: Extra inputs are not permitted"):
        load(folder)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "its class is not in the file: pass kind; there are: SAE, TopKSAE"),
        ({"kind": "RSAE"}, "no kind 'RSAE'; there are: SAE, TopKSAE"),
        ({"kind": "JumpSAE"}, "does not hold the thresholds of a JumpSAE"),
        ({"kind": "TopKSAE"}, "the k of a TopKSAE is not in the file: pass k"),
        ({"kind": "BatchTopKSAE", "k": 4}, "keeps its running_threshold outside the file"),
        ({"kind": "SAE", "normalization": "l3"}, "no normalization 'l3'; there are: l2"),
    ],
)
def test_overcomplete(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        load(GOLDEN / "overcomplete-topk/checkpoint/sae.pt", **settings)


def test_overcomplete_layer_norms(tmp_path: Path) -> None:
    folder = taken("overcomplete-topk", tmp_path)
    norm = {f"encoder.final_block.1.{n}": torch.ones(24) for n in ("weight", "bias")}
    edit_torch(folder / "sae.pt", **norm)
    with pytest.raises(CheckpointError, match="ends in a layer norm over the latents"):
        load(folder / "sae.pt", kind="TopKSAE", k=4)


def test_openai(tmp_path: Path) -> None:
    file = taken("openai-topk", tmp_path) / "autoencoder.pt"
    edit_torch(file, activation_state_dict={"k": 4, "postact_fn": "Identity"})
    with pytest.raises(CheckpointError, match="postact_fn: Input should be 'ReLU'; got 'Identity'"):
        load(file)
    edit_torch(file, activation_state_dict={})
    with pytest.raises(CheckpointError, match="is a TopK autoencoder without its k"):
        load(file)
    edit_torch(file, activation="Softmax")
    with pytest.raises(
        CheckpointError, match="activation: Input should be 'ReLU' or 'TopK'; got 'Softmax'"
    ):
        load(file)
    edit_torch(file, activation="ReLU", extra="text")
    with pytest.raises(CheckpointError, match="holds more than tensors: extra"):
        load(file)


def test_ksae(tmp_path: Path) -> None:
    folder = taken("ksae-bare", tmp_path)
    edit(folder / "config.json", temperature=1)
    with pytest.raises(CheckpointError, match="temperature: Extra inputs are not permitted; got 1"):
        load(folder)


def test_gemma_scope(tmp_path: Path) -> None:
    np.savez(tmp_path / "params.npz", W_enc=np.zeros((8, 24), np.float32))
    with pytest.raises(CheckpointError, match="lacks w_dec; it holds w_enc"):
        load(tmp_path)


def test_saev(tmp_path: Path) -> None:
    good = (GOLDEN / "saev-batchtopk/checkpoint/sae.pt").read_bytes()
    line, data = good.split(b"\n", 1)
    file = tmp_path / "sae.pt"
    for change, message in [
        ({"schema": 1}, "saev's schema 1; this version reads 2 to 5"),
        ({"cfg": {}}, "cfg.activation: Field required"),
        (
            {"cfg": {"activation": {"cls": "Abs"}}},
            "cls: Input should be 'Relu', 'TopK' or 'BatchTopK'; got",
        ),
        ({"cfg": {"activation": {"cls": "Relu"}}}, "tensors that a saev SAE with Relu does not"),
    ]:
        file.write_bytes(json.dumps(json.loads(line) | change).encode() + b"\n" + data)
        with pytest.raises(CheckpointError, match=message):
            load(file)
    file.write_bytes(b'{"cfg"\n' + data)
    with pytest.raises(CheckpointError, match="the first line of .* is not JSON"):
        load(file)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("mine.pt", "the name of .* does not tell its shape"),
        ("24_8_ReLU_003_False_True_0.0.pt", "standardises rows after centring"),
        ("24_8_ReLU_003_False_False_30.0.pt", "soft cap of 30.0"),
        ("24_8_TopKabs_8_False_False_0.0.pt", "activation 'TopKabs'; ReLU, TopKReLU"),
    ],
)
def test_msae(name: str, message: str, tmp_path: Path) -> None:
    (good,) = (GOLDEN / "msae-relu/checkpoint").iterdir()
    shutil.copy(good, tmp_path / name)
    with pytest.raises(CheckpointError, match=message):
        load(tmp_path / name)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"is_transcoder": True}, "holds a transcoder; of Prisma only SAEs are read"),
        (
            {"normalize_activations": "batch"},
            "normalize_activations: Input should be 'none', .* got 'batch'",
        ),
        ({"activation_fn_str": "tanh-relu"}, "Input should be 'relu' or 'topk'; got 'tanh-relu'"),
        ({"architecture": "jumprelu"}, "Input should be 'standard' or 'gated'; got"),
        ({"architecture": "gated", "activation_fn_str": "topk"}, "is of a gated SAE with topk"),
    ],
)
def test_prisma(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    folder = taken("prisma-standard", tmp_path)
    edit(folder / "config.json", **changes)
    with pytest.raises(CheckpointError, match=message):
        load(folder)


def test_prisma_training_files(tmp_path: Path) -> None:
    folder = taken("prisma-topk", tmp_path)
    (folder / "weights.pt").rename(folder / "n_images_900.pt")
    shutil.copy(folder / "n_images_900.pt", folder / "n_images_1000.pt")
    edit_torch(folder / "n_images_900.pt", b_enc=torch.zeros(3))
    assert load(folder).config.sparsity.kind == "topk"  # the last of them
    for file in folder.glob("*.pt"):
        file.unlink()
    with pytest.raises(CheckpointError, match="has no weights.pt and no n_images"):
        load(folder, "prisma")
