"""Where an edit acted: how far it moved each position of the sites that it edits."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from vision_sae.adapters.diffusion_inputs import denoiser_of
from vision_sae.model.hooks import capture


class Marks:
    """How far each position of the edited sites was moved, relative to their mean length."""

    def __init__(self, model: nn.Module, sites: Sequence[str], rows: int) -> None:
        self.model, self.sites, self.rows = model, sites, rows
        self.before: dict[str, Tensor] = {}
        self.moved: dict[str, list[Tensor]] = {site: [] for site in sites}

    def note(self, site: str) -> Any:
        def keep(call: int, output: Tensor) -> None:
            self.before[site] = output

        return keep

    def compare(self, site: str) -> Any:
        def keep(call: int, output: Tensor) -> None:
            before = self.before.pop(site)
            moved = _lengths((output - before).float()) / _lengths(before.float()).mean()
            halves = moved.unflatten(0, (-1, self.rows))  # of a guided batch
            self.moved[site].append(halves.amax(0))

        return keep

    @contextmanager
    def after(self) -> Iterator[None]:
        """Inside the block of `unlearn`, what the sites give is compared with what they gave."""
        with ExitStack() as stack:
            for site in self.sites:
                stack.enter_context(capture(self.model, [site], keep=self.compare(site)))
            yield

    def masks(self) -> list[Float[Tensor, "y x"]]:
        """Of each image; empty where there is no map."""
        maps = [torch.stack(each).mean(0) for each in self.moved.values() if each]
        if not maps or any(each.ndim != 3 for each in maps):
            return []
        size = max(tuple(each.shape[1:]) for each in maps)
        alike = [F.interpolate(each[:, None], size, mode="nearest")[:, 0] for each in maps]
        return list(torch.stack(alike).amax(0).cpu())


@contextmanager
def acted(pipe: Any, sites: Sequence[str], rows: int) -> Iterator[Marks]:
    """Note what the sites give before `unlearn`, which must begin inside this block."""
    marks = Marks(denoiser_of(pipe), sites, rows)
    with ExitStack() as stack:
        for site in sites:
            stack.enter_context(capture(marks.model, [site], keep=marks.note(site)))
        yield marks


def _lengths(moved: Float[Tensor, "b ..."]) -> Float[Tensor, "b ..."]:
    """Of each position, [b y x]; of tokens that are no square map, [b t]."""
    if moved.ndim == 4:  # a U-Net's [b c y x]
        lengths: Tensor = moved.norm(dim=1)
        return lengths
    lengths = moved.norm(dim=-1)
    side = round(lengths[0].numel() ** 0.5)
    square = lengths.ndim == 2 and side * side == lengths.shape[1]
    return lengths.unflatten(1, (side, side)) if square else lengths
