"""A batch of pictures has the bits that the transform gives one by one."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torchvision import transforms as tv

from vision_sae.adapters.pictures import stacked

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
SQUARE = [tv.Resize(8), tv.CenterCrop(8)]
USUAL = tv.Compose([*SQUARE, tv.ToTensor(), tv.Normalize(MEAN, STD)])


def picture(seed: int, size: tuple[int, int] = (12, 10), mode: str = "RGB") -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


def one_by_one(transform: Any, pictures: list[Image.Image]) -> torch.Tensor:
    return torch.stack([transform(p) for p in pictures])


@given(seeds=st.lists(st.integers(0, 2**31), min_size=1, max_size=4), size=st.integers(3, 20))
def test_the_usual_ending_gives_the_same_bits(seeds: list[int], size: int) -> None:
    pictures = [picture(seed, (size, size + 2)) for seed in seeds]
    assert torch.equal(stacked(USUAL, pictures), one_by_one(USUAL, pictures))


@pytest.mark.parametrize(
    "transform",
    [
        tv.Compose([*SQUARE, tv.ToTensor()]),
        tv.Compose([*SQUARE, tv.ToTensor(), tv.Normalize(0.5, 0.5), torch.nn.Identity()]),
        lambda image: tv.functional.to_tensor(image) * 2,
    ],
    ids=["no normalisation", "a step behind it", "a function"],
)
def test_other_endings_are_applied_one_by_one(transform: Any) -> None:
    pictures = [picture(0), picture(1)]
    assert torch.equal(stacked(transform, pictures), one_by_one(transform, pictures))


def test_grey_pictures_keep_their_channel() -> None:
    grey = tv.Compose([tv.ToTensor(), tv.Normalize([0.5], [0.5])])
    assert stacked(grey, [picture(0, mode="L")]).shape == (1, 1, 12, 10)


def test_pictures_of_two_sizes_are_refused_by_torch() -> None:
    loose = tv.Compose([tv.ToTensor(), tv.Normalize(MEAN, STD)])
    with pytest.raises(RuntimeError, match="equal size"):
        stacked(loose, [picture(0), picture(1, (9, 9))])
