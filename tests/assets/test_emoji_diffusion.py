"""emoji-diffusion: a plain diffusers folder that draws what it is asked, and the SAEs with it."""

import re
import socket
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from vision_sae.adapters.diffusion import TrajectoryAdapter
from vision_sae.assets.judge import Judge
from vision_sae.assets.models import (
    DIFFUSION,
    emoji_diffusion,
    emoji_diffusion_pipe,
    emoji_diffusion_saes,
)
from vision_sae.assets.vocabulary import OBJECTS, STYLES, ask
from vision_sae.data.prompts import Prompt
from vision_sae.extract import Reading, activations_of
from vision_sae.model.adapter import load_adapter
from vision_sae.model.probing import probe_sites

pytest.importorskip("diffusers")
pytest.importorskip("transformers")
pytest.importorskip("timm")

pytestmark = pytest.mark.filterwarnings("ignore:__array_.*:DeprecationWarning")
SITES = (
    "mid_block.attentions.0:update",
    "up_blocks.0.attentions.0:update",
    "up_blocks.0.attentions.1:update",
)
STEPS, GUIDANCE = 25, 3.0
ABSOLUTE = re.compile(r'": *"/[^"<]+/')  # a path as a value in JSON

pipe_of = cache(emoji_diffusion_pipe)


def draw(pipe: Any, prompts: list[str], first_seed: int = 0, **options: Any) -> Tensor:
    given = {"num_inference_steps": STEPS, "guidance_scale": GUIDANCE, "output_type": "pt"}
    seeds = [torch.Generator().manual_seed(first_seed + i) for i in range(len(prompts))]
    found: Tensor = pipe(prompts, generator=seeds, **(given | options)).images
    return found


# ---- the folder


def test_it_is_small() -> None:
    files = [file for file in DIFFUSION.rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) <= 20 * 2**20


def test_no_file_is_a_pickle_or_says_where_it_was_made() -> None:
    files = [file for file in DIFFUSION.rglob("*") if file.is_file()]
    assert {file.suffix for file in files} <= {".json", ".safetensors", ".txt", ".md"}
    for file in files:
        if file.suffix == ".json":
            assert not ABSOLUTE.search(file.read_text()), file


def test_diffusers_alone_loads_it_offline(monkeypatch: pytest.MonkeyPatch) -> None:
    from diffusers import StableDiffusionPipeline

    def refuse(*args: Any) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    pipe = StableDiffusionPipeline.from_pretrained(DIFFUSION)
    pipe.set_progress_bar_config(disable=True)
    picture = draw(pipe, [ask("pizza")], num_inference_steps=2)
    assert picture.shape == (1, 3, 32, 32)
    assert torch.equal(picture, draw(pipe_of(), [ask("pizza")], num_inference_steps=2))


# ---- its pictures


def test_the_same_seed_gives_the_same_picture() -> None:
    prompts = [ask("cat", "neon")]
    one = draw(pipe_of(), prompts)
    assert torch.equal(one, draw(pipe_of(), prompts))
    assert not torch.equal(one, draw(pipe_of(), prompts, first_seed=9))


def test_it_draws_what_is_asked() -> None:
    """One picture of each object, styles in turn; the plain one among them."""
    looks = [("", *STYLES)[i % 9] for i in range(len(OBJECTS))]
    pictures = draw(pipe_of(), [ask(*pair) for pair in zip(OBJECTS, looks, strict=True)])
    told = Judge.load()(pictures)
    objects = told.object.argmax(1) == torch.arange(20)
    styles = told.style.argmax(1) == torch.arange(20) % 9
    assert objects.sum() >= 18 and styles.sum() >= 18


def test_synonyms_are_understood() -> None:
    asked = {"kitten": "cat", "bike": "bicycle", "cottage": "house", "yacht": "sailboat"}
    told = Judge.load()(draw(pipe_of(), [f"a {word}" for word in asked]))
    found = [OBJECTS[i] for i in told.object.argmax(1).tolist()]
    assert sum(a == b for a, b in zip(found, asked.values(), strict=True)) >= 3


# ---- as an adapter


def test_the_adapter_by_name() -> None:
    adapter: Any = load_adapter("emoji-diffusion")
    assert isinstance(adapter, TrajectoryAdapter)
    assert adapter.name.startswith("emoji-diffusion?") and str(DIFFUSION) not in adapter.name
    assert (adapter.steps, adapter.guidance, adapter.half) == (STEPS, GUIDANCE, "cond")
    assert len(adapter.timesteps) == STEPS


def test_the_adapters_settings() -> None:
    adapter: Any = load_adapter("emoji-diffusion:?steps=10&every=2&half=uncond")
    assert (adapter.steps, adapter.guidance, adapter.half) == (10, GUIDANCE, "uncond")
    assert len(adapter.timesteps) == 5


# ---- its SAEs


def test_there_is_an_sae_for_each_site_where_text_enters() -> None:
    saes = emoji_diffusion_saes()
    assert tuple(saes) == SITES
    for sae in saes.values():
        assert sae.config.d == 128 and sae.provenance is not None
        assert not ABSOLUTE.search(sae.provenance.model_dump_json())


def test_the_saes_fit_their_sites() -> None:
    saes, adapter = emoji_diffusion_saes(), emoji_diffusion("?every=4")
    prompts = [
        Prompt(ask(name, style), 50 + i)
        for i, (name, style) in enumerate(zip(OBJECTS[:9], ("", *STYLES), strict=True))
    ]
    batch = adapter.prepare(prompts)
    sites = probe_sites(adapter, list(saes), batch[:1])
    acts = activations_of(adapter, batch, Reading(tuple(sites.values())))
    for site, sae in saes.items():
        assert sites[site].grid == (4, 4)
        rows = acts[site].flatten(0, 1)
        with torch.no_grad():
            error = (rows - sae(rows).x_hat).square().sum()
        assert error / (rows - rows.mean(0)).square().sum() < 0.3, site
