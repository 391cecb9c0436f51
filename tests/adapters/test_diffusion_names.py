"""Pipelines by name: settings, folders, and what is refused."""

import json
import logging
import pickle
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

pytest.importorskip("diffusers")
pytest.importorskip("transformers")

import diffusers_models as tiny

from vision_sae.adapters import diffusion, diffusion_noised
from vision_sae.adapters.diffusion_loading import settings_of
from vision_sae.data.options import joined
from vision_sae.errors import ConfigError, DataError, MissingExtra

TINY = "steps=4&guidance=3&height=32&width=32"


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    logging.disable(logging.WARNING)
    yield
    logging.disable(logging.NOTSET)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sd")
    tiny.pipeline("sd").save_pretrained(path)
    return path


def test_a_folder_is_a_trajectory(folder: Path) -> None:
    adapter = diffusion.from_name(f"{folder}?{TINY}&every=2&half=uncond")
    assert (adapter.timesteps, adapter.half, adapter.guidance) == ((751, 251), "uncond", 3.0)
    kind, _, argument = adapter.name.partition(":")
    assert kind == "diffusers" and diffusion.from_name(argument).name == adapter.name
    at = diffusion.from_name(f"{folder}?{TINY}&at=0,3")
    assert at.timesteps == (751, 1) and "at=0,3" in at.name


def test_a_folder_is_noised_images(folder: Path) -> None:
    adapter = diffusion_noised.from_name(f"{folder}?timesteps=25,200&prompt=a %26 b&seed=3")
    assert (adapter.timesteps, adapter.prompt, adapter.seed) == ((25, 200), "a & b", 3)
    kind, _, argument = adapter.name.partition(":")
    assert kind == "diffusers-noised"
    assert diffusion_noised.from_name(argument).name == adapter.name


def test_the_weights_are_the_folders(folder: Path) -> None:
    weights = load_file(folder / "unet" / "diffusion_pytorch_model.safetensors")
    loaded = diffusion.from_name(f"{folder}?{TINY}").model.state_dict()
    assert loaded.keys() == weights.keys()
    assert all(torch.equal(loaded[name], weights[name]) for name in weights)


def test_the_dtype_is_that_of_the_settings(folder: Path) -> None:
    adapter = diffusion.from_name(f"{folder}?{TINY}&dtype=bfloat16")
    assert next(adapter.model.parameters()).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("", "needs a pipeline's folder or hub name after the colon"),
        (
            "F?stepps=3",
            "no setting 'stepps' .* there are: steps, every, at, guidance, half, height",
        ),
        ("F?steps=few", "the setting steps=few cannot be read; it takes a number"),
        ("F?at=1,x", "the setting at=1,x cannot be read; it takes whole numbers, as 0,10,20"),
        ("F?dtype=int8", "dtype=int8 cannot be read; it takes float32, float16, bfloat16"),
    ],
)
def test_a_wrong_setting_says_what_is_right(argument: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        diffusion.from_name(argument)


def test_noised_images_need_timesteps() -> None:
    with pytest.raises(ConfigError, match=r"needs timesteps, as in FOLDER\?timesteps=25,200"):
        diffusion_noised.from_name("F?seed=1")
    with pytest.raises(ConfigError, match="no setting 'steps' .* there are: timesteps, prompt"):
        diffusion_noised.from_name("F?steps=1")


def test_a_setting_without_a_value_is_refused() -> None:
    with pytest.raises(DataError, match="'steps' in 'F.steps' has no value"):
        diffusion.from_name("F?steps")


@given(st.text(min_size=1).filter(lambda t: "?" not in t), st.text())
def test_settings_go_there_and_back(folder: str, prompt: str) -> None:
    found = settings_of(joined(folder, {"prompt": prompt}), {"prompt": str})
    assert found == (folder, {"prompt": prompt})


def test_a_folder_without_a_pipeline_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no pipeline: it has no model_index.json"):
        diffusion.from_name(f"{tmp_path}?steps=2")
    (tmp_path / "model_index.json").write_text("{")
    with pytest.raises(DataError, match="model_index.json in .* is not JSON"):
        diffusion.from_name(f"{tmp_path}")


def copied(folder: Path, target: Path) -> Path:
    import shutil

    return Path(shutil.copytree(folder, target))


class Trap:
    """Unpickled, it would raise."""

    def __reduce__(self) -> Any:
        return exec, ("raise SystemExit('a pickle was read')",)


def test_pickled_weights_are_not_read(folder: Path, tmp_path: Path) -> None:
    copy = copied(folder, tmp_path / "copy")
    (copy / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    (copy / "unet" / "diffusion_pytorch_model.bin").write_bytes(pickle.dumps(Trap()))
    with pytest.raises(DataError, match="diffusers could not load .*safetensors"):
        diffusion.from_name(f"{copy}?{TINY}")


def test_code_in_a_folder_is_not_run(folder: Path, tmp_path: Path) -> None:
    copy = copied(folder, tmp_path / "copy")
    (copy / "unet" / "my_unet.py").write_text("raise SystemExit('code was run')")
    index = json.loads((copy / "model_index.json").read_text())
    index["unet"] = ["my_unet", "UNet"]
    (copy / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(DataError, match=r"its own code to be run \(my_unet.py\), which is not"):
        diffusion.from_name(f"{copy}?{TINY}")


def test_a_custom_pipeline_class_is_not_run(folder: Path, tmp_path: Path) -> None:
    copy = copied(folder, tmp_path / "copy")
    index = json.loads((copy / "model_index.json").read_text())
    index["_class_name"] = ["pipeline", "Mine"]
    (copy / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(DataError, match=r"\(custom pipeline class\), which is not done"):
        diffusion.from_name(f"{copy}?{TINY}")


def test_a_hub_name_that_cannot_be_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(DataError, match="diffusers could not load no-one/nothing"):
        diffusion.from_name("no-one/nothing?steps=2")


@pytest.mark.parametrize("library", ["diffusers", "transformers"])
def test_a_missing_library_names_the_extra(monkeypatch: pytest.MonkeyPatch, library: str) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(MissingExtra, match=rf"needs {library}, .*'vision-sae\[diffusion\]'"):
        diffusion.from_name("F?steps=2")
