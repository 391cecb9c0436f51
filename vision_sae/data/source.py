"""Where images and prompts come from: an ordered, repeatable stream of items, opened when asked."""

import os
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol, runtime_checkable

from vision_sae import plugins
from vision_sae.errors import DataError, UnknownName

Gives = Literal["images", "texts"]


class Item(NamedTuple):
    """One image or prompt, not yet decoded.

    `open` gives an RGB PIL image or a Prompt, as its source says, or raises DataError.
    """

    key: str
    about: dict[str, Any]
    open: Callable[[], Any]


@runtime_checkable
class ImageSource(Protocol):
    """An ordered stream of images or of texts; two passes give the same items in the same order.

    `name` is the text that `open_data` turns into this source again; `gives` says what items open
    to. A source with random access gets all but three lines from data/indexed.py: IndexedSource.
    """

    name: str

    def __len__(self) -> int: ...

    def items(self, start: int = 0) -> Iterator[Item]:
        """Items from position `start` on, without decoding the ones before."""
        ...

    if TYPE_CHECKING:  # not asked of a plugin's source at run time: it gives images, in its order
        gives: Gives

        def reordered(self, seed: int) -> "ImageSource":
            """The same items in an order drawn from `seed`; of shards, the shards in that order."""
            ...


def open_data(spec: str, *, commands: bool = True) -> ImageSource:
    """A data set by name, a folder, shards, or a file of prompts.

    Names: `emoji-canvas:test` and other plugins; `torchvision:CIFAR10?root=DIR&split=test`;
    `hf:PATH?split=train`. Folders: of images, or of one folder of images per class. Shards:
    `shards/{000..009}.tar`, `https://...`, `pipe:...`. Prompts: .csv, .tsv, .jsonl, .txt.
    `shuffled:7:SPEC` is SPEC in the order of seed 7. A data set's name wins over a folder of the
    same name, which is then `./name`. A `pipe:` runs a command: pass `commands=False` for a spec
    that the user has not written. Raises DataError, UnknownName, or what the plugin raises.
    """
    name, _, argument = spec.partition(":")
    if name == "shuffled":
        return _shuffled(argument, commands)
    if name == "pipe" and not commands:
        raise DataError(
            f"{spec!r} runs a command, and was not typed by you here; give it as --data"
        )
    if name in plugins.names(plugins.DATA):
        source: ImageSource = plugins.load(plugins.DATA, name)(argument)
        return source
    return _files(spec) if (found := _built_in(name, argument)) is None else found


def _shuffled(argument: str, commands: bool) -> ImageSource:
    seed, colon, spec = argument.partition(":")
    if not colon or not seed.isdecimal():
        raise DataError(f"shuffled:{argument} must be shuffled:SEED:DATA, as in shuffled:7:photos")
    source = open_data(spec, commands=commands)
    if not hasattr(source, "reordered"):
        raise DataError(f"{source.name} has no other order: its source has no `reordered`")
    return source.reordered(int(seed))


# these import inside: their modules import Item from this one


def _built_in(name: str, argument: str) -> ImageSource | None:
    if name == "torchvision":
        from vision_sae.data.torchvision_sets import TorchvisionSource

        return TorchvisionSource(argument)
    if name == "hf" and not argument.startswith("//"):
        from vision_sae.data.hf import open_hf

        return open_hf(argument)
    return None


def _files(spec: str) -> ImageSource:
    from vision_sae.data import prompts, shards
    from vision_sae.data.folder import FolderSource
    from vision_sae.data.streams import is_stream

    if os.path.isdir(os.path.expanduser(spec)):
        return FolderSource(spec)
    if is_stream(spec) or spec.lower().endswith(shards.ENDINGS):
        return shards.ShardSource(spec)
    if spec.lower().endswith(prompts.ENDINGS):
        return prompts.PromptSource(spec)
    name, names = spec.partition(":")[0], [*plugins.names(plugins.DATA), "torchvision", "hf"]
    raise DataError(
        f"{spec!r} is neither a data set's name, nor a folder of images, nor a folder with a "
        f"sub-folder of images per class, nor WebDataset shards ({', '.join(shards.ENDINGS)}), nor "
        f"prompts ({', '.join(prompts.ENDINGS)}): {UnknownName('data set', name, names)}"
    )
