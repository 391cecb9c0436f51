"""Before and after: the plain picture is the pipeline's own, and the page says what was done."""

import base64
import io
import logging
import re
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from PIL import Image
from torch import Tensor

pytest.importorskip("diffusers")
pytest.importorskip("transformers")

sys.path.append(str(Path(__file__).parents[1] / "adapters"))
import diffusers_models as tiny

from vision_sae.data.prompts import Prompt
from vision_sae.errors import ConfigError, DataError
from vision_sae.model.adapter import fingerprint
from vision_sae.recipes.unlearn.page import facts, tallies
from vision_sae.recipes.unlearn.plan import Plan, SiteEdit, TextEdit, sample_of, schedule_of
from vision_sae.recipes.unlearn.readout import Readout
from vision_sae.recipes.unlearn.show import draw_pairs, show
from vision_sae.sae import SAE, SAEConfig

# diffusers' schedulers give numpy tensors in a way that numpy 2 will not take for ever
pytestmark = pytest.mark.filterwarnings("ignore:__array_.*:DeprecationWarning")
SITE, UPDATE = "up_blocks.0.attentions.1", "mid_block.attentions.0:update"
SETTINGS: dict[str, Any] = {"num_inference_steps": 3, "guidance_scale": 3.0}
PROMPTS = [Prompt("a cat", 5), Prompt("dog", 7), Prompt("a cat", 5, 2.0)]
LABELS = [{"object": "cat"}, {"object": "dog"}, {"object": "cat"}]


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    logging.disable(logging.WARNING)
    yield
    logging.disable(logging.NOTSET)


@pytest.fixture(scope="module")
def pipe() -> Any:
    return tiny.pipeline("sd")


def edit_of(site: str = SITE, strength: float = 1.0, **other: Any) -> SiteEdit:
    torch.manual_seed(0)
    sae = SAE(SAEConfig.of(16, 8, "relu")).eval()
    latents, table = torch.tensor([1, 4]), torch.zeros(2, 2)
    readout = Readout.of(sae, latents)
    return SiteEdit(
        **{
            "site": site, "sae": fingerprint(sae), "latents": latents,
            "timesteps": torch.tensor([900, 100]), "strengths": table + strength,
            "mean": table + 2, "other": table - 2, "theta": table, "detector": table.clone(),
            "bias": torch.zeros(2), "where": "everywhere", "readout": readout, **other,
        }
    )  # fmt: skip


def plan_of(pipe: Any, *edits: SiteEdit, concept: str = "object:cat") -> Plan:
    about = {"score": "difference"}
    return Plan(concept, edits, "tiny", sample_of(pipe.unet), schedule_of(pipe), about)


class Verdict(NamedTuple):
    object: Tensor
    style: Tensor


class Judge:
    """Reads the mean colour; styles are one."""

    objects, styles = ("cat", "dog"), ("plain",)

    def __call__(self, images: Tensor) -> Verdict:
        assert images.ndim == 4 and images.min() >= 0 and images.max() <= 1
        means = images.mean((1, 2, 3))
        return Verdict(torch.stack([means, 1 - means], 1), torch.zeros(len(images), 1))


def pictures_of(html: str) -> list[Image.Image]:
    found = re.findall(r'src="data:image/webp;base64,([^"]+)"', html)
    return [Image.open(io.BytesIO(base64.b64decode(text))) for text in found]


def test_plain_pictures_are_the_pipelines_own(pipe: Any, tmp_path: Path) -> None:
    page = show(pipe, plan_of(pipe, edit_of()), PROMPTS[:2], tmp_path / "page.html", **SETTINGS)
    theirs = pipe(
        ["a cat", "dog"], generator=[torch.Generator().manual_seed(s) for s in (5, 7)], **SETTINGS
    ).images
    ours = pictures_of(page.read_text())
    assert [ours[0].tobytes(), ours[3].tobytes()] == [each.tobytes() for each in theirs]
    assert ours[0].tobytes() != ours[1].tobytes()


def test_one_page_that_needs_no_other_file(pipe: Any, tmp_path: Path) -> None:
    page = show(
        pipe, plan_of(pipe, edit_of(), edit_of(UPDATE)), PROMPTS, tmp_path / "new" / "folder",
        labels=LABELS, judge=Judge(), **SETTINGS,
    )  # fmt: skip
    html = page.read_text()
    assert page == tmp_path / "new" / "folder" / "index.html"
    assert [p.name for p in page.parent.iterdir()] == ["index.html"]
    assert len(pictures_of(html)) == 9 and not re.search(r"https?://|<script", html)
    words = ("object:cat", SITE, UPDATE, "2: 1, 4", "seed 5, guidance 2", "score: difference")
    assert all(word in html for word in words)
    assert "Prompts that ask for what is removed<small>2</small>" in html
    assert "other prompts read as before" in html


def test_user_text_stays_text(pipe: Any, tmp_path: Path) -> None:
    plan = plan_of(pipe, edit_of(strength=0.0), concept="object:<img src=x>")
    prompt = Prompt("<img src=y>")
    html = show(pipe, plan, [prompt], tmp_path / "a.html", **SETTINGS).read_text()
    assert "<img src" not in html.replace('<img src="data', "")
    assert "&lt;img src=y&gt;" in html


def test_a_plan_of_no_strength_marks_nothing(pipe: Any) -> None:
    plan = plan_of(pipe, edit_of(strength=0.0), edit_of(UPDATE, 0.0))
    for pair in draw_pairs(pipe, [plan], PROMPTS[:2], **SETTINGS):
        assert torch.equal(pair.plain, pair.edited)
        assert pair.mask is not None and not pair.mask.any()


@pytest.mark.parametrize("batch_size", [1, 2])
def test_the_mask_is_where_the_site_moved(pipe: Any, batch_size: int) -> None:
    """Only positions where a latent is above its threshold are moved."""
    edit = edit_of(where="mask", theta=torch.full((2, 2), 0.1), half="cond")
    pairs = draw_pairs(pipe, [plan_of(pipe, edit)], PROMPTS[:2], batch_size=batch_size, **SETTINGS)
    masks = [pair.mask for pair in pairs if pair.mask is not None]
    assert [mask.shape for mask in masks] == [(8, 8), (8, 8)]
    assert any((mask == 0).any() and (mask > 0).any() for mask in masks)


def test_hooks_are_gone_after_an_error(pipe: Any) -> None:
    calls = []

    def fail(*given: Any) -> dict[str, Any]:
        calls.append(len(calls))
        if len(calls) == 5:  # in the second step of the edited pictures
            raise RuntimeError("stopped")
        return {}

    with pytest.raises(RuntimeError, match="stopped"):
        draw_pairs(
            pipe, [plan_of(pipe, edit_of())], PROMPTS[:1], callback_on_step_end=fail, **SETTINGS
        )
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in pipe.unet.modules())


def test_a_saved_plan_and_texts_do(pipe: Any, tmp_path: Path) -> None:
    folder = plan_of(pipe, edit_of()).save(tmp_path / "plan")
    page = show(pipe, folder, ["a cat"], tmp_path / "a.html", **SETTINGS)
    assert "seed 0" in page.read_text()


def test_a_plan_of_text_is_shown_without_a_mask(pipe: Any, tmp_path: Path) -> None:
    text = TextEdit("text_encoder", 0, torch.ones(4, 8), 0.5)
    plan = replace(plan_of(pipe), text=(text,))
    html = show(pipe, plan, ["a cat"], tmp_path / "a.html", **SETTINGS).read_text()
    assert "text_encoder, layer 0" in html and "where it acted" not in html
    assert len(pictures_of(html)) == 2


def test_tallies_count_before_and_after() -> None:
    cat, dog = {"object": "cat"}, {"object": "dog"}
    read = [(cat, dog), (cat, cat), (dog, dog), (dog, cat)]
    assert tallies(["object:cat"], read, [True, True, False, False]) == [
        ("pictures read as object:cat", "2 → 2 of 4"),
        ("other prompts read as before", "1 of 2"),
    ]


def test_facts_are_in_words() -> None:
    told = facts(edit_of(mode="multiple", multiplier=-5.0, window=(0, 500)))
    assert told["mode"] == "multiple × -5" and told["strengths"] == "1"
    assert told["window"] == "timesteps 0 to 500" and told["tables"] == "2 timesteps, 100 to 900"
    assert facts(edit_of(strength=0.0))["strengths"] == "0 (the identity)"
    half = edit_of(strengths=torch.tensor([[0.0, 0.5], [0.0, 2.0]]))
    assert facts(half)["strengths"] == "0.5 to 2, 0 in 50% of the table"


def test_bad_input_is_named(pipe: Any, tmp_path: Path) -> None:
    plan = plan_of(pipe, edit_of())
    with pytest.raises(DataError, match="no prompts to show"):
        show(pipe, plan, [], tmp_path / "a.html")
    with pytest.raises(DataError, match="1 labels for 3 prompts"):
        show(pipe, plan, PROMPTS, tmp_path / "a.html", labels=LABELS[:1])
    with pytest.raises(ConfigError, match="batch_size must be at least 1; got 0"):
        show(pipe, plan, PROMPTS, tmp_path / "a.html", batch_size=0)
    assert not (tmp_path / "a.html").exists()
