"""Extract the sites that a command names: one to a store, several to a folder of stores."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vision_sae.data import ImageSource
from vision_sae.errors import ConfigError, claim_folder
from vision_sae.extract import extract_sites
from vision_sae.files import write_json
from vision_sae.model.adapter import Adapter
from vision_sae.parallel import ALONE, Group
from vision_sae.store import StoreIndex
from vision_sae.store.reader import SITES


def extract_to(
    adapter: Adapter,
    source: ImageSource,
    sites: Sequence[str],
    out: Path | str,
    *,
    group: Group = ALONE,
    overwrite: bool = False,
    **options: Any,
) -> dict[str, StoreIndex]:
    """One forward pass for all sites; options are those of `vision_sae.extract.extract_sites`.

    A single site's store is `out` itself; several have theirs in `out/SITE`, listed in
    out/sites.json. Raises ConfigError for no site or the same one twice.
    """
    out, options = Path(out), {**options, "group": group, "overwrite": overwrite}
    if not sites or len(set(sites)) < len(sites):
        raise ConfigError(f"name one or more sites, each once; got {', '.join(sites) or 'none'}")
    if len(sites) == 1:
        return extract_sites(adapter, source, {sites[0]: out}, **options)
    names = {site: folder_of(site) for site in sites}
    if group.rank == 0:
        claim_folder(out, SITES, overwrite=overwrite)
        write_json(out / SITES, {"sites": names})
    return extract_sites(adapter, source, {s: out / n for s, n in names.items()}, **options)


def folder_of(site: str) -> str:
    """A site's name as a folder's: without colons and brackets, which some systems forbid."""
    return site.replace(":", "@").replace("[", "(").replace("]", ")")
