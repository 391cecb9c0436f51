"""The looks of emoji-diffusion's pictures: one plain, and eight that no one would confuse.

Every look is a function of a drawing's premultiplied colour and its alpha, moved and scaled, at
64 px; `paint` draws a batch and brings it to the size asked for.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor

from vision_sae.assets.canvas import moved

Colour = Float[Tensor, "b 3 h w"]  # premultiplied by alpha
Alpha = Float[Tensor, "b 1 h w"]
Look = Callable[[Colour, Alpha, Tensor], Colour]  # the tensor: [b 3] random numbers in 0..1

PAPER = (0.96, 0.89, 0.74)
INK_BLUE = (0.10, 0.27, 0.62)
HEAT = ((0.05, 0.0, 0.22), (0.45, 0.0, 0.55), (0.9, 0.25, 0.15), (1.0, 0.75, 0.1), (1.0, 1.0, 0.8))


def tint(values: tuple[float, ...]) -> Float[Tensor, "1 3 1 1"]:
    return torch.tensor(values).view(1, 3, 1, 1)


def grey(colour: Colour) -> Float[Tensor, "b 1 h w"]:
    return (colour * tint((0.299, 0.587, 0.114))).sum(1, keepdim=True)


def over(
    colour: Float[Tensor, "b c h w"], alpha: Alpha, ground: Tensor
) -> Float[Tensor, "b c h w"]:
    return colour + (1 - alpha) * ground


def outlines(colour: Colour, alpha: Alpha) -> Float[Tensor, "b 1 h w"]:
    """Where the drawing's brightness or its border changes, in 0..1."""
    field = torch.cat([grey(colour), alpha, colour.amax(1, keepdim=True)], 1)
    across = F.pad(field[..., 1:] - field[..., :-1], (0, 1))
    down = F.pad(field[..., 1:, :] - field[..., :-1, :], (0, 0, 0, 1))
    steep = (across.square() + down.square()).sum(1, keepdim=True).sqrt()
    return (F.max_pool2d(steep, 3, 1, 1) * 1.8).clamp(0, 1)


def stripes(shape: torch.Size, period: int, slant: float) -> Float[Tensor, "1 1 h w"]:
    rows = torch.arange(shape[-2])[:, None] * slant + torch.arange(shape[-1])
    return ((rows % period) < period / 2).float()[None, None]


def plain(colour: Colour, alpha: Alpha, chance: Tensor) -> Colour:
    """The drawing as it is, on a pastel ground."""
    return over(colour, alpha, 1 - 0.35 * chance[:, :, None, None])


def neon(colour: Colour, alpha: Alpha, chance: Tensor) -> Colour:
    """Glowing tubes along the outlines, cyan above and magenta below, on black."""
    lines = outlines(colour, alpha)
    glow = F.avg_pool2d(lines, 7, 1, 3)
    height = torch.linspace(0, 1, colour.shape[2]).view(1, 1, -1, 1)
    tube = tint((0.1, 1.0, 1.0)) * (1 - height) + tint((1.0, 0.15, 0.9)) * height
    return (lines + 0.7 * glow) * tube


def sepia(colour: Colour, alpha: Alpha, chance: Tensor) -> Colour:
    """An old photograph: brown tones on yellowed paper, darker towards the corners."""
    tone = over(grey(colour).pow(1.7), alpha, torch.tensor(0.95))
    side = torch.linspace(-1, 1, colour.shape[2])
    corner = (side[:, None].square() + side.square())[None, None]
    brown = tint((0.30, 0.16, 0.06)) * (1 - tone) + tint(PAPER) * tone
    return brown * (1.03 - 0.22 * corner)


def mosaic(colour: Colour, alpha: Alpha, chance: Tensor) -> Colour:
    """Square tiles of one colour each, with dark joints."""
    size, count = colour.shape[2], 11
    tiles = F.adaptive_avg_pool2d(plain(colour, alpha, chance), count)
    tiled = F.interpolate(tiles, size=(size, size), mode="nearest")
    side = torch.arange(size) * count // size
    edge = torch.cat([torch.tensor([True]), side[1:] != side[:-1]])
    joint = (edge[:, None] | edge)[None, None].float()
    return (tiled * 1.25 - 0.15) * (1 - 0.8 * joint)


def pencil(colour: Colour, alpha: Alpha, chance: Tensor) -> Colour:
    """Grey strokes on white: outlines, and hatching where the drawing is dark."""
    dark = (alpha - grey(colour)).clamp(0, 1)
    hatch = stripes(colour.shape, 6, 1.0) * (dark > 0.25) * 0.5
    strokes = torch.maximum(outlines(colour, alpha) * 0.75, hatch)
    return (0.98 - strokes).expand_as(colour)


def blueprint(colour: Colour, alpha: Alpha, chance: Tensor) -> Colour:
    """White outlines on blue squared paper."""
    lines = outlines(colour, alpha)
    step = torch.arange(colour.shape[2]) % 8 < 2
    ruled = (step[:, None] | step)[None, None].float() * 0.22
    ground = torch.maximum(lines, ruled.expand_as(lines))
    return tint(INK_BLUE) * (1 - ground) + ground


def comic(colour: Colour, alpha: Alpha, chance: Tensor) -> Colour:
    """Four loud steps a colour and a black outline, on yellow with red dots."""
    solid = colour / alpha.clamp(min=1e-3)
    loud = ((solid - 0.5) * 1.6 + 0.5).clamp(0, 1)
    steps = (loud * 3).round() / 3
    side = (torch.arange(colour.shape[2]) % 8 - 3.5).square()
    dots = ((side[:, None] + side) < 7)[None, None].float()
    ground = tint((1.0, 0.86, 0.1)) * (1 - dots) + tint((0.95, 0.2, 0.1)) * dots
    rim = (F.max_pool2d(alpha, 5, 1, 2) - alpha).clamp(0, 1)
    return over(steps * alpha, alpha, ground * (1 - rim))


def thermal(colour: Colour, alpha: Alpha, chance: Tensor) -> Colour:
    """A heat camera: brightness as violet, red, yellow, on cold indigo."""
    heat = ((0.35 * alpha + 0.65 * grey(colour)) * (len(HEAT) - 1)).clamp(0, len(HEAT) - 1.001)
    table = torch.tensor(HEAT)  # [5 3]
    low = heat.long()
    part = heat - low
    mixed = (
        table[low[:, 0]] * (1 - part[:, 0, ..., None])
        + table[low[:, 0] + 1] * part[:, 0, ..., None]
    )
    return mixed.permute(0, 3, 1, 2)


def stencil(colour: Colour, alpha: Alpha, chance: Tensor) -> Colour:
    """Fluent's high-contrast drawing, white on a flat green."""
    return over(tint((1.0, 1.0, 1.0)) * alpha, alpha, tint((0.05, 0.45, 0.25)))


LOOKS: dict[str, Look] = {
    "": plain, "neon": neon, "sepia": sepia, "mosaic": mosaic, "pencil": pencil,
    "blueprint": blueprint, "comic": comic, "thermal": thermal, "stencil": stencil,
}  # fmt: skip


def paint(
    rgba: UInt8[Tensor, "b 4 h w"], look: str, generator: torch.Generator, *, size: int = 32
) -> Float[Tensor, "b 3 {size} {size}"]:
    """Each drawing moved at random and drawn in one look; values in 0..1."""
    colour, alpha = moved(rgba, generator)
    chance = torch.rand(len(rgba), 3, generator=generator)
    picture = LOOKS[look](colour, alpha, chance).clamp(0, 1)
    return F.interpolate(picture, size=(size, size), mode="area")
