"""Explainers: whoever looks at a latent's strongest pictures and says in words what they share.

Another package offers one by an entry point in the group `vision_sae.explainers`: a callable that
takes what stands behind the colon of `--explainer NAME:ARGUMENT` and gives an `Explainer`, for
example a vision-language model behind a local server.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from vision_sae import plugins
from vision_sae.errors import DataError
from vision_sae.measures.latents import ImageCodes
from vision_sae.naming.names import UNNAMED, Name

AT_ONCE = 64  # latents whose pictures are in memory together

# (PIL pictures of one latent, strongest first; its activations) -> a name or a short explanation of
# what they have in common, "" when there is none
Explainer = Callable[[Sequence[Any], Sequence[float]], str]


def load_explainer(spec: str) -> Explainer:
    """An explainer by name, as in `blip:large`. Raises UnknownName."""
    name, _, argument = spec.partition(":")
    explainer: Explainer = plugins.load(plugins.EXPLAINERS, name)(argument)
    return explainer


def explain_latents(
    explainer: Explainer,
    codes: ImageCodes,
    latents: Sequence[int],
    open_pictures: Callable[[list[int]], Iterator[tuple[int, Any]]],
    *,
    top: int = 9,
    tell: Callable[[int], None] = lambda latents: None,
) -> dict[int, str]:
    """Each latent's explanation, from its `top` strongest images; those without one are left out.

    `open_pictures` gives (image, PIL picture) for some images. Raises DataError for an explainer
    that gives something else than a text.
    """
    found = {}
    for start in range(0, len(latents), AT_ONCE):
        some = latents[start : start + AT_ONCE]
        strongest = {s: [part[:top].tolist() for part in codes.of(s)] for s in some}
        wanted = sorted({i for images, _ in strongest.values() for i in images})
        opened = dict(open_pictures(wanted))
        for latent, (images, values) in strongest.items():
            said = explainer([opened[i] for i in images], values)
            if not isinstance(said, str):
                raise DataError(f"the explainer gave {type(said).__name__}, not a text: {said!r}")
            if said.strip():
                found[latent] = " ".join(said.split())
            tell(1)
    return found


def with_explanations(
    names: Sequence[Name],
    explained: dict[int, str],
    scores: Float[Tensor, " l"],
    threshold: float = -1.0,
) -> list[Name]:
    """Explanations in place of the vocabulary's words, which become the runners-up.

    `scores` are the explanations' own cosines with the directions, NaN without one. The margin is
    negative where the vocabulary's word lies nearer; a latent without an explanation is "unnamed".
    """
    return [
        _explained(name, explained.get(name.latent, ""), score, threshold)
        for name, score in zip(names, scores.tolist(), strict=True)
    ]


def _explained(name: Name, said: str, score: float, threshold: float) -> Name:
    if not said:
        return replace(name, name=UNNAMED)
    shown = said if score >= threshold else UNNAMED
    return Name(name.latent, shown, score, name.word, score - name.score, said)


def explanation_texts(
    names: Sequence[Name], explained: dict[int, str], embed: Callable[[list[str]], Tensor]
) -> Float[Tensor, "l e"]:
    """Each latent's explanation in the shared space, NaN without one."""
    said = [explained.get(name.latent, "") for name in names]
    unique = sorted({text for text in said if text})
    if not unique:
        raise DataError("the explainer explained none of the latents")
    texts = embed(unique)
    at = {text: i for i, text in enumerate(unique)}
    nothing = torch.full_like(texts[0], torch.nan)
    return torch.stack([texts[at[text]] if text else nothing for text in said])
