"""EmojiCanvas-Unlearn on a tiny pipeline with a judge that reads colours."""

import json
import logging
import math
import random
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

pytest.importorskip("diffusers")
pytest.importorskip("transformers")

sys.path.append(str(Path(__file__).parents[1] / "adapters"))
import diffusers_models as tiny

from vision_sae.data.prompts import PromptSource
from vision_sae.errors import ConfigError, DataError, UnknownName
from vision_sae.model.hooks import edit
from vision_sae.recipes.unlearn.benchmark import adversary, saes, tables, text, write_page
from vision_sae.recipes.unlearn.benchmark.draw import Plain, draw_asks
from vision_sae.recipes.unlearn.benchmark.run import Counts, Plans, nested, run
from vision_sae.recipes.unlearn.benchmark.tables import markdown, took
from vision_sae.recipes.unlearn.benchmark.world import Ask, World
from vision_sae.recipes.unlearn.draw import draw, unit

pytestmark = pytest.mark.filterwarnings("ignore:__array_.*:DeprecationWarning")
COUNTS = Counts(
    seeds_of_object=2, seeds_of_style=1, others=4, clean=12, attacked=2, shown=2, batch=8
)
SITE = "mid_block.attentions.0:update"


class Verdict(NamedTuple):
    object: Tensor
    style: Tensor


class FakeJudge:
    """Reads the object by the red channel and the style by the green one."""

    objects = ("p", "c", "f")
    styles = ("plain", "n")

    def __call__(self, images: Tensor) -> Verdict:
        red, green = images[:, 0].mean((1, 2)), images[:, 1].mean((1, 2))
        return Verdict(
            torch.stack([red, 0.9 - red, red * 0], 1), torch.stack([green, 1 - green], 1)
        )


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    logging.disable(logging.WARNING)
    yield
    logging.disable(logging.NOTSET)


def embed(images: Tensor) -> Tensor:
    return torch.nn.functional.avg_pool2d(images, 8).flatten(1)


def layers(images: Tensor) -> list[Tensor]:
    return [images.flatten(2).mT + 0.1]


def ask(name: str, style: str) -> str:
    return f"{name} {style}".strip()


def swap(word: str, chance: random.Random) -> str:
    return chance.choice("xy")


@pytest.fixture(scope="module")
def world() -> World:
    return World(
        tiny.pipeline("sd"), FakeJudge(), ("p", "c", "f"), ("n",), ask, embed, layers,
        {"p": ("q", "r")}, swap, steps=2, guidance=3.0,
    )  # fmt: skip


class Nothing:
    name = "nothing"

    def fit(self, pipe: Any, concepts: Sequence[str]) -> Any:
        @contextmanager
        def removal(pipe: Any) -> Iterator[Any]:
            yield pipe

        return removal


class Cut:
    """Takes all that a site adds; cuts the gradient, as edits under no_grad do."""

    name = "cut"

    def fit(self, pipe: Any, concepts: Sequence[str]) -> Any:
        @contextmanager
        def removal(pipe: Any) -> Iterator[Any]:
            with edit(pipe.unet, SITE, lambda x: torch.zeros_like(x)):
                yield pipe

        return removal


# ---- world


def test_splits_share_no_seed_and_every_pair_is_asked(world: World) -> None:
    test, validation = world.asks("test"), world.asks("validation")
    assert len({(a.object, a.style) for a in test}) == 6
    many = [a.seed for s in ("test", "validation") for i in range(5) for a in world.asks(s, i)]
    assert len(set(many)) == len(many)
    assert (
        {a.text for a in test}
        == {a.text for a in validation}
        == {"p", "p n", "c", "c n", "f", "f n"}
    )


def test_targets_hold_the_concept_and_others_do_not(world: World) -> None:
    targets = world.targets("style:n", "test", 2)
    assert len(targets) == 6 and all(a.style == "n" for a in targets)
    others = world.others(["object:p", "style:n"], "test", 90)
    assert {(a.object, a.style) for a in others} == {("c", "plain"), ("f", "plain")}


def test_others_are_the_same_for_all_concepts_where_they_can_be(world: World) -> None:
    everything = world.others([], "test", 6)
    mine = world.others(["object:p"], "test", 6)
    assert mine == [a for a in everything if a.object != "p"]


def test_an_unknown_concept_is_named_with_near_ones(world: World) -> None:
    with pytest.raises(UnknownName, match="no concept 'object:z'; .*object:p"):
        world.targets("object:z", "test", 1)


def test_a_concept_of_another_form_is_refused(world: World) -> None:
    with pytest.raises(ConfigError, match="object:VALUE or style:VALUE; got 'pizza'"):
        world.check("pizza")


def test_an_unknown_split_is_refused(world: World) -> None:
    with pytest.raises(UnknownName, match="no split 'train'"):
        world.asks("train")


def test_a_judge_must_know_every_value(world: World) -> None:
    with pytest.raises(ConfigError, match="the judge knows no object dog; it knows p, c, f"):
        World(world.pipe, FakeJudge(), ("dog",), ("n",), ask, embed)


# ---- drawing


def test_pictures_do_not_depend_on_the_batch(world: World) -> None:
    asks = world.asks("test")[:3]
    together, alone = draw_asks(world, world.pipe, asks), draw_asks(world, world.pipe, asks, 1)
    assert together.dtype == torch.uint8 and together.shape == (3, 3, 32, 32)
    assert (together.int() - alone.int()).abs().max() <= 1  # of 255: another order of sums
    assert not torch.equal(together[0], together[1])


def test_a_prompt_without_a_seed_is_refused(world: World) -> None:
    with pytest.raises(DataError, match="2 prompts and 1 seeds"):
        draw(world.pipe, ["a", "b"], [1])


def test_plain_pictures_are_drawn_once_and_kept(world: World, tmp_path: Path) -> None:
    asks, file = world.asks("test")[:2], tmp_path / "plain.safetensors"
    first = Plain(world, file)(asks)
    again = Plain(World(None, FakeJudge(), ("p",), ("n",), ask, embed, steps=2), file)
    assert torch.equal(again([asks[1], asks[0]]), first.flip(0))  # no pipeline at hand


# ---- attacks


def test_other_words_ask_for_the_same_picture(world: World) -> None:
    asks = world.targets("object:p", "test", 1)
    found = adversary.reworded(world, "object:p", asks, "synonyms")
    assert [a.text for a in found] == ["q", "r n"] and [a.seed for a in found] == [
        a.seed for a in asks
    ]
    assert adversary.reworded(world, "object:c", asks, "synonyms") == []
    with pytest.raises(ConfigError, match="synonyms or misspellings; got 'rhymes'"):
        adversary.reworded(world, "object:p", asks, "rhymes")


def test_a_prefix_reaches_its_prompts_only(world: World) -> None:
    pipe, prefix = world.pipe, torch.randn(2, 8)
    ids = adversary.tokens_of(pipe, ["p", "c"])
    with torch.no_grad():
        before = pipe.text_encoder(ids)[0]
        with adversary.prefixed(pipe, ["p"], prefix):
            after = pipe.text_encoder(ids)[0]
        assert torch.equal(pipe.text_encoder(ids)[0], before)
    assert torch.equal(after[1], before[1])
    assert torch.allclose(after[0, 0], before[0, 0]) and not torch.allclose(
        after[0, 1], before[0, 1]
    )


def test_a_prefix_of_the_prompts_own_tokens_is_as_if_they_were_written(world: World) -> None:
    pipe = world.pipe
    table = pipe.text_encoder.get_input_embeddings().weight.detach()
    ids = adversary.tokens_of(pipe, ["c p"])
    with torch.no_grad():
        written = pipe.text_encoder(ids)[0]
        with adversary.prefixed(pipe, ["p"], table[ids[0, 1:2]]):
            learnt = pipe.text_encoder(adversary.tokens_of(pipe, ["p"]))[0]
    assert torch.allclose(written, learnt, atol=1e-5)


def test_a_learnt_prefix_lowers_the_noise_error_through_an_edit_that_cuts_the_gradient(
    world: World,
) -> None:
    pipe, plain = world.pipe, Plain(world)
    asks = world.targets("object:p", "test", 2)
    removal = Cut().fit(pipe, ["object:p"])
    attack = adversary.Attack(tokens=2, steps=15, images=4, lr=0.1)
    begin = adversary.learn_prefix(
        world, "object:p", asks, plain, removal, adversary.Attack(tokens=2, steps=0, images=4)
    )
    prefix = adversary.learn_prefix(world, "object:p", asks, plain, removal, attack)
    assert not torch.equal(begin, prefix)
    latents = adversary._latents(pipe, unit(plain(asks)))
    texts = [a.text for a in asks]

    def error(prefix: Tensor) -> float:
        chance, total = torch.Generator().manual_seed(9), 0.0
        with torch.no_grad(), removal(pipe), adversary.prefixed(pipe, texts, prefix):
            for _ in range(20):
                ids = adversary.tokens_of(pipe, texts)
                total += float(adversary._noise_error(pipe, ids, latents, chance))
        return total

    assert error(prefix) < error(begin)


def test_straight_through_keeps_values_and_lets_gradients_pass(world: World) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Linear(3, 2))
    x = torch.randn(4, 3, requires_grad=True)
    with edit(model, "0", lambda y: (y * 2).detach()):
        edited = model(x)
        with adversary.straight_through(model):
            passed = model(x)
        assert not model(x[:0]).numel()
    assert torch.allclose(edited, passed, atol=1e-6)
    (gradient,) = torch.autograd.grad(passed.sum(), [x])
    (own,) = torch.autograd.grad(model(x).sum(), [x])
    assert torch.allclose(gradient, own)
    assert not model[0]._forward_hooks


def test_a_prefix_that_does_not_fit_is_refused(world: World) -> None:
    asks = world.targets("object:p", "test", 1)
    with pytest.raises(ConfigError, match="reads 8 tokens, so a prefix may have 1 to 5; got 6"):
        adversary.learn_prefix(
            world, "object:p", asks, Plain(world), None, adversary.Attack(tokens=6)
        )


def test_a_pipeline_of_another_kind_is_refused() -> None:
    world = World(tiny.pipeline("sdxl"), FakeJudge(), ("p",), ("n",), ask, embed)
    with pytest.raises(
        ConfigError, match="Stable Diffusion 1 and 2 pipelines; got StableDiffusionXL"
    ):
        adversary.learn_prefix(world, "object:p", world.asks("test"), Plain(world))


# ---- the run


def test_the_prompts_of_further_saes_are_a_table_that_is_read(tmp_path: Path) -> None:
    (tmp_path / "prompts.csv").write_text(saes.prompts_table())
    rows = [item.about for item in PromptSource(str(tmp_path / "prompts.csv")).items()]
    asked = {str(row["prompt"]) for row in rows}
    assert len(rows) == 20 * 9 * saes.PER_PAIR and any("," in text for text in asked)
    assert len({row["seed"] for row in rows}) == len(rows)


def test_a_run_measures_resumes_and_reports(world: World, tmp_path: Path) -> None:
    made: list[str] = []

    def make(method: Any) -> Any:
        def factory() -> Any:
            made.append(method.name)
            return method

        return factory

    methods = {"nothing": make(Nothing()), "cut@0": make(Cut()), "cut@1": make(Cut())}
    attack = adversary.Attack(tokens=2, steps=1, images=2)
    plans = Plans(attacks=("object:p",), sizes=(1, 2), attack=attack)
    concepts = ["object:p", "style:n"]
    told: list[str] = []
    cells = run(
        world, methods, concepts, "test", tmp_path, counts=COUNTS, plans=plans, tell=told.append
    )
    assert made == ["nothing", "cut", "cut"]
    assert len(told) == len(cells) == 3 * (2 + 1 + 2 + 1)
    none = next(c for c in cells if c["kind"] == "one" and c["name"] == "nothing")
    assert none["scores"] == none["without"] and none["quality"]["unchanged"] == 1
    assert none["quality"]["layer_distance"] == 0
    assert none["quality"]["frechet"] == pytest.approx(0, abs=1e-9)
    cut = next(c for c in cells if c["kind"] == "one" and c["name"] == "cut@0")
    assert cut["quality"]["unchanged"] < 1 and cut["seed"] == "0" and cut["method"] == "cut"
    assert run(world, methods, concepts, "test", tmp_path, counts=COUNTS, plans=plans) == cells
    assert len(made) == 3  # nothing was made again
    _check_reports(cells, tmp_path)
    with pytest.raises(ConfigError, match="choose another folder"):
        run(world, methods, concepts, "test", tmp_path, counts=Counts())


def _check_reports(cells: Any, folder: Path) -> None:
    shown, marked = text(cells), markdown(cells)
    assert "Objects, in %" in shown and "± 0.0" in shown  # two seeds of one method
    minutes = sum(cell["cpu_seconds"] for cell in cells) / 60
    assert took(cells).endswith(f"{minutes:.1f} of CPU") and minutes > 0
    assert "of objects' targets, %" in marked and "of styles' targets, %" in marked
    assert "### Attacks" in marked and "| cut |" in marked and "nan" not in shown
    assert {t.title for t in tables(cells)} >= {"What stays", "Styles, in %"}
    page = write_page(cells, folder).read_text()
    assert page.count("data:image/webp") == 6 and "http" not in page
    json.dumps(cells, allow_nan=False)


def test_no_results_are_no_page(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="run the benchmark first"):
        write_page([], tmp_path)


def test_sets_are_nested_and_sizes_checked() -> None:
    small, large = nested(list("abcdef"), (4, 2))
    assert len(small) == 2 and large[:2] == small and nested(list("abcdef"), (4, 2))[0] == small
    with pytest.raises(ConfigError, match="there are 1 to 3"):
        nested(list("abc"), (5,))


def test_a_run_needs_methods_and_concepts(world: World, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="at least one method and one concept"):
        run(world, {}, ["object:p"], "test", tmp_path)


def test_counts_below_one_are_refused() -> None:
    with pytest.raises(ConfigError, match="at least 1"):
        Counts(others=0)


def test_an_ask_knows_its_concepts() -> None:
    one = Ask("p n", 0, "p", "n")
    assert one.holds("style:n") and not one.holds("object:c") and not math.isnan(one.seed)


def test_edits_pass_straight_through_also_where_a_hook_calls_the_module_again() -> None:
    """As safe guidance does: it asks the denoiser a third time."""
    from vision_sae.recipes.unlearn.benchmark.adversary import straight_through

    layer, calls = torch.nn.Linear(3, 3), []

    def again(module: Any, args: Any, output: Any) -> Any:
        calls.append(1)
        return None if len(calls) > 1 else output.detach() - module(args[0]).detach() + 5

    layer.register_forward_hook(again)
    x = torch.ones(1, 3, requires_grad=True)
    with straight_through(layer):
        out = layer(x)
    assert torch.allclose(out, torch.full((1, 3), 5.0), atol=1e-5)
    (gradient,) = torch.autograd.grad(out.sum(), [x])
    assert torch.allclose(gradient, layer.weight.sum(0)[None], atol=1e-6)
