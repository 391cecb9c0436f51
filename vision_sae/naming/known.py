"""Is a name right? What the images are known to show, against the name's words."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from vision_sae.naming.detection import LEAST

NO_WORDS = frozenset({"caption", "emoji", "held_out", "key", "seed", "guidance"})
HALF = 0.5
Verdict = Literal["right", "narrow", "wrong"]


@dataclass(frozen=True)
class Known:
    """Whether the images that a latent fires on are known to show what its name says.

    `carried` is the share of them that carry the name, `found` the share of those that carry it on
    which the latent fires: precision and recall. None, when fewer than LEAST images carry the name,
    or when the latent fires on fewer. The name is `right` when at least half carry it; else it is
    `narrow`, and says a part of what the latent sees, when at least half are found.
    """

    carried: float | None
    found: float | None

    @property
    def verdict(self) -> Verdict | None:
        if self.carried is None or self.found is None:
            return None
        if self.carried >= HALF:
            return "right"
        return "narrow" if self.found >= HALF else "wrong"


def carriers(
    about: Sequence[dict[str, Any]], words: Sequence[str]
) -> dict[str, Int[Tensor, " images"]]:
    """For each word the images whose facts hold it, as a whole value or as words within one.

    Facts are all labels but captions; case, hyphens and underscores do not count: an image of
    category "animals-nature" named "clapping hands" carries "hands", "clapping hands" and "nature".
    """
    found: dict[str, list[int]] = {_plain(word): [] for word in words}
    for image, known in enumerate(about):
        for phrase in {phrase for phrase in _phrases(known) if phrase in found}:
            found[phrase].append(image)
    return {word: torch.tensor(found[_plain(word)]).long() for word in words}


def check_known(
    words: Sequence[str], about: Sequence[dict[str, Any]], fires: Float[Tensor, "l images"]
) -> list[Known]:
    """Each latent's own word against what its images carry. `fires` is sparse, of ones."""
    carried = carriers(about, sorted(set(words)))
    fires = fires.coalesce()
    row, column = fires.indices()
    found = []
    for latent, word in enumerate(words):
        images = column[row == latent]
        if min(len(carried[word]), len(images)) < LEAST:
            found.append(Known(None, None))
            continue
        both = int(torch.isin(images, carried[word]).sum())
        found.append(Known(both / len(images), both / len(carried[word])))
    return found


def _plain(text: str) -> str:
    return " ".join(re.findall(r"\w+", text.lower().replace("_", " ")))


def _phrases(known: dict[str, Any]) -> Iterator[str]:
    """Every run of words within every value."""
    for key, value in known.items():
        if key in NO_WORDS:
            continue
        for one in value if isinstance(value, list) else [value]:
            parts = _plain(str(one)).split()
            for start in range(len(parts)):
                for end in range(start + 1, len(parts) + 1):
                    yield " ".join(parts[start:end])
