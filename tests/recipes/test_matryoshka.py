"""Nested SAEs: levels, curves, the hierarchy of a planted world, depths and splitting."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner

from vision_sae import SAE, SAEConfig, Store, load_sae
from vision_sae.cli.app import app
from vision_sae.errors import ConfigError, DataError
from vision_sae.measures.latents import image_codes
from vision_sae.recipes.matryoshka import (
    Level,
    depths,
    hierarchy,
    nested_settings,
    own_codes,
    prefix_codes,
    prefixes_of,
    progressive,
    sparsities_of,
    split_levels,
)
from vision_sae.recipes.matryoshka.curves_picture import draw_curves
from vision_sae.recipes.matryoshka.depth import shared
from vision_sae.recipes.matryoshka.splitting import f1_scores
from vision_sae.sparse.codes import Codes

SHORT = [
    "--ks", "2,4", "--set", "expansion=2", "--set", "steps=30", "--set", "batch_size=64",
    "--set", "lr=0.01",
]  # fmt: skip
BOTH = {"kind": "both", "ks": (2, 4), "shares": (0.25, 0.5)}


def nested(nest: dict[str, Any] = BOTH, s: int = 16) -> SAE:
    return SAE(SAEConfig.of(6, s, k=4, nest=nest)).eval()


# ---- settings and levels


def test_settings_have_the_largest_k_and_no_prefix_twice() -> None:
    found = nested_settings("both", (8, 4, 8), (0.5, 1.0, 0.25))
    assert found == {
        "k": 8,
        "nest": {
            "kind": "both", "ks": (4, 8), "weighting": "balanced", "own": True,
            "shares": (0.25, 0.5),
        },
    }  # fmt: skip
    assert nested_settings("prefix", (8,), (0.5,))["nest"]["shares"] == (0.5, 1.0)
    assert nested_settings("k", (2, 4), reversed=True)["nest"]["weighting"] == "reversed"
    assert nested_settings("k", (2, 4), own=False)["nest"]["weighting"] == "uniform"


def test_unknown_nests_and_no_k_are_refused() -> None:
    with pytest.raises(ConfigError, match="nest is one of k, prefix, random, both; got 'tree'"):
        nested_settings("tree")
    with pytest.raises(ConfigError, match="needs at least one k"):
        nested_settings("k", ())


def test_what_an_sae_was_nested_over() -> None:
    assert prefixes_of(nested()) == [4, 8, 16] and sparsities_of(nested()) == [2, 4]
    assert prefixes_of(nested({"kind": "random"})) == [1, 2, 4, 8, 16]
    assert prefixes_of(nested({"kind": "k", "ks": (2, 4)})) == []
    assert sparsities_of(nested({"kind": "prefix"})) == []


def test_a_level_reconstructs_with_its_own_codes() -> None:
    sae, x = nested(), torch.randn(5, 6)
    codes, x_hat = Level(sae, k=2, prefix=8)(x)
    assert int(codes.l0.max()) <= 2 and int(codes.indices.max()) < 8
    torch.testing.assert_close(x_hat, codes.to_dense() @ sae.W_dec + sae.b_dec)


def test_a_level_outside_of_the_trained_range_is_refused_when_it_is_made() -> None:
    with pytest.raises(ConfigError, match="trained for k of 2 to 4"):
        Level(nested(), k=9)


# ---- a planted hierarchy: latents 0 and 1 are parents of 2, 3 and of 4; 5 is alone

ON = torch.tensor(
    [[1, 0, 1, 0, 0, 0]] * 10
    + [[1, 0, 0, 1, 0, 0]] * 10
    + [[0, 1, 0, 0, 1, 0]] * 10
    + [[0, 1, 0, 0, 0, 0]] * 10
    + [[0, 0, 0, 0, 0, 1]] * 10,
).float()


def atoms() -> Tensor:
    """Children point where their parents do, too."""
    found = torch.eye(6)
    for child, parent in ((2, 0), (3, 0), (4, 1)):
        found[child, parent] = 1
    return found


def test_a_planted_tree_is_read_out() -> None:
    tree = hierarchy(Codes.of_dense(ON), atoms(), [2, 6])
    assert {c: link.parent for c, link in tree.links.items()} == {2: 0, 3: 0, 4: 1}
    link = tree.links[2]
    assert (link.p_parent, link.p_child) == (1.0, 0.5)
    assert link.cosine == pytest.approx(0.5**0.5)
    assert tree.children == {0: [2, 3], 1: [4]} and tree.roots == [0, 1, 5]
    assert tree.level(1) == 0 and tree.level(2) == 1 and tree.ancestors(2) == [0]


def test_a_parent_must_point_the_same_way_and_fire_elsewhere_too() -> None:
    assert not hierarchy(Codes.of_dense(ON), torch.eye(6), [2, 6]).links  # cosine 0
    same = ON.clone()
    same[:, 2] = same[:, 0]  # fires exactly when 0 does: a twin, no child
    assert 2 not in hierarchy(Codes.of_dense(same), atoms(), [2, 6]).links


def test_a_latent_that_fires_on_nearly_everything_is_no_parent() -> None:
    everywhere = ON.clone()
    everywhere[:45, 0] = 1
    found = hierarchy(Codes.of_dense(everywhere), atoms(), [2, 6])
    assert 0 not in {link.parent for link in found.links.values()}
    assert hierarchy(Codes.of_dense(everywhere), atoms(), [2, 6], lift=1.0).links[2].parent == 0


def test_rare_latents_have_no_parent() -> None:
    assert not hierarchy(Codes.of_dense(ON), atoms(), [2, 6], rows=11).links


def test_own_codes_are_those_of_the_smallest_prefix() -> None:
    first = Codes.of_dense(torch.tensor([[1.0, 2.0, 0.0], [3.0, 0.0, 0.0]]))
    whole = Codes.of_dense(torch.tensor([[0.0, 5.0, 6.0], [0.0, 0.0, 7.0]]))
    own = own_codes([first, whole], [1, 3])
    assert own.to_dense().tolist() == [[1.0, 5.0, 6.0], [3.0, 0.0, 7.0]]


# ---- depths

ABOUT = [
    {"category": "animal", "concept": "dog"},
    {"category": "animal", "concept": "dog"},
    {"category": "animal", "concept": "cat"},
    {"category": "food", "concept": "pizza"},
    {"category": "food"},
]


def test_the_depth_of_a_latent_is_what_pairs_of_its_images_share() -> None:
    assert shared(("a", "b"), ("a", "c")) == 1 and shared(("a", "b"), ("a", "b")) == 2
    # latent 0: dog, dog, cat: pairs share 2, 1, 1; latent 1: dog and dog; latent 2: too few
    dense = torch.tensor([[3.0, 2, 0], [2, 1, 0], [1, 0, 0], [0, 0, 1], [0, 0, 2]])
    codes = image_codes(Codes.of_dense(dense), 1)
    first, second = depths(codes, ABOUT, [1, 3], path=("category", "concept"), least=2)
    assert (first.latents, first.depth) == (1, pytest.approx(4 / 3))
    assert (second.latents, second.depth) == (1, 2.0)
    assert first.chance == pytest.approx(4 / 6, abs=0.02)  # of 6 pairs: 2, 1, 1 and three 0


def test_images_without_the_path_are_refused() -> None:
    codes = image_codes(Codes.of_dense(torch.ones(5, 2)), 1)
    with pytest.raises(DataError, match="no image has all of genus, species"):
        depths(codes, ABOUT, [2], path=("genus", "species"))


def test_a_level_without_images_is_not_a_number() -> None:
    codes = image_codes(Codes.of_dense(torch.zeros(5, 2)), 1)
    (level,) = depths(codes, ABOUT, [2], path=("category", "concept"))
    assert level.latents == 0 and level.depth != level.depth


# ---- splitting and absorption


def labelled(n: int = 200) -> tuple[list[str], list[dict[str, Any]], Tensor]:
    """Images of two categories, one of them with three concepts; who is what."""
    kinds = torch.arange(n) % 6
    about = [{"category": "animal" if k < 3 else "food"} for k in kinds.tolist()]
    return [f"image-{i}" for i in range(n)], about, kinds


def test_splitting_and_absorption_of_a_planted_case() -> None:
    keys, about, kinds = labelled()
    animal, food, dog = kinds < 3, kinds >= 3, kinds == 0
    coarse = torch.stack([animal, food, dog * False], 1).float()
    # at the finer level the animal latent is silent on dogs, which have a latent of their own
    fine = torch.stack([animal & ~dog, food, dog], 1).float()
    levels = [Codes.of_dense(coarse), Codes.of_dense(fine)]
    first, second = split_levels(levels, [2, 3], keys, about, "category")
    assert (first.f1, first.splits, first.absorbed) == (1.0, 1.0, 0.0)
    assert second.splits == 1.5  # animals take two latents, food one
    assert second.absorbed == pytest.approx(1 / 6, abs=0.05)  # a third of animals, no food


def test_f1_of_firing() -> None:
    on, member = torch.tensor([[1], [1], [0]]).bool(), torch.tensor([[1], [0], [1]]).bool()
    assert float(f1_scores(on, member)) == 0.5


def test_labels_with_too_few_images_are_refused() -> None:
    codes = [Codes.of_dense(torch.ones(3, 2))]
    with pytest.raises(DataError, match="needs two values with 10 images or more; 0 of 2"):
        split_levels(codes, [2], ["a", "b", "c"], ABOUT[1:4], "category")


# ---- on a store, and as commands


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A store of the toy model's activations, and an SAE nested on it by the command."""
    folder = tmp_path_factory.mktemp("nested")
    from PIL import Image

    for c, colour in enumerate(("red", "green", "blue")):
        (folder / "images" / colour).mkdir(parents=True)
        for i in range(12):
            picture = Image.new("RGB", (16, 16), colour)
            picture.putpixel((i, c), (255, 255, 255))
            picture.save(folder / "images" / colour / f"{i}.png")
    run("extract", "--model", "toy", "--site", "blocks.1", "--data", folder / "images",
        "--out", folder / "acts")  # fmt: skip
    run("matryoshka", "--acts", folder / "acts", *SHORT, "--out", folder / "sae")
    return folder / "acts", folder / "sae"


def run(*words: Any, code: int = 0) -> str:
    found = CliRunner().invoke(app, [str(word) for word in words], env={"COLUMNS": "200"})
    assert found.exit_code == code, (found.output, found.exception)
    return found.stderr if code else found.stdout


@pytest.mark.slow
@pytest.mark.parametrize("reading", ["--own", "--shared"])
def test_what_curves_show(trained: tuple[Path, Path], tmp_path: Path, reading: str) -> None:
    acts, _ = trained
    run("matryoshka", "--acts", acts, *SHORT, reading, "--out", tmp_path / "sae")
    sae = load_sae(tmp_path / "sae")
    points = progressive(sae, Store(acts))
    by_k = {p.k: p.fvu for p in points if p.prefix is None}
    assert set(by_k) == {2, 4} and max(by_k.values()) < 0.1
    assert {p.prefix for p in points if p.prefix} == set(prefixes_of(sae)[:-1])
    own = prefix_codes(sae, Store(acts), prefixes_of(sae))
    assert all(int(c.indices.max()) < b for c, b in zip(own, prefixes_of(sae), strict=True))
    assert "FVU" in draw_curves(points) and "zero-shot" not in draw_curves(points)
    assert "other SAEs" not in draw_curves(points)


@pytest.mark.slow
def test_the_commands_write_curves_and_a_tree(trained: tuple[Path, Path], tmp_path: Path) -> None:
    _, folder = trained
    rows = json.loads(run("matryoshka", "curves", folder, "--out", tmp_path / "c", "--json"))
    assert [row["k"] for row in rows if row["prefix"] is None] == [2, 4]
    assert (tmp_path / "c/curves.svg").exists()
    found = json.loads(run(
        "matryoshka", "tree", folder, "--path", "label", "--out", tmp_path / "t", "--json"
    ))  # fmt: skip
    page = (tmp_path / "t/index.html").read_text("utf-8")
    assert found["latents"] and "sprites/sheet-000.webp" in page
    assert len(found["depths"]) == len(found["splits"]) == 5


@pytest.mark.slow
def test_curves_show_other_saes_beside(trained: tuple[Path, Path], tmp_path: Path) -> None:
    acts, folder = trained
    run("sweep", "--acts", acts, "--steps", "2", "--batch-size", "8", "--expansion", "1",
        "--grid", "k=1,2", "--out", tmp_path / "topk")  # fmt: skip
    rows = json.loads(run("matryoshka", "curves", folder, "--beside", tmp_path / "topk",
                          "--out", tmp_path / "c", "--json"))  # fmt: skip
    others = [row for row in rows if row["sae"] != str(folder)]
    assert sorted(round(row["l0"]) for row in others) == [1, 2]
    drawn = (tmp_path / "c/curves.svg").read_text("utf-8")
    assert drawn.count('fill="none" stroke="#c2571a"') == 4  # two, of FVU and of cosine


@pytest.mark.slow
def test_plain_saes_have_no_levels(trained: tuple[Path, Path], tmp_path: Path) -> None:
    acts, _ = trained
    run("train", "--acts", acts, "--steps", "2", "--batch-size", "8", "--expansion", "1",
        "--k", "2", "--out", tmp_path / "plain")  # fmt: skip
    said = run("matryoshka", "tree", tmp_path / "plain", "--out", tmp_path / "t", code=1)
    assert "not nested over prefixes, so it has no levels" in said


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--acts", "a", "--out", "b", "--ks", "1.5"], "--ks takes whole numbers"),
        (["--acts", "a", "--out", "b", "--shares", "x"], "--shares takes positive numbers"),
    ],
)
def test_wrong_options_say_what_is_allowed(words: list[str], message: str) -> None:
    assert message in run("matryoshka", *words, code=1)
