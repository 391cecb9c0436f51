"""`vision-sae bottleneck ...`: end to end on pictures whose colours say their class."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import Result
from PIL import Image

from vision_sae import checkpoint
from vision_sae.adapters.toy import ToyAdapter
from vision_sae.data import open_data
from vision_sae.extract import extract
from vision_sae.model.adapter import fingerprint
from vision_sae.naming import Name, Naming, write_naming
from vision_sae.provenance import Provenance
from vision_sae.recipes.bottleneck import load
from vision_sae.sae import SAE, SAEConfig
from vision_sae.store import Store

Fine = Callable[..., Result]
Refused = Callable[..., str]
SITE = "blocks.0"
COLOURS = {"red": (220, 20, 20), "blue": (20, 20, 220)}


class Planted:
    """Folders of red and blue pictures with noise, and an SAE with one latent for each."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        noise = torch.Generator().manual_seed(0)
        for name, colour in COLOURS.items():
            for i in range(12):
                picture = Image.new("RGB", (16, 16), colour)
                for _ in range(20):
                    x, y, r, g, b = torch.randint(0, 255, (5,), generator=noise).tolist()
                    picture.putpixel((x % 16, y % 16), (r, g, b))
                path = folder / "images" / name / f"{i:02}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                picture.save(path)
        adapter = ToyAdapter(0)
        extract(adapter, open_data(str(folder / "images")), SITE, folder / "acts", tokens="patches")
        store = Store(folder / "acts")
        acts = store.acts(range(store.images)).mean(1)
        blue, red = acts[:12].mean(0), acts[12:].mean(0)  # the planted directions
        sae = SAE(SAEConfig.of(24, 8, "relu"), seed=0)
        with torch.no_grad():
            way = (red - blue) / (red - blue).norm()
            sae.b_enc.fill_(-100)
            sae.b_enc[[2, 5]] = 0
            sae.W_enc[2], sae.W_enc[5] = way, -way
            sae.b_dec.copy_((red + blue) / 2)
        sae.provenance = Provenance(
            model=adapter.name, fingerprint=fingerprint(adapter.model), site=SITE,
            tokens="patches", data=str(folder / "images"),
        )  # fmt: skip
        checkpoint.save(sae, folder / "sae")
        names = [Name(2, "red", 0.9, "blue", 0.5, "red"), Name(5, "blue", 0.9, "red", 0.5, "blue")]
        write_naming(folder / "sae", Naming(names, {}))
        self.data = ["--data", folder / "images"]
        self.fit = ["--model", "toy:0", "--sae", folder / "sae", *self.data]


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory, fine: Fine) -> Planted:
    some = Planted(tmp_path_factory.mktemp("bottleneck"))
    small = ["--strengths", 8, "--pool", "mean"]
    fine("bottleneck", "fit", *some.fit, "--labels", "label", *small, "--out", some.folder / "cbm")
    return some


def told(result: Result) -> Any:
    return json.loads(result.stdout)


def test_the_planted_concepts_decide_and_explain(planted: Planted, fine: Fine) -> None:
    cbm = planted.folder / "cbm"
    numbers = told(fine("bottleneck", "evaluate", cbm, *planted.data, "--json"))
    assert numbers["accuracy"] == 1.0 and numbers["images"] == 24
    assert load(cbm).head_.used == [2, 5] and load(cbm).names_ == {2: "red", 5: "blue"}
    said = told(fine("bottleneck", "predict", cbm, *planted.data, "--json"))["predictions"]
    assert [one["predicted"] for one in said] == [one["key"].split("/")[0] for one in said]
    (one,) = told(fine("bottleneck", "explain", cbm, *planted.data, "--key", "red/03", "--json"))
    parts = [c["value"] for c in one["contributions"]]
    assert one["logit"] == one["intercept"] + one["centring"] + sum(parts)
    assert {c["name"] for c in one["contributions"] if c["value"] > 0} == {"red"}
    assert "red" in fine("bottleneck", "explain", cbm, *planted.data, "--key", "red/03").stdout


def test_a_store_fits_the_same_bottleneck(planted: Planted, fine: Fine, tmp_path: Path) -> None:
    where = ["--acts", planted.folder / "acts", "--sae", planted.folder / "sae"]
    small = ["--strengths", 8, "--pool", "mean", "--labels", "label", "--json"]
    facts = told(fine("bottleneck", "fit", *where, *small, "--out", tmp_path / "cbm"))
    mine, other = load(tmp_path / "cbm"), load(planted.folder / "cbm")
    assert abs(mine.head_.W - other.head_.W).max() < 1e-4
    assert len(facts["path"]) == 8 and facts["validation"]["score"] == 1.0


def test_what_if_and_removal_change_the_outcome(
    planted: Planted, fine: Fine, tmp_path: Path
) -> None:
    cbm, key = planted.folder / "cbm", ["--key", "red/03"]
    swap = ["--set", "red=0", "--set", "blue=5"]
    (one,) = told(fine("bottleneck", "explain", cbm, *planted.data, *key, *swap, "--json"))
    assert one["flipped"] and one["after"]["predicted"] == "blue"
    out = ["--out", tmp_path / "blind", "--json"]
    assert told(fine("bottleneck", "edit", cbm, "--without", "red", *out))["removed"] == [
        {"concept": 2, "name": "red"}
    ]
    assert load(tmp_path / "blind").head_.used == [5]
    fine("bottleneck", "edit", cbm, "--like", "red", "--least", 0.99, "--out", tmp_path / "like")
    assert load(tmp_path / "like").head_.used == [5]
    keep = ["--like", "red", "--least", 0.99, "--keep", "--out", tmp_path / "keep"]
    fine("bottleneck", "edit", cbm, *keep)
    assert load(tmp_path / "keep").head_.used == [2]
    again = ["--only", "blue", "--refit", *planted.data, "--out", tmp_path / "refit"]
    fine("bottleneck", "edit", cbm, *again)
    assert load(tmp_path / "refit").head_.used == [5]
    numbers = told(fine("bottleneck", "evaluate", tmp_path / "refit", *planted.data, "--json"))
    assert numbers["accuracy"] == 1.0


def test_the_page_holds_what_it_shows(planted: Planted, fine: Fine, tmp_path: Path) -> None:
    cbm = planted.folder / "cbm"
    fine("bottleneck", "page", cbm, *planted.data, "--images", 6, "--out", tmp_path / "page")
    text = (tmp_path / "page" / "data" / "overview.js").read_text()
    data = json.loads(re.sub(r"^vsae\[\"overview\"\] = |;\n$", "", text))
    assert data["classes"] == ["blue", "red"] and len(data["rows"]) == 24
    assert [c["name"] for c in data["concepts"]] == ["red", "blue"]
    assert len(data["cards"]) == 6 and data["cards"][0]["heats"]
    # the page's own sum is the head's
    head = load(cbm).head_
    pairs = data["rows"][0][1]
    z = list(data["intercept"])
    for c in range(2):
        z[c] -= sum(one["weights"][c] * one["mean"] for one in data["concepts"])
        for n, code in zip(pairs[::2], pairs[1::2], strict=True):
            z[c] += data["concepts"][n]["weights"][c] * code
    assert len(z) == len(head.classes) and z[0] > z[1]  # blue comes first
    html = (tmp_path / "page" / "index.html").read_text()
    assert "accuracy" in html and "http" not in html.replace("http://www.w3.org/2000/svg", "")


def test_bad_input_is_one_line(planted: Planted, refused: Refused, tmp_path: Path) -> None:
    cbm, out = planted.folder / "cbm", ["--out", tmp_path / "out"]
    fit = ["bottleneck", "fit", *planted.fit, *out, "--labels"]
    assert "no label of the images 'kind'; there are: label" in refused(*fit, "kind")
    table = tmp_path / "labels.csv"
    table.write_text("key,label\nred/00,x\n")
    assert "23 of 24 images have no label (blue/00, blue/01" in refused(*fit, table)
    assert "toy:1" in refused(*fit, "label", "--model", "toy:1")
    assert "holds a bottleneck" in refused(*fit, "label", "--out", cbm)
    edit = ["bottleneck", "edit", cbm, *out]
    assert "no concept 'green'" in refused(*edit, "--without", "green")
    assert "no concept 'like" in refused(*edit, "--like", "red", "--least", 1.5)
    assert "say what to change" in refused(*edit)
    ask = ["bottleneck", "explain", cbm, *planted.data, "--key"]
    assert "no image 'red/99'; did you mean red/" in refused(*ask, "red/99")
    assert "--set takes CONCEPT=NUMBER" in refused(*ask, "red/03", "--set", "red")
    assert "name the images by --data" in refused("bottleneck", "predict", cbm)
    assert "holds no bottleneck" in refused("bottleneck", "predict", tmp_path, *planted.data)
