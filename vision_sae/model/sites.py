"""What a site is: a place in a model, and how what it gives is laid out as tokens.

    blocks.3              the output of a module
    blocks.3:update       its output minus its input: what a residual block adds
    blocks.3:input        its input
    blocks.3.attn:heads   an attention module's heads before the output projection, side by side
    blocks.3[1]           the second tensor of a module that gives several

Shape key, here and everywhere: b batch, n rows, t tokens of one image, d width of the site,
s latents, k active latents.
"""

import re
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

from jaxtyping import Float
from torch import Tensor

from vision_sae.errors import ConfigError, DataError
from vision_sae.provenance import Tokens

Layout = Literal["vector", "tokens", "map"]
Kind = Literal["output", "update", "input", "heads"]
_NAME = re.compile(r"(?P<path>[^:\[\]]+)(\[(?P<part>\d+)\])?(:(?P<kind>\w+))?")


class Place(NamedTuple):
    """A site's module, which of its tensors (None: the first), and what of it."""

    path: str
    part: int | None
    kind: Kind


def place_of(site: str) -> Place:
    """Parse a site's name. Raises ConfigError for a kind that there is not."""
    found = _NAME.fullmatch(site)
    kinds: dict[str, Kind] = {kind: kind for kind in get_args(Kind)}
    kind = kinds.get(found["kind"] or "output") if found else None
    if not found or not kind:
        raise ConfigError(
            f"a site is a module's path, as in blocks.3, with one of :{', :'.join(kinds)} "
            f"behind it, or [1] for the second of its tensors; got {site!r}"
        )
    return Place(found["path"], int(found["part"]) if found["part"] else None, kind)


@dataclass(frozen=True)
class Site:
    """What a place in a model gives.

    `vector` is [b d], `tokens` is [b t d] (with the batch at `batch_axis`), `map` is [b d h w], or
    [b h w d] where `width_axis` is 3.
    `prefix` counts the class and register tokens that stand before the patches, in this order;
    `registers` those of them that are registers.
    """

    name: str
    layout: Layout
    width: int
    tokens: int
    prefix: int
    grid: tuple[int, int] | None
    batch_axis: int = 0
    width_axis: int = 1  # of a map
    registers: int = 0

    @property
    def module(self) -> str:
        """The path of the module."""
        return place_of(self.name).path

    @property
    def kind(self) -> Kind:
        """Which of the module's tensors: its output, input, their difference, or heads."""
        return place_of(self.name).kind


def site_from_shapes(
    name: str, two: tuple[int, ...], three: tuple[int, ...], prefix: int, registers: int = 0
) -> Site:
    """A site from what it gave for batches of 2 and 3. Raises DataError for other layouts."""
    differ = [i for i, (a, b) in enumerate(zip(two, three, strict=False)) if a != b]
    allowed = {2: [[0]], 3: [[0], [1]], 4: [[0]]}  # tokens may come as [tokens batch width]
    batched = differ in allowed.get(len(two), []) and (two[differ[0]], three[differ[0]]) == (2, 3)
    if len(two) != len(three) or not batched:
        raise DataError(
            f"site {name!r} gives shapes {two} and {three} for batches of 2 and 3; "
            "a site must give [batch d], [batch tokens d], [batch d h w] or [batch h w d]"
        )
    axis = differ[0]
    if len(two) == 2:
        return Site(name, "vector", two[1], 1, 0, None)
    if len(two) == 4:
        last = two[1] == two[2] != two[3]  # square maps tell; Swin and others give [b h w d]
        h, w, d = (two[1], two[2], two[3]) if last else (two[2], two[3], two[1])
        return Site(name, "map", d, h * w, 0, (h, w), width_axis=3 if last else 1)
    tokens = two[1 - axis]
    if not _side(tokens - prefix) and _side(tokens):
        prefix = registers = 0  # before the class token comes in, or after it has gone
    side = _side(tokens - prefix)
    grid = (side, side) if side else None
    return Site(name, "tokens", two[2], tokens, prefix, grid, axis, registers=registers)


def _side(tokens: int) -> int:
    """Of a square of so many patches; 0 when they make none."""
    side = round(max(tokens, 0) ** 0.5)
    return side if side * side == tokens else 0


def to_tokens(output: Tensor, site: Site) -> Float[Tensor, "b t d"]:
    """A site's output as tokens."""
    if site.layout == "vector":
        return output[:, None, :]
    if site.layout == "map":
        return output.movedim(site.width_axis, 3).flatten(1, 2)
    return output.movedim(site.batch_axis, 0)


def from_tokens(tokens: Float[Tensor, "b t d"], site: Site) -> Tensor:
    """The inverse of `to_tokens`."""
    if site.layout == "vector":
        return tokens[:, 0, :]
    if site.layout == "map":
        assert site.grid is not None
        output = tokens.reshape(len(tokens), *site.grid, site.width)
        return output.movedim(3, site.width_axis)
    return tokens.movedim(0, site.batch_axis)


def token_span(site: Site, which: Tokens) -> slice:
    """Where the class token, registers, patches (also those to be pooled) or all tokens stand.

    Of two class tokens (distilled models) the first. Raises DataError for tokens that are not
    there.
    """
    classes = site.prefix - site.registers
    if which == "cls" and not classes:
        others = ["registers"] * (site.registers > 0) + ["patches", "pooled"]
        raise DataError(f"site {site.name!r} has no class token; choose {', '.join(others)} or all")
    if which == "registers" and not site.registers:
        raise DataError(f"site {site.name!r} has no registers; choose another kind of tokens")
    spans = {"cls": (0, 1), "registers": (classes, site.prefix), "all": (0, site.tokens)}
    return slice(*spans.get(which, (site.prefix, site.tokens)))


def select_tokens(
    tokens: Float[Tensor, "b t d"], site: Site, which: Tokens
) -> Float[Tensor, "b u d"]:
    """Keep the class token, registers, patches, the mean of the patches (`pooled`), or all.

    Raises DataError when the site has no such tokens.
    """
    if which == "patches" and site.layout == "vector":
        raise DataError(f"site {site.name!r} gives one vector per image; choose pooled or all")
    chosen = tokens[:, token_span(site, which)]
    return chosen.mean(1, keepdim=True) if which == "pooled" else chosen
