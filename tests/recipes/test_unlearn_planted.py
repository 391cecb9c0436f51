"""A concept planted by hand: it is found, and taken out, and the other prompts stay as they are.

One word makes the tiny denoiser add a known direction to what its sites give; an SAE has that
direction as an atom.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from vision_sae.data.prompts import Prompt
from vision_sae.recipes.unlearn.apply import unlearn
from vision_sae.recipes.unlearn.find import find
from vision_sae.recipes.unlearn.plan import Plan
from vision_sae.recipes.unlearn.prompts import Labelled
from vision_sae.sae import SAE, SAEConfig

pytest.importorskip("diffusers")
pytest.importorskip("transformers")

sys.path.append(str(Path(__file__).parents[1] / "adapters"))
from diffusers_models import pipeline

from vision_sae.adapters.diffusion import TrajectoryAdapter

pytestmark = pytest.mark.filterwarnings("ignore:__array_.*:DeprecationWarning")
MODULES = ("mid_block.attentions.0", "up_blocks.0.attentions.0")
SITES = [f"{module}:update" for module in MODULES]
D, STEPS, PLANTED = 16, 3, 5  # width, steps, which latent
WORD, SIZE = "z", 6.0
ONE: dict[str, Any] = {"mode": "replace", "count": 1}
PROMPTS = [
    Labelled(Prompt(f"{o} {s}", 10 * i), {"object": o, "style": s})
    for i, (o, s) in enumerate((o, s) for o in "zbcd" for s in "xyw")
]


def directions(seed: int) -> Tensor:
    """An orthonormal basis, [D D]."""
    return torch.linalg.qr(torch.randn(D, D, generator=torch.Generator().manual_seed(seed))).Q


class Plant:
    """Adds a direction at each site, in the rows of the prompts that hold the word."""

    def __init__(self, pipe: Any, modules: Sequence[str]) -> None:
        self.pipe, self.on, self.flags = pipe, True, [torch.zeros(0)] * 2
        (self.word,) = pipe.tokenizer(WORD, add_special_tokens=False).input_ids
        pipe.text_encoder.register_forward_pre_hook(self.read)
        for seed, name in enumerate(modules):
            vector = SIZE * directions(seed)[PLANTED]
            pipe.unet.get_submodule(name).register_forward_hook(self.added(vector))

    def read(self, module: Any, args: Any) -> None:
        found = (args[0] == self.word).any(1).float()
        self.flags = [*self.flags, found][-2:]  # the prompts', then the empty ones'

    def added(self, vector: Tensor) -> Any:
        def add(module: Any, args: Any, output: Any) -> Any:
            rows = torch.cat([self.flags[1], self.flags[0]])
            if not self.on or output[0].is_meta or len(rows) != len(output[0]):
                return output
            return (output[0] + rows[:, None, None, None] * vector[:, None, None],)

        return add


def sae_of(seed: int) -> SAE:
    """An SAE whose atoms are a basis and its opposite: it loses nothing."""
    sae = SAE(SAEConfig.of(D, 2 * D, "relu"), seed=0).eval()
    atoms = torch.cat([directions(seed), -directions(seed)])
    with torch.no_grad():
        sae.W_enc.copy_(atoms)
        sae.W_dec.copy_(atoms)
    return sae


def planted(count: int) -> tuple[Plant, TrajectoryAdapter, dict[str, SAE]]:
    plant = Plant(pipeline("sd"), MODULES[:count])
    adapter = TrajectoryAdapter(plant.pipe, steps=STEPS, guidance=3.0, name="tiny")
    return plant, adapter, {site: sae_of(seed) for seed, site in enumerate(SITES[:count])}


def draw(pipe: Any, prompts: Sequence[str]) -> Tensor:
    found: Tensor = pipe(
        list(prompts), num_inference_steps=STEPS, guidance_scale=3.0, output_type="latent",
        generator=[torch.Generator().manual_seed(100 + i) for i in range(len(prompts))],
    ).images  # fmt: skip
    return found


ASKED, OTHERS = ["z x", "z y", "x z"], ["b x", "c y", "d w"]


def left(plant: Plant, plan: Plan) -> tuple[float, float]:
    """The share of the plant's effect that is left, and how far other prompts moved."""
    with_it, others = draw(plant.pipe, ASKED), draw(plant.pipe, OTHERS)
    plant.on = False
    without = draw(plant.pipe, ASKED)
    plant.on = True
    with unlearn(plant.pipe, plan):
        after, others_after = draw(plant.pipe, ASKED), draw(plant.pipe, OTHERS)
    share = (after - without).norm() / (with_it - without).norm()
    return float(share), float((others_after - others).norm() / others.norm())


@pytest.mark.parametrize("where", ["image", "threshold"])
@pytest.mark.parametrize("count", [1, 2])
def test_the_planted_concept_is_found_and_removed(count: int, where: str) -> None:
    plant, adapter, saes = planted(count)
    plan = find(adapter, saes, PROMPTS, "object:z", where=where, **ONE)
    assert plan.sites == tuple(SITES[:count])
    for edit in plan.edits:
        assert set(edit.latents[edit.strengths.any(0)].tolist()) == {PLANTED}
        change = (edit.mean - edit.other)[:, edit.latents == PLANTED]
        assert ((change - SIZE).abs() < 0.2 * SIZE).all()
    share, moved = left(plant, plan)
    assert share < 0.1 and moved == 0


@pytest.mark.parametrize("mode", ["zero", "replace", "multiple"])
@pytest.mark.parametrize("where", ["image", "image+mask", "image+threshold"])
def test_modes_and_gates(mode: str, where: str) -> None:
    plant, adapter, saes = planted(1)
    choice: dict[str, Any] = {"mode": mode, "where": where, "multiplier": 0.0}
    share, moved = left(plant, find(adapter, saes, PROMPTS, "object:z", count=1, **choice))
    assert share < 0.25 and moved == 0


@pytest.mark.parametrize("score", ["saeuron", "difference", "shift", "selective"])
def test_every_score_finds_it(score: str) -> None:
    _, adapter, saes = planted(1)
    plan = find(adapter, saes, PROMPTS, "object:z", score=score, where="everywhere", **ONE)
    assert plan.edits[0].latents.tolist() == [PLANTED]


def test_a_concept_that_is_not_the_planted_one_leaves_it() -> None:
    plant, adapter, saes = planted(1)
    plan = find(adapter, saes, PROMPTS, "object:b", score="selective", **ONE)
    assert PLANTED not in plan.edits[0].latents[plan.edits[0].strengths.any(0)].tolist()
    share, _ = left(plant, plan)
    assert share > 0.9


@pytest.mark.parametrize("count", [1, 2])
def test_what_find_does_unasked_removes_it_too(count: int) -> None:
    """A learnt map to another object, which differs a little from no plant at all."""
    plant, adapter, saes = planted(count)
    plan = find(adapter, saes, PROMPTS, "object:z")
    assert {edit.mode for edit in plan.edits} == {"transport"}
    share, moved = left(plant, plan)
    assert share < 0.5 and moved == 0


def test_strength_is_how_much_is_taken_away() -> None:
    plant, adapter, saes = planted(1)
    plan = find(adapter, saes, PROMPTS, "object:z", **ONE)
    shares = [left(plant, plan.scaled(strength))[0] for strength in (0, 0.5, 1)]
    assert shares[0] == 1 and shares[0] > shares[1] > shares[2]


def test_a_plan_from_the_disk_does_the_same(tmp_path: Path) -> None:
    plant, adapter, saes = planted(1)
    plan = find(adapter, saes, PROMPTS, "object:z", **ONE)
    with unlearn(plant.pipe, plan):
        wanted = draw(plant.pipe, ASKED)
    with unlearn(plant.pipe, plan.save(tmp_path / "plan")):
        assert torch.equal(draw(plant.pipe, ASKED), wanted)
