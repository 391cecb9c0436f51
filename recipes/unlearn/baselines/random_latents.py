"""The control: the same plan on random latents that fire, in place of those that were found."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from vision_sae.errors import ConfigError, DataError
from vision_sae.recipes.unlearn.apply import removal_of
from vision_sae.recipes.unlearn.plan import Plan, SiteEdit
from vision_sae.recipes.unlearn.readout import Readout
from vision_sae.recipes.unlearn.removal import Removal
from vision_sae.sae import SAE

Find = Callable[[Any, Sequence[str]], Sequence[Plan]]  # pipeline, concepts -> plans


@dataclass(frozen=True)
class RandomLatents:
    """What `find` plans, with as many random latents of `live` (by site) in place of its own.

    Tables and strengths stay, so that the codes change as much, along other atoms. A gate per image
    still reads the latents that were found: it opens for the same images. Raises ConfigError for a
    site without an SAE or live latents, DataError where too few are live.
    """

    find: Find
    saes: Mapping[str, SAE]
    live: Mapping[str, Int[Tensor, " n"]]
    seed: int = 0
    name: str = "random latents"

    def fit(self, pipe: Any, concepts: Sequence[str]) -> Removal:
        chance = torch.Generator().manual_seed(self.seed)
        plans = [self.swapped(plan, chance) for plan in self.find(pipe, concepts)]
        return removal_of(plans, self.saes)

    def swapped(self, plan: Plan, chance: torch.Generator) -> Plan:
        """A plan on random latents."""
        return replace(plan, edits=tuple(self._swapped(edit, chance) for edit in plan.edits))

    def _swapped(self, edit: SiteEdit, chance: torch.Generator) -> SiteEdit:
        drawn = self._drawn(edit, chance)
        tables: dict[str, Tensor] = {}
        if "image" in edit.gates:
            drawn, tables = torch.cat([edit.latents, drawn]), _doubled(edit)
        has_readout = edit.readout is not None
        readout = Readout.of(self.saes[edit.site], drawn) if has_readout else None
        return replace(edit, latents=drawn, readout=readout, **tables)  # type: ignore[arg-type]

    def _drawn(self, edit: SiteEdit, chance: torch.Generator) -> Int[Tensor, " m"]:
        if edit.site not in self.live or edit.site not in self.saes:
            raise ConfigError(
                f"the plan edits {edit.site!r}, and random latents have live latents for "
                f"{', '.join(self.live) or 'no site'} and SAEs for {', '.join(self.saes) or 'none'}"
            )
        live = self.live[edit.site]
        free = live[~torch.isin(live, edit.latents)]
        if len(free) < len(edit.latents):
            raise DataError(
                f"{len(free)} live latents at {edit.site!r} are not in the plan, which edits "
                f"{len(edit.latents)}"
            )
        return free[torch.randperm(len(free), generator=chance)[: len(edit.latents)]]


def live_latents(active: Float[Tensor, "*any s"], least: float = 1e-4) -> Int[Tensor, " n"]:
    """Latents whose mean share of active tokens (Statistics.active) is at least `least`."""
    return (active.flatten(0, -2).mean(0) >= least).nonzero()[:, 0]


def _doubled(edit: SiteEdit) -> dict[str, Tensor]:
    """Tables with each column twice: first to detect by, then to change by."""
    names = ("strengths", "mean", "other", "theta", "detector")
    tables = {name: torch.cat([getattr(edit, name)] * 2, 1) for name in names}
    m = len(edit.latents)
    tables["strengths"][:, :m] = 0
    tables["detector"][:, m:] = 0
    return tables
