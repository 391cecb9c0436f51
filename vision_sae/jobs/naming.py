"""Name a store's latents with the model that it came from, and test them on known factors."""

from collections.abc import Callable, Sequence

from vision_sae import naming
from vision_sae.errors import DataError
from vision_sae.jobs.pictures import embed_images
from vision_sae.matching import check_model
from vision_sae.measures import factors
from vision_sae.measures.latents import Scan
from vision_sae.model.adapter import Adapter, TextImageAdapter
from vision_sae.store import Store


def name_sae(
    adapter: Adapter,
    store: Store,
    found: Scan,
    words: Sequence[str] | None = None,
    *,
    top: int = 20,
    tell: Callable[[int], None] = lambda images: None,
) -> list[naming.Name]:
    """A name for each live latent, from `words` or else the names that the images carry.

    Raises MismatchError for another model, DataError for one without text embeddings.
    """
    check_model(adapter, store)
    if not isinstance(adapter, TextImageAdapter):
        raise DataError(
            f"{adapter.name} has no text embeddings, so it cannot name latents"
            + ("; a report shows the prompts of each" if adapter.reads == "texts" else "")
        )
    images = naming.top_images(found.codes, top)
    if not images:
        raise DataError("no latent of this SAE ever fires, so there is nothing to name")
    words = list(words or known_names(store))
    embedded = embed_images(adapter, store, images, tell)
    live, directions = naming.latent_directions(found.codes, embedded, top)
    return naming.name_latents(live, directions, words, adapter.embed_texts(words).cpu())


def detect_factors(store: Store, found: Scan) -> list[factors.Detection]:
    """Each live latent against the known factors of the store's images; empty without factors.

    A prompt's seed and guidance are none.
    """
    apart = {"seed", "guidance"} if any("prompt" in known for known in store.about) else set()
    about = [{k: v for k, v in known.items() if k not in apart} for known in store.about]
    labels = factors.labels_of(about)
    if not labels.names:
        return []
    return factors.detections(found.codes, labels, factors.folds(store.keys))


def known_names(store: Store) -> list[str]:
    """The names of the store's images, as a vocabulary. Raises DataError when they have none."""
    names = {str(a[k]) for a in store.about for k in ("name", "label") if k in a}
    if len(names) < 2:
        raise DataError("the images carry no names to choose from; pass --vocabulary words.txt")
    return sorted(names)
