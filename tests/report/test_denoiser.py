"""Reports of SAEs on a denoiser: drawn pictures, heat at the right timestep, activity, prompts."""

import json
import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

pytest.importorskip("diffusers")
pytest.importorskip("transformers")

sys.path.append(str(Path(__file__).parents[1] / "adapters"))
import diffusers_models as tiny

from vision_sae.adapters.diffusion import TrajectoryAdapter
from vision_sae.adapters.diffusion_noised import NoisedAdapter
from vision_sae.checkpoint import save
from vision_sae.data import open_data
from vision_sae.data.prompts import Prompt
from vision_sae.errors import DataError, MismatchError
from vision_sae.extract import extract
from vision_sae.jobs import detect_factors, name_sae, pictures
from vision_sae.jobs.pictures import draw
from vision_sae.measures.latents import scan
from vision_sae.report import write_report
from vision_sae.report.gather import gather
from vision_sae.report.steps import over_steps
from vision_sae.sae import SAE, SAEConfig
from vision_sae.store import Store

# diffusers' schedulers give numpy tensors in a way that numpy 2 will not take for ever
pytestmark = pytest.mark.filterwarnings("ignore:__array_.*:DeprecationWarning")
SITE = "up_blocks.0.attentions.1"


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    logging.disable(logging.WARNING)
    yield
    logging.disable(logging.NOTSET)


def adapter_of(kind: str = "sd", /, **settings: Any) -> TrajectoryAdapter:
    given: dict[str, Any] = {"steps": 3, "guidance": 3.0, "name": "tiny"}
    given |= {"height": tiny.SIDE, "width": tiny.SIDE}
    return TrajectoryAdapter(tiny.pipeline(kind), **given | settings)


@pytest.fixture
def table(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.csv"
    rows = [f"a {what},{seed},{what}" for seed in range(6) for what in ("cat", "dog")]
    path.write_text("prompt,seed,object\n" + "\n".join(rows) + "\n")
    return path


def store_of(table: Path, adapter: Any, tokens: Any = "all") -> Store:
    folder = table.parent / "acts"
    extract(adapter, open_data(str(table)), SITE, folder, tokens=tokens)
    return Store(folder)


def sae_of(store: Store, folder: Path) -> SAE:
    torch.manual_seed(0)
    sae = SAE(SAEConfig.of(store.width, 12, "topk", 2)).eval()
    save(sae, folder)
    return sae


@pytest.mark.parametrize("name", ["sd", "sdxl", "pixart", "sd3", "flux"])
def test_pictures_are_those_that_the_pipeline_draws(name: str) -> None:
    adapter, prompts = adapter_of(name), [Prompt("a cat", 5), Prompt("dog", 7)]
    extra = {"use_resolution_binning": False} if name == "pixart" else {}
    theirs = adapter.pipe(
        [prompt.text for prompt in prompts], num_inference_steps=3, guidance_scale=3.0,
        generator=[torch.Generator().manual_seed(prompt.seed) for prompt in prompts],
        height=tiny.SIDE, width=tiny.SIDE, **extra,
    ).images  # fmt: skip
    ours = draw(adapter, prompts)
    assert [p.tobytes() for p in ours] == [p.tobytes() for p in theirs]


def test_only_shown_prompts_are_drawn_each_once(
    table: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter = adapter_of()
    store, ran = store_of(table, adapter), []
    run = adapter.run
    monkeypatch.setattr(adapter, "run", lambda batch: ran.extend(batch) or run(batch))
    found = dict(pictures(store, [7, 2], adapter))
    assert list(found) == [2, 7] and found[2].size == (tiny.SIDE, tiny.SIDE)
    assert [(prompt.text, prompt.seed) for prompt in ran] == [("a cat", 1), ("a dog", 3)]


def test_prompts_of_two_guidances_are_drawn_apart(tmp_path: Path) -> None:
    path = tmp_path / "prompts.csv"
    path.write_text("prompt,guidance\ncat,3\ndog,5\nfox,5\ncow,3\n")
    adapter = adapter_of()
    extract(adapter, open_data(str(path)), SITE, tmp_path / "acts", batch_size=1)
    assert [i for i, _ in pictures(Store(tmp_path / "acts"), range(4), adapter)] == [0, 1, 2, 3]


@pytest.mark.parametrize("half", ["cond", "both"])
def test_steps_are_those_of_dense_codes(table: Path, tmp_path: Path, half: str) -> None:
    store = store_of(table, adapter_of(half=half))
    sae = sae_of(store, tmp_path / "sae")
    wanted = {1: {0: 1.0, 5: 1.0}, 4: {5: 1.0}, 11: {2: 1.0}}
    steps = over_steps(sae, store, wanted)
    halves = 2 if half == "both" else 1
    acts = store.acts(range(store.images)).flatten(0, 1)
    with torch.no_grad():
        dense = sae.encode(acts).to_dense().view(store.images, 3, halves, 64, 12)
    fired = dense != 0
    assert torch.allclose(steps.share, fired.double().mean((0, 2, 3)).float())
    mean = dense.abs().sum((0, 2, 3)) / fired.sum((0, 2, 3))
    assert torch.allclose(steps.mean, mean, equal_nan=True)
    for image, latents in wanted.items():
        for s in latents:
            slots = dense[image, ..., s].flatten(0, 1)
            best = int(slots.amax(1).argmax())
            assert steps.strongest[s, image] == store.index.provenance.timesteps[best // halves]
            assert torch.allclose(torch.tensor(steps.heats[s, image]).flatten(), slots[best])
    assert set(steps.heats) == {(s, image) for image, found in wanted.items() for s in found}


def test_heat_is_strongest_where_the_latent_is(table: Path, tmp_path: Path) -> None:
    adapter = adapter_of()
    store = store_of(table, adapter)
    sae = sae_of(store, tmp_path / "sae")
    facts = gather(sae, store, scan(sae, store), folder=tmp_path / "sae", adapter=adapter)
    assert facts.noun == "prompt" and facts.timesteps == list(adapter.timesteps)
    assert "strongest" in facts.provenance["heatmaps"]
    assert facts.provenance["timesteps"].endswith("conditional half")
    for latent in facts.latents:
        assert latent.activity and len(latent.activity.share) == 3
        for picture in latent.top:
            assert picture.timestep in adapter.timesteps and picture.heat
            assert max(map(max, picture.heat)) == pytest.approx(picture.value, rel=1e-5)


def test_a_site_without_patches_has_activity_and_no_heat(table: Path, tmp_path: Path) -> None:
    adapter = adapter_of()
    store = store_of(table, adapter, tokens="pooled")
    sae = sae_of(store, tmp_path / "sae")
    facts = gather(sae, store, scan(sae, store), folder=tmp_path / "sae", adapter=adapter)
    assert facts.provenance["heatmaps"] == "none: this site has no patches"
    shown = [picture for latent in facts.latents for picture in latent.top]
    assert all(picture.heat is None and picture.timestep for picture in shown)
    assert all(latent.activity for latent in facts.latents)


def test_the_page_has_prompts_seeds_and_activity(table: Path, tmp_path: Path) -> None:
    adapter, drawn = adapter_of(), []
    store = store_of(table, adapter)
    sae_of(store, tmp_path / "sae")
    write_report(
        tmp_path / "sae", tmp_path / "page", store=store, adapter=adapter, tell=drawn.append
    )
    data = tmp_path / "page" / "data"
    images, overview, latents = (
        json.loads((data / f"{name}.js").read_text().split(" = ", 1)[1][:-2])
        for name in ("images", "overview", "latents-0")
    )
    assert images[1] == ["000001", "a dog", 0] and sum(drawn) == len(images) == 12
    assert overview["noun"] == "prompt" and overview["timesteps"] == list(adapter.timesteps)
    assert {row["detection"]["factor"] for row in overview["latents"]} <= {"object", "prompt"}
    assert set(latents[0]["activity"]) == {"share", "mean"}
    assert latents[0]["top"][0]["timestep"] in adapter.timesteps


def test_a_noised_store_shows_its_own_images(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    for i in range(3):
        Image.new("RGB", (40, 32), (90 * i, 0, 0)).save(tmp_path / "images" / f"{i}.png")
    adapter = NoisedAdapter(tiny.pipeline("sd"), timesteps=(25, 200), height=32, width=32)
    extract(adapter, open_data(str(tmp_path / "images")), SITE, tmp_path / "acts")
    store = Store(tmp_path / "acts")
    sae = sae_of(store, tmp_path / "sae")
    facts = gather(sae, store, scan(sae, store), folder=tmp_path / "sae")
    assert facts.noun == "image" and facts.timesteps == [25, 200]
    assert facts.images[2].seed is None and facts.images[2].thumbnail.getpixel((9, 9))[0] > 170
    assert all(picture.heat for latent in facts.latents for picture in latent.top)


def test_prompts_without_their_model_are_refused(table: Path) -> None:
    store = store_of(table, adapter_of())
    with pytest.raises(DataError, match=r"are prompts; tiny\?steps=3.* must draw them"):
        list(pictures(store, [0]))
    with pytest.raises(MismatchError, match="not 'tiny\\?steps=4"):
        list(pictures(store, [0], adapter_of(steps=4)))


def test_a_model_that_draws_nothing_is_refused(table: Path, tmp_path: Path) -> None:
    adapter = adapter_of()
    store = store_of(table, adapter)
    adapter.pipe.vae = None
    with pytest.raises(DataError, match="which are prompts, and tiny.* draws none"):
        list(pictures(store, [0], adapter))


def test_latents_of_a_denoiser_get_no_names_but_factors(table: Path, tmp_path: Path) -> None:
    adapter = adapter_of()
    store = store_of(table, adapter)
    found = scan(sae_of(store, tmp_path / "sae"), store)
    with pytest.raises(DataError, match="cannot name latents; a report shows the prompts of each"):
        name_sae(adapter, store, found)
    assert {d.factor for d in detect_factors(store, found)} <= {"object", "prompt"}


def test_a_report_of_a_model_that_is_gone_says_so(table: Path, tmp_path: Path) -> None:
    store = store_of(table, adapter_of(name=f"diffusers:{tmp_path}/gone"))
    sae_of(store, tmp_path / "sae")
    with pytest.raises(DataError, match="gone"):
        write_report(tmp_path / "sae", tmp_path / "page", store=store)
