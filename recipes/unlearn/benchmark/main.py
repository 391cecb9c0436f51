"""The whole benchmark in one call, which the command line and benchmarks/unlearn.py share."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from vision_sae.errors import UnknownName
from vision_sae.files import write_bytes
from vision_sae.recipes.unlearn.benchmark.adversary import Attack
from vision_sae.recipes.unlearn.benchmark.page import write_page
from vision_sae.recipes.unlearn.benchmark.run import QUICK, Cell, Counts, Plans, Tell, run
from vision_sae.recipes.unlearn.benchmark.saes import forget_activations, saes_of
from vision_sae.recipes.unlearn.benchmark.tables import markdown, took
from vision_sae.recipes.unlearn.benchmark.world import emoji_world
from vision_sae.recipes.unlearn.methods import ATTACKED, all_methods, limits
from vision_sae.recipes.unlearn.removal import Method

QUICK_METHODS = ("sae", "negative prompt", "difference of means", "sae, latents edited")
Made = Mapping[str, Callable[[], Method]]


def evaluate(
    out: str | Path,
    *,
    quick: bool = False,
    concepts: Sequence[str] = (),
    methods: Sequence[str] = (),
    split: str = "test",
    sae_seeds: Sequence[int] = (),
    more: Made | None = None,
    tell: Tell = lambda line: None,
) -> list[Cell]:
    """Measure methods on emoji-diffusion's concepts; results as cells, results.md, index.html.

    All concepts and methods by default, with SAEs of seeds 0, 1, 2 (run.py counts what that takes).
    `quick`: four concepts, few methods and pictures, plans from half the prompts. `more` are
    methods of your own by name. What is in `out` is not measured again. Raises UnknownName for a
    concept or method.
    """
    out, world = Path(out), emoji_world()
    seeds = sae_seeds or ((0,) if quick else (0, 1, 2))
    saes = {seed: partial(saes_of, seed, out / "saes", tell) for seed in seeds}
    more = more or {}
    known = {**all_methods(world.pipe, saes, per_pair=2 if quick else 4), **more}
    chosen = _chosen(known, methods, quick, tuple(more))
    asked = list(concepts or (ATTACKED if quick else world.concepts))
    cells = run(
        world, chosen, asked, split, out, limits=limits(asked), tell=tell,
        counts=QUICK if quick else Counts(), plans=plans_of(quick, asked),
    )  # fmt: skip
    forget_activations(out / "saes")
    write_bytes(out / "results.md", markdown(cells).encode())
    write_page(cells, out)
    tell(took(cells))
    return cells


def plans_of(quick: bool, concepts: Sequence[str]) -> Plans:
    """Sets of 2, 5 and half of all, each in the next; attacks on two objects, two styles."""
    if quick:
        attack = Attack(steps=20, images=4)
        return Plans(attacks=tuple(concepts[:1]), sizes=(2,) * (len(concepts) > 2), attack=attack)
    attacked = tuple(c for c in ATTACKED if c in concepts) or tuple(concepts[:4])
    sizes = {size for size in (2, 5, len(concepts) // 2) if 1 < size < len(concepts)}
    return Plans(attacks=attacked, sizes=tuple(sorted(sizes)))


def _chosen(known: Made, wanted: Sequence[str], quick: bool, more: Sequence[str]) -> dict[str, Any]:
    """Wanted ones by name, "sae" being "sae@" of every seed. Raises UnknownName."""
    plain = {name.partition("@")[0] for name in known}
    for name in wanted:
        if name not in plain and name not in known:
            raise UnknownName("method", name, sorted(plain))
    if wanted:
        return {n: m for n, m in known.items() if {n, n.partition("@")[0]} & set(wanted)}
    quickly = (*QUICK_METHODS, *more)
    return {n: m for n, m in known.items() if not quick or n.partition("@")[0] in quickly}
