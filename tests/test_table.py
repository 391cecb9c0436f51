"""The README's table of model families is true: its plugins are there, and so are its sites."""

import re
from pathlib import Path

import pytest
import torch

from vision_sae import plugins
from vision_sae.model.adapter import load_adapter
from vision_sae.model.probing import all_sites

README = (Path(__file__).parents[1] / "README.md").read_text("utf-8")
ROWS = [
    [cell.strip() for cell in line.strip("|").split(" | ")]
    for line in README.split("| model family |")[1].split("\n\n")[0].splitlines()[2:]
]
RANDOM = {  # row -> models to look at, and the pixels of a side
    "open_clip ViT": (["open_clip:ViT-B-32/random"], 224),
    "open_clip ConvNeXt, ResNet": (
        ["open_clip:RN50/random", "open_clip:convnext_base/random"],
        224,
    ),
    "timm ViT, DINOv2, SigLIP": (["timm:vit_small_patch14_dinov2/random?img_size=224"], 224),
    "timm ResNet, ConvNeXt, Swin": (
        ["timm:resnet18/random", "timm:convnext_atto/random",
         "timm:swin_tiny_patch4_window7_224/random"],
        224,
    ),
}  # fmt: skip


def in_code(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def test_every_adapter_has_a_row_and_every_row_an_adapter() -> None:
    named = {
        re.split("[:?]", code)[0] for row in ROWS for code in in_code(row[1]) + in_code(row[3])
    }
    named = {name for name in named if re.fullmatch(r"[\w-]+", name)}
    assert named == set(plugins.names(plugins.ADAPTERS))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("family", RANDOM)
def test_the_sites_of_a_row_are_there(family: str) -> None:
    sites = next(in_code(row[2]) for row in ROWS if row[0] == family)
    models, side = RANDOM[family]
    found: set[str] = set()
    for model in models:
        found |= set(all_sites(load_adapter(model), torch.zeros(1, 3, side, side)))
    missing = [site for site in sites if site.replace("N", "0") not in found]
    assert not missing
