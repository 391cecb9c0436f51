"""Every stored SAE of another library gives that library's codes and reconstructions."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from vision_sae import checkpoint
from vision_sae.interop import FORMATS, convert, detect, load
from vision_sae.sae import SAE

GOLDEN = Path(__file__).parent / "golden"
CASES = sorted(path.parent.name for path in GOLDEN.glob("*/case.json"))
# what SAELens has no form for, and why
NOT_IN_SAELENS = {
    "sparsify-groupmax": "groupmax family has no form",
    "sparsify-transcoder": "no transcoder of the topk family",
    "sparsify-skip-transcoder": "no transcoder of the topk family",
    "sparsify-skip-autoencoder": "no transcoder of the topk family",
    "overcomplete-matching-pursuit": "rectifies the products",
}


def read(name: str) -> tuple[SAE, dict[str, torch.Tensor], dict[str, Any]]:
    case = json.loads((GOLDEN / name / "case.json").read_text())
    sae = load(GOLDEN / name / case["path"], **case["settings"])
    return sae, load_file(GOLDEN / name / "expected.safetensors"), case


def agrees(sae: SAE, expected: dict[str, torch.Tensor]) -> None:
    with torch.no_grad():
        codes, x_hat = sae(expected["x"])
    torch.testing.assert_close(codes.to_dense(), expected["codes"], rtol=0, atol=1e-5)
    torch.testing.assert_close(x_hat, expected["x_hat"], rtol=0, atol=1e-5)


def test_there_are_cases_of_every_format() -> None:
    formats = {json.loads((GOLDEN / name / "case.json").read_text())["format"] for name in CASES}
    assert formats == set(FORMATS) - {"vision_sae"}


@pytest.mark.parametrize("name", CASES)
def test_codes_and_reconstruction_are_the_librarys(name: str) -> None:
    sae, expected, case = read(name)
    assert not sae.training
    assert detect(GOLDEN / name / case["path"]) == case["format"]
    agrees(sae, expected)


@pytest.mark.parametrize("name", CASES)
def test_our_own_form_keeps_them(name: str, tmp_path: Path) -> None:
    sae, expected, case = read(name)
    checkpoint.save(sae, tmp_path / "sae")
    assert detect(tmp_path / "sae") == "vision_sae"
    agrees(load(tmp_path / "sae"), expected)


@pytest.mark.parametrize("name", [name for name in CASES if name not in NOT_IN_SAELENS])
def test_saelens_form_keeps_them(name: str, tmp_path: Path) -> None:
    sae, expected, case = read(name)
    convert(GOLDEN / name / case["path"], tmp_path / "sae", **case["settings"])
    assert detect(tmp_path / "sae") == "saelens"
    agrees(load(tmp_path / "sae"), expected)
