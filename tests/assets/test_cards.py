"""The cards of emoji-diffusion and emoji-judge say what their files say."""

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open

from vision_sae.assets.judge import FOLDER as JUDGE
from vision_sae.assets.models import DIFFUSION
from vision_sae.assets.vocabulary import OBJECTS, STYLES

LINK = re.compile(r"\]\((?!http)([^)]+)\)")
CARDS = [DIFFUSION, JUDGE]
WEIGHTS = {"autoencoder": "vae", "denoiser": "unet", "text encoder": "text_encoder"}


def card(folder: Path) -> str:
    return (folder / "README.md").read_text()


def rows(text: str) -> dict[str, list[str]]:
    """The lines of all tables: first cell -> the other cells."""
    lines = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("|")]
    return {first.strip("`"): rest for first, *rest in lines}


def millions(file: Path) -> str:
    with safe_open(file, "np") as weights:
        names = weights.keys()
        count = sum(math.prod(weights.get_slice(name).get_shape()) for name in names)
    return f"{count / 1e6:.2f} million"


def megabytes(files: list[Path]) -> str:
    return f"{sum(file.stat().st_size for file in files) / 1e6:.1f} MB"


def saes() -> dict[str, Any]:
    folders = sorted((DIFFUSION / "saes").iterdir())
    return {f.name: json.loads((f / "config.json").read_text()) for f in folders}


# ---- both


@pytest.mark.parametrize("folder", CARDS, ids=lambda folder: folder.name)
def test_links_lead_to_files_that_are_there(folder: Path) -> None:
    for link in LINK.findall(card(folder)):
        assert (folder / link).is_file(), link


@pytest.mark.parametrize("folder", CARDS, ids=lambda folder: folder.name)
def test_a_card_names_its_licence_limits_and_what_a_new_training_gives(folder: Path) -> None:
    text = " ".join(card(folder).split())
    assert "licence" in rows(card(folder)) and "## Limits" in text
    assert "a model of the same quality, not the same bytes" in text


# ---- emoji-diffusion


@pytest.mark.parametrize("part", WEIGHTS)
def test_the_parameters_of_each_part(part: str) -> None:
    (file,) = (DIFFUSION / WEIGHTS[part]).glob("*.safetensors")
    assert millions(file).removesuffix(" million") in rows(card(DIFFUSION))[part][0]


def test_the_sizes_of_model_and_saes() -> None:
    files = [f for f in DIFFUSION.rglob("*") if f.is_file() and f.suffix != ".md"]
    of_saes = [f for f in files if DIFFUSION / "saes" in f.parents]
    model = megabytes([f for f in files if f not in of_saes])
    assert rows(card(DIFFUSION))["size"] == [f"{model} in fp16, and {megabytes(of_saes)} of SAEs"]


def test_objects_looks_and_tokens() -> None:
    told = rows(card(DIFFUSION))
    assert told["draws"][0].startswith(f"{len(OBJECTS)} objects in {len(STYLES) + 1} looks")
    assert ", ".join(STYLES) in told["draws"][0]
    config = json.loads((DIFFUSION / "text_encoder" / "config.json").read_text())
    assert f"{config['vocab_size']} tokens" in told["text encoder"][0]


def test_every_sae_is_in_the_table_with_three_numbers() -> None:
    told = rows(card(DIFFUSION))
    for site in saes():
        fvu, l0, never = told[f"{site}:update"]
        assert 0 < float(fvu) < 0.3 and 10 < float(l0) < 25 and never.endswith("%")


def test_how_the_saes_were_trained() -> None:
    text = " ".join(card(DIFFUSION).split())
    for config in saes().values():
        sae, training = config["sae"], config["training"]
        assert f"{sae['s']:,} latents, k {sae['sparsity']['k']}, `atoms={sae['atoms']}`" in text
        steps, batch = training["steps"], training["batch_size"]
        assert f"{steps:,} steps of {batch:,} rows, seed {training['seed']}" in text
        prompts = int(config["provenance"]["data"].split()[0])
        assert f"{prompts * 180:,} trajectories ({prompts} prompts of each pair" in text
        assert f"all {len(config['provenance']['timesteps'])} timesteps" in text


def test_the_sheet_is_small_and_has_every_pair() -> None:
    image = pytest.importorskip("PIL.Image")
    figure = DIFFUSION.parent / "figures" / "emoji-diffusion.webp"
    assert figure.stat().st_size <= 600_000
    with image.open(figure) as sheet:
        assert sheet.width >= 64 * len(OBJECTS) and sheet.height >= 64 * (len(STYLES) + 1)


# ---- emoji-judge


def test_the_judges_parameters_and_size() -> None:
    weights = JUDGE / "model.safetensors"
    told = f"{millions(weights)}, fp16, {megabytes([weights])}"
    assert rows(card(JUDGE))["parameters"] == [told]


def test_the_judges_accuracy_is_that_of_its_config() -> None:
    found = json.loads((JUDGE / "config.json").read_text())["accuracy"]["test"]
    told = next(v for k, v in rows(card(JUDGE)).items() if k.startswith("3,600 new"))
    assert told == [f"{found['object']:.1%}", f"{found['style']:.1%}"]


def test_the_judges_training_is_what_its_builder_does() -> None:
    pytest.importorskip("diffusers")
    pytest.importorskip("transformers")
    from vision_sae.assets.builders.emoji_judge import BATCH, STEPS

    assert f"{STEPS:,} steps of {BATCH} real" in " ".join(card(JUDGE).split())
