"""The looks: each differs from the others, and is the same for the same random numbers."""

import itertools

import pytest
import torch
from torch import Tensor

from vision_sae.assets.painting import LOOKS, paint

SIDE = 64


def drawings(count: int = 4) -> Tensor:
    """Rings and squares of several colours on a transparent ground, [count 4 64 64]."""
    place = torch.linspace(-1, 1, SIDE)
    far = (place[:, None].square() + place.square()).sqrt()
    shape = ((far < 0.8) & (far > 0.3)) | ((place[:, None].abs() < 0.2) & (place.abs() < 0.5))
    generator = torch.Generator().manual_seed(0)
    colour = torch.rand(count, 3, 1, 1, generator=generator).expand(-1, -1, SIDE, SIDE)
    rgba = torch.cat([colour, torch.ones(count, 1, SIDE, SIDE)], 1) * shape
    return (rgba * 255).byte()


def painted(look: str, seed: int = 0, **options: int) -> Tensor:
    return paint(drawings(), look, torch.Generator().manual_seed(seed), **options)


@pytest.mark.parametrize("look", LOOKS)
def test_a_look(look: str) -> None:
    pictures = painted(look)
    assert pictures.shape == (4, 3, 32, 32)
    assert pictures.min() >= 0 and pictures.max() <= 1
    assert pictures.std() > 0.02


@pytest.mark.parametrize("look", LOOKS)
def test_pictures_follow_the_generator(look: str) -> None:
    assert torch.equal(painted(look), painted(look))
    assert not torch.equal(painted(look), painted(look, seed=1))


def test_looks_differ() -> None:
    pictures = {look: painted(look) for look in LOOKS}
    for one, other in itertools.combinations(LOOKS, 2):
        apart = (pictures[one] - pictures[other]).abs().mean()
        assert apart > 0.05, (one, other)


@pytest.mark.parametrize("size", [16, 64])
def test_another_size(size: int) -> None:
    assert painted("neon", size=size).shape == (4, 3, size, size)


def test_the_drawing_is_left_as_it_was() -> None:
    rgba = drawings()
    for look in LOOKS:
        paint(rgba, look, torch.Generator().manual_seed(0))
    assert torch.equal(rgba, drawings())


@pytest.mark.parametrize("look", ["pencil", "blueprint", "stencil", "thermal"])
def test_looks_with_inks_of_their_own_hide_the_hue(look: str) -> None:
    """A drawing and the same one with red and blue exchanged: near to each other."""
    rgba = drawings()
    swapped = rgba[:, [2, 1, 0, 3]]
    one, two = (paint(x, look, torch.Generator().manual_seed(0)) for x in (rgba, swapped))
    plain = [paint(x, "", torch.Generator().manual_seed(0)) for x in (rgba, swapped)]
    assert (one - two).abs().mean() < (plain[0] - plain[1]).abs().mean()
