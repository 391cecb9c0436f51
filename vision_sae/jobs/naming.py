"""Name a store's latents with the model that it came from, and test the names."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from vision_sae import naming
from vision_sae.data import ImageSource
from vision_sae.errors import ConfigError, DataError
from vision_sae.jobs.looking import Tell, look, of, opened, some_pictures
from vision_sae.jobs.vocabularies import vocabulary_for
from vision_sae.matching import check_match, check_model
from vision_sae.measures import factors
from vision_sae.measures.latents import Scan
from vision_sae.model.adapter import Adapter, TextImageAdapter
from vision_sae.model.probing import probe_site
from vision_sae.naming import Directions, Explainer, Name, Naming, Seen, Vocabulary
from vision_sae.sae import SAE
from vision_sae.store import Store

THRESHOLD = 0.2  # cosine below which a latent is unnamed
CANDIDATES = 1
SPLICED = 4  # images that each atom is added to


@dataclass(frozen=True)
class NamingConfig:
    """How latents are named. Raises ConfigError for what is out of range.

    `auto` directions are the decoder's for an SAE on the model's own embeddings, else those of the
    `top` images. `centre` takes the means over images and over words off. Of `candidates` words of
    largest cosine the one is taken that best detects the latent's images (1: by cosine alone). A
    cosine below `threshold` makes a latent "unnamed". At most `held_out` images test the names.
    """

    directions: str = "auto"
    templates: tuple[str, ...] = naming.PLAIN
    centre: bool = True
    candidates: int = CANDIDATES
    threshold: float = THRESHOLD
    top: int = 20
    held_out: int = 2000

    def __post_init__(self) -> None:
        naming.check_templates(self.templates)
        if self.directions not in ("auto", *naming.WAYS):
            ways = ", ".join(("auto", *naming.WAYS))
            raise ConfigError(f"directions are one of {ways}; got {self.directions!r}")
        for name, least in (("candidates", 1), ("top", 1), ("held_out", 0)):
            if getattr(self, name) < least:
                raise ConfigError(f"{name} must be at least {least}; got {getattr(self, name)}")
        if not -1 <= self.threshold <= 1:
            raise ConfigError(f"the threshold is a cosine, -1 to 1; got {self.threshold}")


def name_sae(
    adapter: Adapter,
    store: Store,
    found: Scan,
    words: Sequence[str] | Vocabulary | None = None,
    *,
    sae: SAE | None = None,
    explainer: Explainer | None = None,
    test: ImageSource | None = None,
    config: NamingConfig | None = None,
    tell: Tell = lambda what, more, total: None,
) -> Naming:
    """A name for each live latent, and how it does as the latent's detector on held-out images.

    `words` are by default what the images are labelled with; an `explainer` looks at pictures
    instead, with the vocabulary's word as runner-up. Names are tested on images of `test`, or else
    on a fifth of the store's, which then chooses no name. `test` needs the `sae`, as do directions
    of the decoder and by splicing.

    Raises MismatchError for another model, DataError for one without text embeddings or a store
    without pictures, ConfigError for what needs the SAE and has none.
    """
    config = config or NamingConfig()
    model = _check(adapter, store, found, sae)
    vocabulary = vocabulary_for(words, store)
    named_on, tested_on = look(
        model, store, found, sae=sae, test=test, top=config.top, held_out=config.held_out, tell=tell
    )
    pointed = _directions(model, store, found, sae, named_on, config, tell)
    embed = partial(naming.embed_words, model, templates=config.templates)
    texts = embed(vocabulary.words, tell=of(tell, "embed words", len(vocabulary.words)))
    names = _named(pointed, vocabulary.words, texts, named_on, config)
    how = _how(vocabulary, pointed, named_on, tested_on, config)
    if explainer is not None:
        said = naming.explain_latents(
            explainer, named_on.codes, pointed.latents, partial(opened, store, named_on),
            tell=of(tell, "explain", len(pointed.latents)),
        )  # fmt: skip
        names = _explained(names, said, pointed, embed, texts, config)
        how["explained"] = len(said)
    names = _tested(names, tested_on, embed, texts, config)
    return Naming(_complete(_judged(names, store, found), found.live), how)


def _check(adapter: Adapter, store: Store, found: Scan, sae: SAE | None) -> TextImageAdapter:
    check_model(adapter, store)
    if sae is not None:
        check_match(sae, store)
    if not isinstance(adapter, TextImageAdapter):
        raise DataError(
            f"{adapter.name} has no text embeddings, so it cannot name latents"
            + ("; a report shows the prompts of each" if adapter.reads == "texts" else "")
        )
    if not found.live:
        raise DataError("no latent of this SAE ever fires, so there is nothing to name")
    return adapter


def _directions(
    model: TextImageAdapter,
    store: Store,
    found: Scan,
    sae: SAE | None,
    seen: Seen,
    config: NamingConfig,
    tell: Tell,
) -> Directions:
    """In the way that is asked for, or the one that the site allows."""
    where, live = store.index.provenance, seen.codes.live
    if config.directions == "images" or (config.directions == "auto" and sae is None):
        return naming.image_directions(
            seen.codes, seen.embeddings, top=config.top, centre=config.centre
        )
    if sae is None:
        raise ConfigError(f"directions from the {config.directions} need the SAE; pass sae=...")
    batch = model.prepare(some_pictures(store, seen, SPLICED))
    site = probe_site(model, where.site, batch[:1])
    if config.directions == "splice":
        usual = found.means[live].float()
        return naming.splice_directions(
            model, sae, site, where.tokens, usual, live, batch, tell=of(tell, "splice", len(live))
        )
    shared = sae.config.d_out is None and naming.in_shared_space(model, site, batch)
    if shared:
        return naming.decoder_directions(sae, live)
    if config.directions == "auto":
        return naming.image_directions(
            seen.codes, seen.embeddings, top=config.top, centre=config.centre
        )
    raise ConfigError(
        f"{where.site} does not give the embeddings of {model.name}, so that atoms are no "
        "directions among texts; use --directions images or splice"
    )


def _named(
    pointed: Directions,
    words: Sequence[str],
    texts: Float[Tensor, "v e"],
    seen: Seen,
    config: NamingConfig,
) -> list[Name]:
    centred = naming.centred(texts, texts.mean(0) if config.centre else None)
    chosen = None
    if config.candidates > 1:
        nearest = naming.nearest(pointed.vectors, centred, config.candidates)
        fires = naming.firing(seen.codes, pointed.latents)
        chosen = naming.best_detecting(nearest, centred, seen.embeddings, fires)
    return naming.name_latents(
        pointed.latents, pointed.vectors, words, texts,
        chosen=chosen, centre=config.centre, threshold=config.threshold,
    )  # fmt: skip


def _explained(
    names: list[Name],
    said: dict[int, str],
    pointed: Directions,
    embed: Callable[[list[str]], Tensor],
    texts: Float[Tensor, "v e"],
    config: NamingConfig,
) -> list[Name]:
    spoken = naming.explanation_texts(names, said, embed)
    spoken = naming.centred(spoken, texts.mean(0) if config.centre else None)
    scores = (spoken * pointed.vectors).sum(1)
    return naming.with_explanations(names, said, scores, config.threshold)


def _tested(
    names: list[Name],
    seen: Seen,
    embed: Callable[[list[str]], Tensor],
    texts: Float[Tensor, "v e"],
    config: NamingConfig,
) -> list[Name]:
    """What each name detects on images that chose none."""
    words = [name.word for name in names]
    unique = sorted(set(words))
    at = {word: i for i, word in enumerate(unique)}
    spoken = naming.centred(embed(unique), texts.mean(0) if config.centre else None)
    own = spoken[torch.tensor([at[word] for word in words])]
    fires = naming.firing(seen.codes, [name.latent for name in names])
    return naming.with_tests(names, naming.detect(own, seen.embeddings, fires))


def _judged(names: list[Name], store: Store, found: Scan) -> list[Name]:
    """Whether names are right by the labels of all images, which take no part in choosing them."""
    fires = naming.firing(found.codes, [name.latent for name in names])
    words = [name.word for name in names]
    return naming.with_known(names, naming.check_known(words, store.about, fires))


def _complete(names: list[Name], live: Sequence[int]) -> list[Name]:
    """A row for every live latent, also those that fire on held-out images only."""
    found = {name.latent: name for name in names}
    why = "it fires on none of the images that choose names"
    return [found.get(s) or Name(s, naming.UNNAMED, 0.0, "", 0.0, untested=why) for s in live]


def _how(
    vocabulary: Vocabulary, pointed: Directions, named_on: Seen, tested_on: Seen,
    config: NamingConfig,
) -> dict[str, Any]:  # fmt: skip
    return {
        "vocabulary": vocabulary.source,
        "words": len(vocabulary.words),
        "left out": vocabulary.left_out(),
        "templates": list(config.templates),
        "directions": pointed.way,
        "centred": config.centre,
        "candidates": config.candidates,
        "threshold": config.threshold,
        "named on": named_on.what,
        "tested on": tested_on.what,
        "images that could not be read": list(tested_on.skipped),
    }


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
