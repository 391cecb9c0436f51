"""A nested SAE at one sparsity and width, as a dictionary that every measure reads."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from vision_sae import nest
from vision_sae.errors import ConfigError
from vision_sae.matching import check_match
from vision_sae.model.hooks import inference
from vision_sae.sae import SAE, Output
from vision_sae.sparse.codes import Codes, Support
from vision_sae.store import Store

IMAGES = 256  # that are encoded at a time


@dataclass(frozen=True, eq=False)
class Level:
    """An SAE that encodes with this k and this prefix; None is what it does by itself.

    Raises ConfigError for a k or prefix that the SAE was not trained for.
    """

    sae: SAE
    k: int | None = None
    prefix: int | None = None

    def __post_init__(self) -> None:
        nest.check(self.sae.config.nest, self.sae.config.s, self.k, self.prefix)

    @property
    def W_dec(self) -> Float[Tensor, "s d"]:
        return self.sae.W_dec

    def encode(self, x: Float[Tensor, "*n d"]) -> Codes:
        return self.sae.encode(x, k=self.k, prefix=self.prefix)

    def decode(self, codes: Codes) -> Float[Tensor, "n d"]:
        return self.sae.decode(codes)

    def __call__(self, x: Float[Tensor, "*n d"]) -> Output:
        """Codes and the reconstruction, in the units of x."""
        codes = self.encode(x)
        treated = self.sae.treated(x)
        return Output(codes, treated.undo(self.decode(codes) + self.sae.skipped(treated.rows)))


def sparsities_of(sae: SAE) -> list[int]:
    """The numbers of latents that an SAE was nested over; empty where it was not."""
    settings = sae.config.nest
    return sorted(set(settings.ks)) if isinstance(settings, nest.Ks) else []


def prefixes_of(sae: SAE) -> list[int]:
    """The prefixes that an SAE was nested over, the whole among them; powers of two of random ones.

    Empty where it was not nested over prefixes.
    """
    settings, s = sae.config.nest, sae.config.s
    if isinstance(settings, (nest.Prefixes, nest.Both)):
        return settings.bounds(s)
    if isinstance(settings, nest.RandomPrefixes):
        return sorted({max(1, s // 2**i) for i in range(6)})
    return []


def needs_levels(sae: SAE) -> list[int]:
    """`prefixes_of`, at least two. Raises ConfigError for an SAE without levels."""
    found = prefixes_of(sae)
    if len(found) < 2:
        raise ConfigError(
            "this SAE was not nested over prefixes, so it has no levels; train one with "
            "`vision-sae matryoshka --nest prefix` or `--nest both`"
        )
    return found


def prefix_codes(
    sae: SAE,
    store: Store,
    bounds: Sequence[int],
    tell: Callable[[int], None] = lambda images: None,
    *,
    k: int | None = None,
) -> list[Codes]:
    """A store's codes by each prefix at one k, active entries only.

    Raises MismatchError, and ConfigError for a k that the SAE was not trained for.
    """
    check_match(sae, store)
    levels = [Level(sae, k, bound) for bound in bounds]
    parts: list[list[Codes]] = [[] for _ in levels]
    with inference(sae):
        for acts in store.in_order(IMAGES):
            x = acts.flatten(0, 1)
            for level, own in zip(levels, parts, strict=True):
                own.append(level.encode(x).without_zeros())
            tell(len(acts))
    return [Codes.joined(own) for own in parts]


def own_codes(codes: Sequence[Codes], bounds: Sequence[int]) -> Codes:
    """Of each latent the codes by the smallest prefix that holds it.

    There it is not yet rivalled by the finer latents of later levels, which may absorb what it
    sees.
    """
    parts, start = [], 0
    for one, bound in zip(codes, bounds, strict=True):
        kept = ((one.indices >= start) & (one.indices < bound)).nonzero()[:, 0]
        parts.append((one.rows[kept], one.indices[kept], one.values[kept]))
        start = bound
    rows, indices, values = (torch.cat(part) for part in zip(*parts, strict=True))
    rows, order = rows.sort(stable=True)
    support = Support.of_rows(rows, indices[order], len(codes[0]), codes[0].width)
    return Codes(values[order], support)
