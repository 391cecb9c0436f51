"""emoji-judge: its interface, and that it reads what was painted."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from vision_sae.assets.judge import FOLDER, Judge
from vision_sae.assets.painting import LOOKS
from vision_sae.assets.vocabulary import OBJECTS, STYLES

pytest.importorskip("timm")


@pytest.fixture(scope="module")
def judge() -> Iterator[Judge]:
    yield Judge.load()


def test_it_is_small() -> None:
    assert sum(file.stat().st_size for file in FOLDER.rglob("*")) <= 3 * 2**20


def test_its_names_are_the_vocabulary(judge: Judge) -> None:
    assert judge.objects == OBJECTS
    assert judge.styles == ("plain", *STYLES)


@pytest.mark.parametrize("side", [32, 48])
def test_logits_and_features_of_each_picture(judge: Judge, side: int) -> None:
    images = torch.rand(3, 3, side, side, generator=torch.Generator().manual_seed(0))
    told, features = judge(images), judge.embed(images)
    assert told.object.shape == (3, 20) and told.style.shape == (3, 9)
    assert features.ndim == 2 and len(features) == 3 and features.isfinite().all()


def test_a_picture_is_judged_alone(judge: Judge) -> None:
    """Nothing is in training mode, and no weight is to be learnt."""
    images = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert not judge.training and not any(p.requires_grad for p in judge.parameters())
    torch.testing.assert_close(judge(images).object[:1], judge(images[:1]).object)


def test_the_last_layer_reads_the_features(judge: Judge) -> None:
    images = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    logits = judge.net.get_classifier()(judge.embed(images))
    torch.testing.assert_close(logits, torch.cat(list(judge(images)), 1))


def test_another_folder(tmp_path: Path, judge: Judge) -> None:
    for file in FOLDER.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    images = torch.rand(1, 3, 32, 32)
    assert torch.equal(Judge.load(tmp_path)(images).style, judge(images).style)


def test_it_reads_object_and_style_of_painted_pictures(judge: Judge) -> None:
    from vision_sae.assets.builders.emoji_diffusion import painted

    looks = list(enumerate(LOOKS))
    generator = torch.Generator().manual_seed(10**6)
    right = torch.zeros(2)
    for i, name in enumerate(OBJECTS):
        for j, look in looks:
            told = judge(painted(name, look, 2, generator))
            right += torch.stack(
                [(told.object.argmax(1) == i).sum(), (told.style.argmax(1) == j).sum()]
            )
    object_share, style_share = (right / (2 * len(OBJECTS) * len(looks))).tolist()
    assert object_share >= 0.97 and style_share >= 0.99
