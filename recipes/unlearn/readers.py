"""What gives the codes of an edit's latents, and takes a change of them back to the site.

Shape key: b images, t positions, n = b * t rows, m latents, d width of the site.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from vision_sae.errors import ConfigError
from vision_sae.recipes.unlearn.plan import SiteEdit
from vision_sae.recipes.unlearn.readout import Readout
from vision_sae.rows import RowNorm, treat_rows
from vision_sae.sae import SAE


class Thresholds:
    """Reads chosen latents alone."""

    def __init__(self, readouts: Sequence[Readout], device: torch.device) -> None:
        first = readouts[0]
        if any(r.rows != first.rows for r in readouts):
            raise ConfigError(
                "the plans at one site were made with SAEs that treat rows differently "
                f"({', '.join(sorted({r.rows for r in readouts}))}); use them one at a time"
            )
        joined = {name: [r.tensors()[name] for r in readouts] for name in first.tensors()}
        whole = Readout(**{n: torch.cat(parts) for n, parts in joined.items()}, rows=first.rows)
        self.readout = whole.to(device)
        self.atoms = self.readout.atoms

    def __call__(self, x: Float[Tensor, "b t d"]) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        if self.readout.rows == "none":
            return self.readout.codes(x), lambda delta: delta
        rows, back = _treated(x, self.readout.rows)
        return self.readout.codes(rows), back

    def error(self, x: Tensor) -> Tensor:
        raise ConfigError("the published sign of the error needs the whole SAE: pass saes=")


class Competing:
    """Reads all latents, and gives the chosen ones: for SAEs without thresholds."""

    def __init__(self, sae: SAE, latents: Int[Tensor, " m"], device: torch.device) -> None:
        self.sae, self.m = sae.to(device).eval(), len(latents)
        latents = latents.to(device)
        self.atoms = sae.W_dec.detach()[latents]
        self.places = [_places(part, sae.config.s) for part in _without_twins(latents)]

    def __call__(self, x: Float[Tensor, "b t d"]) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        flat = x.reshape(-1, x.shape[-1])
        codes = self.sae.encode(flat)
        parts = [self._chosen(codes, place, width) for place, width in self.places]
        f = parts[0] if len(parts) == 1 else torch.cat(parts, 1)
        back = _treated(x, self.sae.config.rows)[1]
        return f.view(*x.shape[:2], self.m), back

    def _chosen(self, codes: Any, place: Tensor, width: int) -> Float[Tensor, "n m"]:
        found = torch.zeros(len(codes), width + 1, device=place.device)
        found.index_put_((codes.rows, place[codes.indices]), codes.values, accumulate=True)
        return found[:, :width]

    def error(self, x: Float[Tensor, "b t d"]) -> Float[Tensor, "b t d"]:
        """x_hat - x."""
        x_hat: Tensor = self.sae(x.reshape(-1, x.shape[-1])).x_hat
        return x_hat.view_as(x) - x


def _without_twins(latents: Tensor) -> list[Tensor]:
    """Runs in which no latent comes twice: several plans may share some."""
    runs, seen, start = [], set[int](), 0
    for i, latent in enumerate(latents.tolist()):
        if latent in seen:
            runs.append(latents[start:i])
            seen, start = set(), i
        seen.add(latent)
    return [*runs, latents[start:]]


def _places(latents: Tensor, s: int) -> tuple[Tensor, int]:
    """For each of s latents its column; those not chosen share one more at the end."""
    place = torch.full((s,), len(latents), device=latents.device)
    place[latents] = torch.arange(len(latents), device=latents.device)
    return place, len(latents)


def _treated(x: Tensor, rows: RowNorm) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """Rows after their treatment, and how a difference of such rows is undone."""
    treated, undo = treat_rows(x.reshape(-1, x.shape[-1]), rows)
    zero = torch.zeros_like(treated)

    def back(delta: Tensor) -> Tensor:
        return (undo(delta.reshape(zero.shape)) - undo(zero)).view_as(x)

    return treated.view_as(x), back


Reader = Thresholds | Competing


def reader_of(sae: SAE, latents: Int[Tensor, " m"]) -> Reader:
    """What gives the codes [b t m] of a few latents; with thresholds no others are read."""
    readout, device = Readout.of(sae, latents), sae.b_dec.device
    return Competing(sae, latents, device) if readout is None else Thresholds([readout], device)


def joined_reader(edits: Sequence[SiteEdit], sae: SAE | None, device: torch.device) -> Reader:
    readouts = [edit.readout for edit in edits if edit.readout is not None]
    whole = any(edit.saeuron_sign for edit in edits) or len(readouts) < len(edits)
    if whole and sae is not None:
        return Competing(sae, torch.cat([edit.latents for edit in edits]), device)
    return Thresholds(readouts, device)
