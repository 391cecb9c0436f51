"""Latents planted on the toy's own embeddings, one for each colour: every way finds their names."""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch.nn.functional import normalize
from typer.testing import CliRunner

from vision_sae import checkpoint, plugins
from vision_sae.adapters.toy import COLOURS, ToyAdapter
from vision_sae.cli.app import app
from vision_sae.data import open_data
from vision_sae.errors import ConfigError, DataError, UnknownName
from vision_sae.extract import extract
from vision_sae.jobs import NamingConfig, name_sae, open_vocabulary, summary_of
from vision_sae.jobs.pictures import pictures
from vision_sae.measures.factors import folds
from vision_sae.measures.latents import Scan, scan
from vision_sae.model.probing import probe_site
from vision_sae.naming import UNNAMED, Naming, in_shared_space, read_names, see, splice_directions
from vision_sae.sae import SAE, SAEConfig
from vision_sae.store import Store

TOY = ToyAdapter()
WORDS = [*COLOURS, "grey"]


def paint(folder: Path, each: int) -> Path:
    """Pictures of each colour, a little different in brightness."""
    for name, colour in COLOURS.items():
        (folder / name).mkdir(parents=True)
        for i in range(each):
            shade = tuple(c * (255 - i) for c in colour)
            Image.new("RGB", (16, 16), shade).save(folder / name / f"{i:02}.png")
    return folder


@dataclass(frozen=True)
class World:
    folder: Path
    store: Store
    sae: SAE
    found: Scan

    def name(self, **options: Any) -> Naming:
        """By the SAE, tested on the other pictures."""
        config = NamingConfig(**options)
        test = open_data(str(self.folder / "other"))
        return name_sae(TOY, self.store, self.found, WORDS, sae=self.sae, test=test, config=config)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    folder = tmp_path_factory.mktemp("world")
    paint(folder / "other", 6)
    data = open_data(str(paint(folder / "images", 12)))
    extract(TOY, data, "head", folder / "acts", tokens="all")
    store = Store(folder / "acts")
    rows = store.sample(1000)
    colours = TOY.run(torch.stack([_plain(colour) for colour in COLOURS.values()])).detach()
    sae = SAE(SAEConfig.of(12, 4, "topk", k=1)).eval()
    with torch.no_grad():
        sae.b_dec.copy_(rows.mean(0))
        sae.W_enc.copy_(normalize(colours - rows.mean(0), dim=1))
        sae.W_dec.copy_(sae.W_enc)
    sae.provenance = store.index.provenance
    checkpoint.save(sae, folder / "sae", training={"acts": str(store.folder)})
    return World(folder, store, sae, scan(sae, store))


def _plain(colour: Sequence[float]) -> torch.Tensor:
    return (torch.tensor(colour).float() * 2 - 1)[:, None, None].expand(3, 16, 16)


@pytest.mark.parametrize("way", ["auto", "decoder", "images", "splice"])
@pytest.mark.parametrize("candidates", [1, 5])
def test_every_way_names_every_colour(world: World, way: str, candidates: int) -> None:
    found = world.name(directions=way, candidates=candidates)
    assert [n.name for n in found.names] == list(COLOURS)
    assert all(n.auroc == 1 and n.detects and n.verdict == "right" for n in found.names)
    assert all((n.positives, n.images, n.carried) == (6, 24, 1.0) for n in found.names)
    assert found.how["directions"] == ("decoder" if way == "auto" else way)
    assert found.how["tested on"] == str(world.folder / "other")
    numbers = summary_of(found.names, [])
    assert numbers["names that detect (AUROC of 0.8 or more)"] == 1
    assert numbers["names known right, of those judged"] == 1


def test_without_other_images_a_fifth_is_held_out(world: World) -> None:
    found = name_sae(TOY, world.store, world.found, WORDS)
    assert [n.name for n in found.names] == list(COLOURS) and found.how["directions"] == "images"
    held_out = {n.images for n in found.names}.pop()
    assert found.how["named on"].startswith(f"{48 - held_out} images") and 0 < held_out < 20
    few = [n for n in found.names if n.auroc is None]
    assert few and all("held-out images, 5 are needed" in n.untested for n in few)


def test_a_high_threshold_leaves_latents_unnamed(world: World) -> None:
    names = world.name(threshold=1.0).names
    assert [n.name for n in names] == [UNNAMED] * 4 and [n.word for n in names] == list(COLOURS)
    assert summary_of(names, [])["share with a name"] == 0


def test_seeing_is_scanning_and_embedding(world: World) -> None:
    source = open_data(str(world.folder / "images"))
    seen = see(TOY, world.sae, world.store.index.provenance, source)
    assert torch.equal(seen.codes.image, world.found.codes.image)
    assert torch.allclose(seen.codes.value, world.found.codes.value, atol=1e-5)
    expected = normalize(world.store.sample(1000).new_tensor(_in_order(world.store)), dim=1)
    assert torch.allclose(seen.embeddings, expected, atol=1e-5)
    assert [about["label"] for about in seen.about] == [a["label"] for a in world.store.about]


def _in_order(store: Store) -> list[list[float]]:
    return torch.cat(list(store.in_order())).flatten(0, 1).tolist()


def test_splicing_is_a_mean_over_pictures_of_one_edit_at_a_time(world: World) -> None:
    """The obvious twin at `head`, whose output is the embedding before it is scaled to 1."""
    batch = torch.stack([_plain(colour) for colour in list(COLOURS.values())[:3]])
    site, strengths = probe_site(TOY, "head", batch[:1]), torch.tensor([0.5, 2.0])
    found = splice_directions(TOY, world.sae, site, "all", strengths, [3, 1], batch, together=4)
    plain = TOY.run(batch).detach()
    for row, (latent, strength) in enumerate(zip([3, 1], strengths, strict=True)):
        moved = normalize(plain + strength * world.sae.W_dec[latent].detach(), dim=1)
        mean = (moved - normalize(plain, dim=1)).mean(0)
        assert torch.allclose(found.vectors[row], normalize(mean, dim=0), atol=1e-4)
    assert torch.equal(TOY.run(batch).detach(), plain)  # no hook stays


@pytest.mark.parametrize(("name", "shared"), [("head", True), ("blocks.1", False)])
def test_which_sites_give_the_models_own_embeddings(name: str, shared: bool) -> None:
    batch = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    assert in_shared_space(TOY, probe_site(TOY, name, batch[:1]), batch) is shared


def test_atoms_of_another_space_name_nothing(world: World, tmp_path: Path) -> None:
    extract(TOY, open_data(str(world.folder / "images")), "blocks.1", tmp_path, tokens="patches")
    store = Store(tmp_path)
    sae = SAE(SAEConfig.of(24, 24, "topk", k=2)).eval()
    found = scan(sae, store)
    with pytest.raises(ConfigError, match="blocks.1 does not give the embeddings of toy:0"):
        name_sae(TOY, store, found, WORDS, sae=sae, config=NamingConfig("decoder"))
    auto = name_sae(TOY, store, found, WORDS, sae=sae)
    assert auto.how["directions"] == "images" and len(auto.names) == len(found.live)
    spliced = name_sae(TOY, store, found, WORDS, sae=sae, config=NamingConfig("splice"))
    assert {n.word for n in spliced.names} - {""} <= set(WORDS)


def test_what_needs_the_sae_says_so(world: World) -> None:
    for config, test in (
        (NamingConfig("splice"), None),
        (None, open_data(str(world.folder / "other"))),
    ):
        with pytest.raises(ConfigError, match="pass sae="):
            name_sae(TOY, world.store, world.found, WORDS, config=config, test=test)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"directions": "decode"}, "one of auto, decoder, images, splice; got 'decode'"),
        ({"candidates": 0}, "candidates must be at least 1; got 0"),
        ({"threshold": 2}, "a cosine, -1 to 1; got 2"),
        ({"templates": ("a photo",)}, "one {} for the word"),
    ],
)
def test_settings_out_of_range(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message.replace("{", r"\{")):
        NamingConfig(**options)


@pytest.mark.slow
def test_vocabularies_by_name(tmp_path: Path) -> None:
    emoji = open_vocabulary("emoji").words
    assert {"pizza", "animal bird", "light skin tone", "twemoji style", "red"} <= set(emoji)
    with pytest.raises(DataError, match="no vocabulary 'wrods': it is words, emoji, or a text"):
        open_vocabulary("wrods")


# ---- explainers: a stand-in that looks at the mean colour


def by_colour(pictures: Sequence[Any], activations: Sequence[float]) -> str:
    assert len(pictures) == len(activations) == 9 and activations == sorted(activations)[::-1]
    pixel = pictures[0].resize((1, 1)).getpixel((0, 0))
    return next(f" {n}\n" for n, c in COLOURS.items() if [p > 99 for p in pixel] == [*map(bool, c)])


def test_an_explainer_names_latents_by_their_pictures(world: World) -> None:
    test = open_data(str(world.folder / "other"))
    found = name_sae(
        TOY,
        world.store,
        world.found,
        ["grey", "red"],
        sae=world.sae,
        explainer=by_colour,
        test=test,
    )
    assert [n.name for n in found.names] == list(COLOURS) and found.how["explained"] == 4
    assert {n.runner_up for n in found.names} <= {"grey", "red"}
    blue = found.names[list(COLOURS).index("blue")]
    assert blue.margin > 0 and blue.auroc == 1


def test_an_explainer_sees_no_image_that_tests_names(world: World) -> None:
    """Every picture of a held-out image is another than all that were shown."""
    shown: set[tuple[int, ...]] = set()

    def look(pictures: Sequence[Any], activations: Sequence[float]) -> str:
        shown.update(picture.getpixel((0, 0)) for picture in pictures)
        return "red"

    name_sae(TOY, world.store, world.found, WORDS, explainer=look)
    out = (folds(world.store.keys) == 0).nonzero()[:, 0].tolist()
    held_out = {picture.getpixel((0, 0)) for _, picture in pictures(world.store, out)}
    assert held_out and shown and not held_out & shown


def test_a_silent_explainer_leaves_a_latent_unnamed(world: World) -> None:
    def shy(pictures: Sequence[Any], activations: Sequence[float]) -> str:
        said = by_colour(pictures, activations)
        return "" if "red" in said else said

    names = name_sae(TOY, world.store, world.found, WORDS, explainer=shy).names
    assert [n.name for n in names] == [UNNAMED, *list(COLOURS)[1:]]
    with pytest.raises(DataError, match="explained none of the latents"):
        name_sae(TOY, world.store, world.found, WORDS, explainer=lambda p, a: "")
    with pytest.raises(DataError, match="gave list, not a text"):
        name_sae(TOY, world.store, world.found, WORDS, explainer=lambda p, a: ["x"])  # type: ignore[arg-type, return-value]


def stand_in(argument: str) -> Any:
    assert argument == "large"
    return by_colour


def test_the_command_with_an_explainer_a_template_and_a_warning(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = EntryPoint("colours", f"{__name__}:stand_in", plugins.EXPLAINERS)
    others = plugins.entry_points

    def found(group: str) -> Any:
        return [mine] if group == plugins.EXPLAINERS else others(group=group)

    monkeypatch.setattr(plugins, "entry_points", found)
    monkeypatch.setattr(EntryPoint, "load", lambda self: stand_in if self is mine else _load(self))
    (world.folder / "words.txt").write_text("red\ngrey\nred\n\n")
    command = ["name", world.folder / "sae", "--vocabulary", world.folder / "words.txt"]
    command += ["--explainer", "colours:large", "--test", world.folder / "other", "--no-centre"]
    result = CliRunner().invoke(app, [*map(str, command)])
    assert result.exit_code == 0, result.output
    assert "left out 1 repeated word (red) and 1 empty line" in result.stderr
    assert [n.word for n in read_names(world.folder / "sae").values()] == list(COLOURS)
    assert "names that detect best" in result.stdout
    with pytest.raises(UnknownName, match="no explainer 'blip'; there are: colours"):
        plugins.load(plugins.EXPLAINERS, "blip")


_load = EntryPoint.load
