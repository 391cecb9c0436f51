"""Heat per patch for every (latent, image) that a report shows."""

from collections.abc import Callable, Iterable
from itertools import islice
from typing import Any

import torch

from vision_sae.jobs.pictures import pictures
from vision_sae.matching import check_model
from vision_sae.model.adapter import Adapter
from vision_sae.model.attribution import BlockInputs
from vision_sae.model.hooks import evaluation, inference
from vision_sae.model.probing import probe_site
from vision_sae.model.sites import Site
from vision_sae.sae import SAE
from vision_sae.store import Store

Heats = dict[tuple[int, int], list[list[float]]]  # (latent, image) -> rows of patches
Wanted = dict[int, dict[int, float]]  # image -> latent -> its activation there
Tell = Callable[[int], None]
PAIRS = 256  # (latent, image) pairs per backward pass


def of_patches(sae: SAE, store: Store, wanted: Wanted, tell: Tell) -> Heats:
    """The latent's own activation on each patch; one encoding per image."""
    grid, prefix = store.index.grid, store.index.prefix_tokens
    heats: Heats = {}
    if grid is None:
        return heats
    order = sorted(wanted)
    with inference(sae):
        for start in range(0, len(order), 128):
            ids = order[start : start + 128]
            acts = store.acts(ids)[:, prefix:]
            dense = sae.encode(acts).to_dense().view(len(ids), -1, sae.config.s)  # [i patches s]
            for row, image in enumerate(ids):
                maps = dense[row][:, list(wanted[image])].T.reshape(-1, *grid).tolist()
                heats |= {(s, image): heat for s, heat in zip(wanted[image], maps, strict=True)}
            tell(len(ids))
    return heats


def of_class_token(adapter: Adapter, sae: SAE, store: Store, wanted: Wanted, tell: Tell) -> Heats:
    """What each patch contributes to the class token's latent, see `of_pictures`.

    Raises MismatchError for another model.
    """
    check_model(adapter, store)
    shown = pictures(store, sorted(wanted))
    return of_pictures(adapter, sae, store.index.provenance.site, shown, wanted, tell)


def of_pictures(
    adapter: Adapter,
    sae: SAE,
    place: str,
    shown: Iterable[tuple[int, Any]],
    wanted: Wanted,
    tell: Tell = lambda images: None,
) -> Heats:
    """What each patch of some (image, picture) contributes, through the block at the site `place`,
    to the class token's latent.

    Positive contributions, scaled so that an image's largest patch shows the latent's activation.
    """
    heats: Heats = {}
    pairs, site = iter(shown), None
    with evaluation(adapter.model):
        while group := list(islice(pairs, 64)):
            batch = adapter.prepare([picture for _, picture in group])
            site = site or probe_site(adapter, place, batch[:1])
            if site.grid is None:
                return {}
            heats |= _of_batch(BlockInputs(adapter, site, batch), sae, site, group, wanted)
            tell(len(group))
    return heats


def _of_batch(
    block: BlockInputs, sae: SAE, site: Site, group: list[tuple[int, Any]], wanted: Wanted
) -> Heats:
    pairs = [(row, image, s) for row, (image, _) in enumerate(group) for s in wanted[image]]
    heats: Heats = {}
    for start in range(0, len(pairs), PAIRS):
        part = pairs[start : start + PAIRS]
        rows, latents = torch.tensor([p[0] for p in part]), torch.tensor([p[2] for p in part])
        heat = block.contributions(sae, rows, latents)[:, site.prefix :].relu()
        value = torch.tensor([wanted[image][s] for _, image, s in part])
        heat = heat * (value / heat.amax(1).clamp(min=1e-12))[:, None]
        maps = heat.view(len(part), *(site.grid or ())).tolist()
        heats |= {(s, image): one for (_, image, s), one in zip(part, maps, strict=True)}
    return heats
