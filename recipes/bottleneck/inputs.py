"""What the options of `vision-sae bottleneck` name: concepts of data, labels, bottlenecks."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from vision_sae.cli import show
from vision_sae.data import open_data
from vision_sae.errors import ConfigError, DataError, UnknownName
from vision_sae.model.adapter import Adapter, TextImageAdapter, load_adapter
from vision_sae.recipes.bottleneck.concepts import (
    Concepts,
    Pool,
    Reader,
    concepts_of_images,
    concepts_of_store,
    readers,
)
from vision_sae.recipes.bottleneck.edit import Change
from vision_sae.recipes.bottleneck.estimator import Bottleneck
from vision_sae.recipes.bottleneck.files import load
from vision_sae.recipes.bottleneck.names import Likeness, like, names_of
from vision_sae.store import Store


class Rows(NamedTuple):
    """Images whose concepts are wanted: data through a model, or a store."""

    data: str | None
    model: str | None = None
    acts: Path | None = None
    batch_size: int = 64


def concepts_for(rows: Rows, saes: Sequence[Reader], pool: Pool) -> Concepts:
    """Raises ConfigError for neither or both of data and store, and what reading raises."""
    if (rows.data is None) == (rows.acts is None):
        raise ConfigError("name the images by --data (with --model), or a store of them by --acts")
    if rows.acts is not None:
        if len(saes) != 1:
            raise ConfigError(f"a store is of one site and has one SAE; got {len(saes)}")
        store = Store(rows.acts)
        with show.progress("concepts", store.images, "images") as advance:
            found = concepts_of_store(saes[0], store, pool=pool, tell=lambda n: advance(n, ""))
    else:
        if rows.model is None:
            raise ConfigError("which model reads the images? name it by --model")
        adapter, source = load_adapter(rows.model), open_data(str(rows.data))
        with show.progress("concepts", len(source), "images") as advance:
            found = concepts_of_images(
                adapter, source, saes, pool=pool, batch_size=rows.batch_size,
                tell=lambda n: advance(n, ""),
            )  # fmt: skip
    tell_left_out(found)
    return found


def tell_left_out(found: Concepts) -> None:
    """Images that could not be read, and those on which nothing is active."""
    if found.skipped:
        _warn(f"{len(found.skipped)} unreadable images were skipped", found.skipped)
    if found.blank:
        keys = [found.keys[i] for i in found.blank]
        _warn(f"{len(keys)} images have no active concept: the intercept alone decides", keys)


def _warn(text: str, names: Sequence[str]) -> None:
    show.console.print(f"warning: {text}:", style="yellow")
    for name in names[:5]:
        show.console.print(f"  {name}")


def model_of(cbm: Bottleneck, given: str | None = None) -> str:
    """The model that a bottleneck's SAEs were trained on. Raises ConfigError."""
    known = [part.provenance.model for part in cbm.parts_ if part.provenance]
    if given is None and not known:
        raise ConfigError("the bottleneck does not say which model it reads: name it by --model")
    return given or known[0]


def readers_of(cbm: Bottleneck, saes: Sequence[Path] = ()) -> list[Reader]:
    """A bottleneck's SAEs, from where they were or from folders in their place."""
    folders = [Path(part.sae) for part in cbm.parts_] if not saes else list(saes)
    gone = [str(folder) for folder in folders if not folder.exists()]
    if gone or not folders:
        raise DataError(
            f"the bottleneck's SAE is not there: {', '.join(gone) or 'none is recorded'}; "
            "say where it is by --sae"
        )
    return readers(folders)


def opened(folder: Path) -> Bottleneck:
    """A saved bottleneck, with the names that its SAEs have by now. Raises CheckpointError."""
    cbm = load(folder)
    cbm.names_ = {**cbm.names_, **names_of(cbm.parts_)}
    return cbm


def concepts_of(cbm: Bottleneck, rows: Rows, saes: Sequence[Path] = ()) -> Concepts:
    """The concepts that a bottleneck reads, of other images."""
    if not cbm.parts_:
        raise ConfigError("this bottleneck was fitted on bare codes and reads no images")
    if rows.acts is None:
        rows = rows._replace(model=model_of(cbm, rows.model))
    return concepts_for(rows, readers_of(cbm, saes), cbm.parts_[0].pool)


def images_named(found: Concepts, keys: Sequence[str]) -> Concepts:
    """Some images, by key. Raises UnknownName."""
    number = {key: i for i, key in enumerate(found.keys)}
    for key in keys:
        if key not in number:
            raise UnknownName("image", key, found.keys)
    return found.take([number[key] for key in keys])


def changes_of(sets: Sequence[str], scales: Sequence[str]) -> dict[str | int, Change]:
    """CONCEPT=NUMBER texts. Raises ConfigError."""
    found: dict[str | int, Change] = {}
    for option, texts in (("--set", sets), ("--scale", scales)):
        for text in texts:
            name, equals, value = text.rpartition("=")
            try:
                number = float(value)
            except ValueError:
                number = float("nan")
            if not equals or number != number:
                raise ConfigError(f"{option} takes CONCEPT=NUMBER, as 'grass=0'; got {text!r}")
            found[name] = Change(to=number) if option == "--set" else Change(times=number)
    return found


def concepts_like(cbm: Bottleneck, adapter: Adapter, text: str, least: float) -> list[Likeness]:
    """Concepts in use whose name means something like a text.

    Raises DataError for a model without texts, UnknownName where no name comes near.
    """
    if not isinstance(adapter, TextImageAdapter):
        raise DataError(f"{adapter.name} embeds no texts: ask for concepts by name or number")
    named = cbm.find.used_named
    words = sorted({cbm.names_[i] for i in named})
    if not words:
        raise UnknownName("concept like", text, [])
    embedded = adapter.embed_texts([text, *words]).cpu()
    number = {word: i for i, word in enumerate(words)}
    directions = embedded[1:][[number[cbm.names_[i]] for i in named]]
    names: dict[int, str] = {place: cbm.names_[i] for place, i in enumerate(named)}
    near = like(embedded[0], directions, names, least=-1.0, top=len(named))
    found = [one._replace(concept=named[one.concept]) for one in near if one.cosine >= least]
    if not found:
        best = ", ".join(f"{one.name} ({one.cosine:.2f})" for one in near[:5])
        raise UnknownName("concept", f"like {text} (cosine of {least:g} or more)", [best])
    return found


def right_of(cbm: Bottleneck, said: Sequence[Any], true: Sequence[Any]) -> list[bool]:
    """Which predictions hold."""
    several = cbm.head_.several
    return [
        set(map(str, a)) == set(map(str, b)) if several else str(a) == str(b)
        for a, b in zip(said, true, strict=True)
    ]
