"""Use plans while a pipeline samples: `with unlearn(pipe, plan): pipe("...")`."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

from torch import nn

from vision_sae.adapters.diffusion_inputs import denoiser_of, kind_of
from vision_sae.errors import ConfigError, MismatchError
from vision_sae.model.adapter import fingerprint
from vision_sae.model.hooks import edit as edited
from vision_sae.recipes.unlearn.calls import Guidance
from vision_sae.recipes.unlearn.change import Clock, SiteChange
from vision_sae.recipes.unlearn.plan import Plan, SiteEdit
from vision_sae.recipes.unlearn.removal import Removal
from vision_sae.recipes.unlearn.text import steered
from vision_sae.sae import SAE

Plans = Plan | str | Path | Sequence[Plan | str | Path]
_EDITED: WeakKeyDictionary[nn.Module, dict[str, str]] = WeakKeyDictionary()  # site -> concepts


@contextmanager
def unlearn(pipe: Any, plans: Plans, *, saes: Mapping[str, SAE] | None = None) -> Iterator[Any]:
    """Remove the plans' concepts while the pipeline samples inside the block; gives the pipeline.

    Any number of steps and any scheduler whose timesteps count alike; batches,
    num_images_per_prompt and half precision work. Several plans are joined: each reads what the
    model gives before any of them changes it. `saes` (by site) are needed where a plan's SAE has no
    thresholds. Hooks are gone when the block ends, whatever happened. Raises MismatchError for
    another model, SAE or schedule, ConfigError for a missing SAE or a site that is being edited
    already, UnknownName for a site that is not there.

        with unlearn(pipe, "plan/"):
            image = pipe("a pizza in neon style").images[0]
    """
    denoiser = denoiser_of(pipe)
    chosen = [_loaded(plan) for plan in _listed(plans)]
    for plan in chosen:
        plan.check(pipe, denoiser)
    changes = site_changes(pipe, denoiser, chosen, saes or {})
    with ExitStack() as stack:
        stack.enter_context(_claimed(denoiser, changes, chosen))
        for change in list(changes.values())[:1]:  # all have the same
            stack.enter_context(change.clock.following(denoiser))
            stack.enter_context(change.guided.following())
        for site, change in changes.items():
            stack.enter_context(edited(denoiser, site, change))
        text = [edit for plan in chosen for edit in plan.text]
        if text:
            stack.enter_context(steered(pipe, text))
        yield pipe


def removal_of(plans: Plans, saes: Mapping[str, SAE] | None = None) -> Removal:
    """Plans as a Removal, for the benchmark."""
    return lambda pipe: unlearn(pipe, plans, saes=saes)


def site_changes(
    pipe: Any, denoiser: nn.Module, plans: Iterable[Plan], saes: Mapping[str, SAE]
) -> dict[str, SiteChange]:
    """For each site the change that joins all edits there."""
    device = next(denoiser.parameters()).device
    clock, guided = Clock(denoiser), Guidance(pipe)
    by_site: dict[str, list[tuple[int, SiteEdit]]] = {}
    for i, plan in enumerate(plans):
        for edit in plan.edits:
            by_site.setdefault(edit.site, []).append((i, edit))
    changes = {}
    for site, some in by_site.items():
        owners, edits = zip(*some, strict=True)
        _check_half(denoiser, edits)
        if any(edit.readout is None or edit.saeuron_sign for edit in edits):
            for edit in edits:  # the whole SAE reads for all of them
                _check_sae(edit, saes.get(site))
        changes[site] = SiteChange(edits, clock, guided, saes.get(site), device, owners)
    return changes


def _listed(plans: Plans) -> Sequence[Plan | str | Path]:
    return [plans] if isinstance(plans, (Plan, str, Path)) else plans


def _loaded(plan: Plan | str | Path) -> Plan:
    return plan if isinstance(plan, Plan) else Plan.load(plan)


def _check_half(denoiser: nn.Module, edits: Sequence[Any]) -> None:
    """DiT's pipeline puts the conditional half first, and says nowhere whether there is another."""
    halves = {edit.half for edit in edits} - {"both"}
    if halves and kind_of(denoiser) == "DiTTransformer2DModel":
        raise ConfigError(
            f"the batches of a DiT's pipeline do not tell their halves; the plan at "
            f"{edits[0].site!r} edits {halves.pop()!r}, use half='both'"
        )


def _check_sae(edit: Any, sae: SAE | None) -> None:
    if sae is None:
        reason = (
            "add the SAE's error with the published sign"
            if edit.saeuron_sign
            else "compete with all others (an SAE here has no thresholds)"
        )
        raise ConfigError(
            f"the latents of the plan at {edit.site!r} {reason}: pass the SAE, "
            f"unlearn(pipe, plan, saes={{{edit.site!r}: sae}})"
        )
    if fingerprint(sae) != edit.sae:
        raise MismatchError(
            f"the SAE given for {edit.site!r} is {fingerprint(sae)}; the plan was made with "
            f"{edit.sae}"
        )


@contextmanager
def _claimed(denoiser: nn.Module, sites: Iterable[str], plans: Sequence[Plan]) -> Iterator[None]:
    """Note which sites are edited, so that a second `unlearn` cannot edit the same."""
    busy = _EDITED.setdefault(denoiser, {})
    for site in sites:
        if site in busy:
            raise ConfigError(
                f"site {site!r} is being edited already, to remove {busy[site]}; pass the plans "
                "together: unlearn(pipe, [plan, other])"
            )
    mine = dict.fromkeys(sites, ", ".join(plan.concept for plan in plans))
    busy.update(mine)
    try:
        yield
    finally:
        for site in mine:
            busy.pop(site, None)
