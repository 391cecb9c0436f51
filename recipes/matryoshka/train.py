"""One training for many sparsities and widths: settings that did well, and the usual call."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vision_sae.errors import ConfigError
from vision_sae.jobs import train_store
from vision_sae.sae import SAE
from vision_sae.store import Store
from vision_sae.stream import Stream

NESTINGS = ("k", "prefix", "random", "both")
KS = (4, 8, 16, 32)
SHARES = (1 / 16, 1 / 8, 1 / 4, 1 / 2)


def nested_settings(
    nest: str = "both",
    ks: Sequence[int] = KS,
    shares: Sequence[float] = SHARES,
    *,
    reversed: bool = False,
    own: bool = True,
) -> dict[str, Any]:
    """Settings of `vs.train_store` for a nested SAE; its family has as many latents as the last k.

    `ks` are active latents per row (of "k" and "both"; the largest is that of the others), `shares`
    prefixes of the dictionary, the whole being one in any case. `reversed` counts small k more
    (MSAE's RW). `own`: each k reads latents with a gain and a shift of its own, and its loss counts
    by its own size; without it there is one reading for all, and losses count alike, as in MSAE.
    Raises ConfigError.
    """
    if nest not in NESTINGS:
        raise ConfigError(f"nest is one of {', '.join(NESTINGS)}; got {nest!r}")
    if not ks:
        raise ConfigError("nesting over k needs at least one k; got none")
    weighting = "reversed" if reversed else "balanced" if own else "uniform"
    over_k = {"ks": tuple(sorted(set(ks))), "weighting": weighting, "own": own}
    settings: dict[str, Any] = {"k": max(ks), "nest": {"kind": nest}}
    if nest in ("k", "both"):
        settings["nest"] |= over_k
    if nest == "prefix":
        settings["nest"]["shares"] = (*sorted(set(shares) - {1.0}), 1.0)
    if nest == "both":
        settings["nest"]["shares"] = tuple(sorted(set(shares) - {1.0}))
    return settings


def train_nested(
    store: Store | Stream,
    out: Path | str,
    *,
    nest: str = "both",
    ks: Sequence[int] = KS,
    shares: Sequence[float] = SHARES,
    reversed: bool = False,
    own: bool | None = None,
    **settings: Any,
) -> SAE:
    """Train a nested SAE as `vs.train_store` does; other settings, of any kind, are that call's.

    Source: MSAE (Zaigrajew et al. 2025, arXiv 2502.20578) for nesting over k, Bussmann et al. 2025
    (arXiv 2503.17547) for prefixes, Nabeshima 2024 for random ones; `both` is ours, see
    `vision_sae.nest.Both`, and so is `own`, by default where the family is topk. Raises what
    `vs.train_store` does.
    """
    own = settings.get("family", "topk") == "topk" if own is None else own
    nested = nested_settings(nest, ks, shares, reversed=reversed, own=own)
    return train_store(store, out, **nested | settings)
