"""Judges of any table's factors, and the scores of a removal by them."""

from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from vision_sae.adapters.toy import COLOURS, ToyAdapter
from vision_sae.assets.vocabulary import OBJECTS, STYLES
from vision_sae.data.prompts import Prompt
from vision_sae.errors import DataError
from vision_sae.recipes.unlearn.benchmark import measures
from vision_sae.recipes.unlearn.benchmark.world import PLAIN, World
from vision_sae.recipes.unlearn.judging import Trial, ZeroShot, rates, read, validation
from vision_sae.recipes.unlearn.methods import asked
from vision_sae.recipes.unlearn.prompts import Labelled


def row(text: str, seed: int = 0, **labels: str) -> Labelled:
    return Labelled(Prompt(text, seed), labels)


def painted(*names: str) -> Tensor:
    return torch.stack(
        [torch.tensor(COLOURS[n]).float().view(3, 1, 1).expand(3, 8, 8) for n in names]
    )


def test_a_clip_reads_each_factor_by_the_prompts_that_ask_for_it() -> None:
    rows = [row("red", hue="warm", kind="red"), row("white", hue="white", kind="light")]
    rows += [row("blue", hue="cold", kind=""), row("red", 1, hue="warm", kind="red")]
    judge: Any = ZeroShot(ToyAdapter(), rows)
    assert (judge.hues, judge.kinds) == (("warm", "white", "cold"), ("red", "light"))
    shown = read(judge, painted("red", "white", "blue"), batch=2)
    assert [one["hue"] for one in shown] == ["warm", "white", "cold"]
    assert [one["kind"] for one in shown[:2]] == ["red", "light"]


def test_a_judge_may_give_a_mapping_or_a_named_tuple() -> None:
    class Verdict(NamedTuple):
        side: Tensor

    class Judge:
        sides = ("dark", "light")

        def __init__(self, named: bool) -> None:
            self.named = named

        def __call__(self, pictures: Tensor) -> Any:
            light = pictures.mean((1, 2, 3))
            logits = torch.stack([1 - light, light], 1)
            return Verdict(logits) if self.named else {"side": logits}

    pictures = torch.tensor([0.9, 0.2, 0.7]).view(3, 1, 1, 1).expand(3, 3, 4, 4)
    for named in (True, False):
        shown = [one["side"] for one in read(Judge(named), pictures)]
        assert shown == ["light", "dark", "light"]


class Knows:
    """No judge, but what World asks of one."""

    objects, styles = OBJECTS, (PLAIN, *STYLES)


def test_the_rates_are_the_benchmarks() -> None:
    """On the embedded vocabulary, with random verdicts: measures.outcome is the twin."""
    world = World(None, Knows(), OBJECTS, STYLES, lambda o, s: f"{o} {s}", lambda x: x)
    chance = torch.Generator().manual_seed(0)
    for concept in ("object:pizza", "style:neon"):
        targets = world.targets(concept, "validation", 1)
        others = world.others([concept], "validation", 30)
        asks = [*targets, *others]

        def some(values: tuple[str, ...], right: str) -> str:
            i = int(torch.randint(len(values), (), generator=chance))
            return values[i] if i % 2 else right

        shown = [
            {"object": some(OBJECTS, a.object), "style": some(Knows.styles, a.style)} for a in asks
        ]
        rows = [row(a.text, a.seed, object=a.object, style=a.style) for a in asks]
        n = len(targets)
        theirs = measures.outcome(concept, targets, shown[:n], others, shown[n:])
        ours = rates(concept, rows, shown)
        assert ours == pytest.approx({name.upper(): theirs[name] for name in ("ua", "ira", "cra")})


def test_a_table_of_one_factor_has_no_cra_and_blank_values_do_not_count() -> None:
    rows = [row("a", x="a"), row("b", x="b"), row("b", 1, x="b"), row("c", x="")]
    shown = [{"x": "b"}, {"x": "b"}, {"x": "a"}, {"x": "a"}]
    assert rates("x:a", rows, shown) == {"UA": 1.0, "IRA": 0.5}


def test_every_prompt_is_tried_once_on_the_benchmarks_validation_seeds() -> None:
    world = World(None, Knows(), OBJECTS, STYLES, lambda o, s: "", lambda x: x)
    rows = validation(asked(3))
    assert len(rows) == len(OBJECTS) * (len(STYLES) + 1)
    pairs = [(r.prompt.seed, r.labels["object"], r.labels["style"]) for r in rows]
    assert pairs == [(a.seed, a.object, a.style) for a in world.asks("validation")]


def test_a_judge_must_know_the_concept() -> None:
    rows = [row("a cat", x="cat"), row("a dog", x="dog")]
    for judge, told in ((Knows(), "nothing of 'x'"), (type("J", (), {"xs": ("cow",)})(), "cow")):
        with pytest.raises(DataError, match=f"does not know x:cat; it knows {told}"):
            Trial.of(None, judge, rows, "x:cat", 4)
