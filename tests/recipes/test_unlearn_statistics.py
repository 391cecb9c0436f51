"""Statistics of concepts, against a slow twin that keeps every code of every prompt."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from vision_sae.data.prompts import Prompt
from vision_sae.errors import CheckpointError, ConfigError, DataError, UnknownName
from vision_sae.recipes.unlearn.prompts import Labelled
from vision_sae.recipes.unlearn.statistics import Statistics, collect, pooled
from vision_sae.sae import SAE, SAEConfig

pytest.importorskip("diffusers")
pytest.importorskip("transformers")

sys.path.append(str(Path(__file__).parents[1] / "adapters"))
from diffusers_models import pipeline

from vision_sae.adapters.diffusion import TrajectoryAdapter

pytestmark = pytest.mark.filterwarnings("ignore:__array_.*:DeprecationWarning")
MODULES = ("mid_block.attentions.0", "up_blocks.0.attentions.0")
SITES = tuple(f"{module}:update" for module in MODULES)
D, STEPS = 16, 3
PAIRS = [("a", "x"), ("a", ""), ("b", "x"), ("b", ""), ("c", "x")]
PROMPTS = [
    Labelled(Prompt(f"{o} {s}".strip(), seed), {"object": o, "style": s})
    for seed, (o, s) in enumerate(PAIRS)
]


def sae_of(family: str = "relu", seed: int = 0, **options: Any) -> SAE:
    return SAE(SAEConfig.of(D, 2 * D, family, **options), seed=seed).eval()


SAES = {SITES[0]: sae_of(), SITES[1]: sae_of("topk", seed=1, k=4)}


def adapter_of(half: str = "cond") -> TrajectoryAdapter:
    return TrajectoryAdapter(pipeline("sd"), steps=STEPS, guidance=3.0, half=half, name="tiny")


@contextmanager
def noted(module: Any, found: list[Tensor]) -> Iterator[None]:
    def note(module: Any, args: Any, output: Any) -> None:
        found.append((output[0] - args[0]).detach().clone())

    handle = module.register_forward_hook(note)
    try:
        yield
    finally:
        handle.remove()


@torch.no_grad()
def twin(adapter: TrajectoryAdapter, module: str, sae: SAE) -> Tensor:
    """Every code of every prompt, [n T t s], one prompt and one call at a time."""
    prompts = []
    for row in PROMPTS:
        calls: list[Tensor] = []
        with noted(adapter.model.get_submodule(module), calls):
            adapter.run(adapter.prepare([row.prompt]))
        of_half = [call[0 if adapter.half == "uncond" else 1] for call in calls]
        rows = [half.flatten(1).T for half in of_half]
        prompts.append(torch.stack([sae.encode(x).to_dense() for x in rows]))
    return torch.stack(prompts)


@pytest.fixture(scope="module")
def statistics() -> dict[str, Statistics]:
    return collect(adapter_of(), SAES, PROMPTS, batch_size=2)


@pytest.fixture(scope="module")
def dense() -> dict[str, Tensor]:
    adapter = adapter_of()
    return {s: twin(adapter, m, SAES[s]) for s, m in zip(SITES, MODULES, strict=True)}


def chosen(factor: str, value: str) -> list[int]:
    return [i for i, row in enumerate(PROMPTS) if row.labels[factor] == value]


def close(found: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-3)


def test_what_they_are_of(statistics: dict[str, Statistics]) -> None:
    assert tuple(statistics) == SITES
    found = statistics[SITES[0]]
    assert found.concepts == ("object:a", "style:x", "object:b", "object:c")
    assert found.count.tolist() == [2, 3, 2, 1, 5]
    assert found.timesteps == adapter_of().timesteps
    assert found.sums.shape == (5, STEPS, 2 * D)


@pytest.mark.parametrize("site", SITES)
def test_a_concept_against_everything_else(
    statistics: dict[str, Statistics], dense: dict[str, Tensor], site: str
) -> None:
    codes = dense[site]
    for concept in statistics[site].concepts:
        factor, value = concept.split(":")
        own = chosen(factor, value)
        rest = [i for i in range(len(PROMPTS)) if i not in own]
        compare(statistics[site].contrast(concept), codes, own, rest)


@pytest.mark.parametrize("site", SITES)
def test_a_concept_against_another(
    statistics: dict[str, Statistics], dense: dict[str, Tensor], site: str
) -> None:
    found = statistics[site].contrast("object:a", "object:b")
    compare(found, dense[site], chosen("object", "a"), chosen("object", "b"))


def compare(found: Any, codes: Tensor, own: list[int], rest: list[int]) -> None:
    means = codes.mean(2)  # over tokens, [n T s]
    active = (codes > 0).float().mean(2)
    assert means.abs().max() > 0.01
    close(found.mean, means[own].mean(0))
    close(found.other, means[rest].mean(0))
    close(found.variance, means[own].var(0, correction=0))
    close(found.other_variance, means[rest].var(0, correction=0))
    close(found.active, active[own].mean(0))
    close(found.other_active, active[rest].mean(0))


def test_the_published_threshold_weighs_concepts_the_same(
    statistics: dict[str, Statistics], dense: dict[str, Tensor]
) -> None:
    means = dense[SITES[0]].mean(2)
    groups = [("object", "a"), ("style", "x"), ("object", "b"), ("object", "c")]
    wanted = torch.stack([means[chosen(*group)].mean(0) for group in groups]).mean(0)
    close(statistics[SITES[0]].published_threshold, wanted)


def test_pooled_codes_of_chosen_latents(dense: dict[str, Tensor]) -> None:
    latents = {SITES[0]: torch.tensor([3, 0, 17]), SITES[1]: torch.arange(2 * D)}
    found = pooled(adapter_of(), SAES, PROMPTS, latents, batch_size=3)
    for site in SITES:
        close(found[site], dense[site].mean(2)[..., latents[site]])


def test_the_unconditional_half() -> None:
    adapter = adapter_of("uncond")
    found = collect(adapter, {SITES[0]: SAES[SITES[0]]}, PROMPTS)[SITES[0]]
    codes = twin(adapter, MODULES[0], SAES[SITES[0]])
    close(found.sums[-1], codes.mean(2).sum(0))


def test_progress_counts_every_prompt() -> None:
    told: list[int] = []
    collect(adapter_of(), {SITES[0]: SAES[SITES[0]]}, PROMPTS, batch_size=2, tell=told.append)
    assert told == [2, 2, 1]


def test_save_and_load(statistics: dict[str, Statistics], tmp_path: Path) -> None:
    one = statistics[SITES[0]]
    odd = Statistics(("object:two\nlines", *one.concepts[1:]), *list(vars(one).values())[1:])
    for number, before in enumerate((one, odd)):
        before.save(tmp_path / f"{number}.safetensors")
        after = Statistics.load(tmp_path / f"{number}.safetensors")
        assert after.concepts == before.concepts and after.timesteps == before.timesteps
        for name in ("count", "sums", "squares", "actives"):
            assert torch.equal(getattr(after, name), getattr(before, name))


def test_a_file_of_something_else(tmp_path: Path) -> None:
    path = tmp_path / "other.safetensors"
    save_file({"x": torch.zeros(1)}, path)
    with pytest.raises(CheckpointError, match=r"other.safetensors holds no statistics of concepts"):
        Statistics.load(path)
    with pytest.raises(CheckpointError, match=r"none.safetensors holds no statistics"):
        Statistics.load(tmp_path / "none.safetensors")


def test_both_halves_are_refused() -> None:
    message = r"statistics are of one half .* half='cond' or half='uncond'"
    with pytest.raises(ConfigError, match=message):
        collect(adapter_of("both"), SAES, PROMPTS)


def test_a_concept_that_is_not_there(statistics: dict[str, Statistics]) -> None:
    with pytest.raises(UnknownName, match=r"no concept 'object:d'; did you mean object:"):
        statistics[SITES[0]].contrast("object:d")
    with pytest.raises(UnknownName, match=r"no concept 'style:y'; did you mean style:x"):
        statistics[SITES[0]].contrast("object:a", "style:y")


def test_a_concept_that_all_prompts_have() -> None:
    found = collect(adapter_of(), {SITES[0]: SAES[SITES[0]]}, PROMPTS[:2])[SITES[0]]
    with pytest.raises(DataError, match=r"all 2 prompts ask for object:a; add others"):
        found.contrast("object:a")


def test_prompts_without_labels() -> None:
    with pytest.raises(DataError, match="1 prompts, and none of them has a label"):
        collect(adapter_of(), SAES, [Labelled(Prompt("a"), {})])
