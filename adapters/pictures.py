"""A transform of one picture, applied to many."""

import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

Transform = Callable[[Any], Tensor]  # a PIL image to [c h w]


class _Parts(NamedTuple):
    """What a transform does before it makes a tensor, and how that is normalised then."""

    before: Sequence[Callable[[Any], Any]]
    mean: Float[Tensor, "c 1 1"]
    std: Float[Tensor, "c 1 1"]


def stacked(transform: Transform, pictures: Sequence[Any]) -> Float[Tensor, "b c h w"]:
    """`transform` of each, bit for bit.

    Where it ends with torchvision's ToTensor and Normalize, these are written straight into the
    batch, by numpy: torch would start threads of its own for each picture, beside the model's.
    """
    parts = _parts(transform)
    if parts is not None:
        images = [_applied(parts.before, picture) for picture in pictures]
        if {(getattr(i, "mode", ""), i.size) for i in images} == {("RGB", images[0].size)}:
            return _normalised(images, parts)
    return torch.stack([transform(picture) for picture in pictures])


def _parts(transform: Any) -> _Parts | None:
    """Of a transform that ends so; None of another."""
    tv: Any = sys.modules.get("torchvision.transforms")
    if tv is None or type(transform) is not tv.Compose:
        return None
    steps, ending = transform.transforms, (tv.ToTensor, tv.Normalize)
    if len(steps) < 2 or not all(map(isinstance, steps[-2:], ending)):
        return None
    mean, std = (torch.as_tensor(v, dtype=torch.float32) for v in (steps[-1].mean, steps[-1].std))
    return _Parts(steps[:-2], mean.view(-1, 1, 1), std.view(-1, 1, 1))


def _applied(steps: Sequence[Callable[[Any], Any]], picture: Any) -> Any:
    for step in steps:
        picture = step(picture)
    return picture


def _normalised(images: Sequence[Any], parts: _Parts) -> Float[Tensor, "b c h w"]:
    mean, std = parts.mean.numpy(), parts.std.numpy()
    width, height = images[0].size
    batch = np.empty((len(images), 3, height, width), np.float32)
    for one, image in zip(batch, images, strict=True):
        one[...] = np.asarray(image).transpose(2, 0, 1)
        one /= np.float32(255)
        one -= mean
        one /= std
    return torch.from_numpy(batch)
