"""The hub: local folders without network, uploads through a fake of its client."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from vision_sae import checkpoint, families
from vision_sae.errors import CheckpointError, UnknownName
from vision_sae.interop import detect, hub, load
from vision_sae.provenance import Provenance
from vision_sae.sae import SAE, SAEConfig

GOLDEN = Path(__file__).parent / "golden"
Make = Callable[[SAEConfig], SAE]
WHERE = Provenance(model="vit", fingerprint="f00", site="blocks.3", tokens="cls", data="photos")


class FakeApi:
    """Takes what HfApi takes, and keeps a copy of what is uploaded."""

    def __init__(self, kept: Path, calls: list[tuple[str, dict[str, Any]]]) -> None:
        self.kept, self.calls = kept, calls

    def create_repo(self, repo_id: str, **options: Any) -> str:
        self.calls.append(("create", {"repo_id": repo_id} | options))
        return f"https://hub.example/{repo_id}"

    def upload_folder(self, *, folder_path: str, **options: Any) -> None:
        shutil.copytree(folder_path, self.kept)
        self.calls.append(("upload", options))


class Fake:
    """The uploads of a test."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.calls = folder, list[tuple[str, dict[str, Any]]]()


@pytest.fixture
def uploads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fake:
    pytest.importorskip("huggingface_hub")
    fake = Fake(tmp_path / "uploaded")

    def api(token: str | None = None) -> FakeApi:
        return FakeApi(fake.folder, fake.calls)

    monkeypatch.setattr("huggingface_hub.HfApi", api)
    return fake


@pytest.fixture
def sae(random_sae: Make) -> SAE:
    made = random_sae(SAEConfig(d=8, s=24, sparsity=families.TopK(k=4)))
    made.provenance = WHERE
    return made


def test_an_sae_is_uploaded_with_a_card(sae: SAE, uploads: Fake) -> None:
    address = hub.push_to_hub(sae, "me/tiny-sae", training={"steps": 12}, private=True)
    assert address == "https://hub.example/me/tiny-sae"
    assert [name for name, _ in uploads.calls] == ["create", "upload"]
    assert uploads.calls[0][1] == {"repo_id": "me/tiny-sae", "private": True, "exist_ok": True}
    assert uploads.calls[1][1]["commit_message"] == "Upload an SAE"
    again = hub.from_pretrained(uploads.folder)
    assert again.config == sae.config and again.provenance == WHERE
    card = (uploads.folder / "README.md").read_text()
    for part in ("# tiny-sae", '"steps": 12', "| site | `blocks.3` |", '"kind": "topk"'):
        assert part in card
    assert 'hub.from_pretrained("me/tiny-sae")' in card


def test_a_folder_brings_its_record(sae: SAE, uploads: Fake, tmp_path: Path) -> None:
    checkpoint.save(sae, tmp_path / "sae", training={"steps": 99})
    hub.push_to_hub(tmp_path / "sae", "me/tiny-sae")
    assert '"steps": 99' in (uploads.folder / "README.md").read_text()
    assert checkpoint.read_config(uploads.folder).training == {"steps": 99}


def test_the_saelens_form_can_be_uploaded(random_sae: Make, uploads: Fake) -> None:
    sae = random_sae(SAEConfig(d=8, s=24, sparsity=families.ReLU()))
    hub.push_to_hub(sae, "me/tiny-sae", form="saelens")
    assert detect(uploads.folder) == "saelens"
    card = (uploads.folder / "README.md").read_text()
    assert "library_name: saelens" in card and "The checkpoint does not say." in card
    assert "No record of the training is stored." in card


def test_any_format_can_be_uploaded(uploads: Fake) -> None:
    hub.push_to_hub(GOLDEN / "sparsify-topk/checkpoint", "me/tiny-sae")
    assert detect(uploads.folder) == "vision_sae"


def test_an_unknown_form(sae: SAE) -> None:
    with pytest.raises(UnknownName, match="no form 'onnx'; there are: saelens, vision_sae"):
        hub.push_to_hub(sae, "me/tiny-sae", form="onnx")


def test_local_folders_of_any_format() -> None:
    path = GOLDEN / "sparsify-topk"
    sae = hub.from_pretrained(path, subfolder="checkpoint")
    x = torch.randn(3, 8)
    assert torch.equal(sae(x).x_hat, load(path / "checkpoint")(x).x_hat)
    with pytest.raises(CheckpointError, match="its folders are: checkpoint; name one"):
        hub.from_pretrained(path)


def test_a_name_is_downloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("huggingface_hub")
    asked: dict[str, Any] = {}

    def download(repo_id: str, **options: Any) -> str:
        asked.update(options, repo_id=repo_id)
        return str(GOLDEN / "saelens-topk")

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    sae = hub.from_pretrained("them/saes", subfolder="checkpoint", revision="v1")
    assert sae.config.sparsity.kind == "topk"
    assert asked["repo_id"] == "them/saes" and asked["revision"] == "v1"
    assert asked["allow_patterns"] == ["checkpoint", "checkpoint/*"]


def test_neither_a_path_nor_a_name() -> None:
    pytest.importorskip("huggingface_hub")
    with pytest.raises(
        CheckpointError, match="neither a file or folder here nor the name of a hub"
    ):
        hub.from_pretrained("runs/2024/sae/final")
