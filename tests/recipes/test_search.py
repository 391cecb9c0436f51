"""Search by concepts: exact against the obvious dense twin, and as commands."""

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from vision_sae import SAE, SAEConfig, Store, save
from vision_sae.cli.app import app
from vision_sae.errors import ConfigError, DataError, MismatchError, OutputExists, UnknownName
from vision_sae.naming import Name
from vision_sae.provenance import Provenance
from vision_sae.recipes.search import Index, Query, build
from vision_sae.recipes.search.cli import in_words, latents_of, pictured, query_of
from vision_sae.recipes.search.index import FILE
from vision_sae.recipes.search.keys import Keys, key_arrays
from vision_sae.recipes.search.writing import write
from vision_sae.sparse.codes import Codes
from vision_sae.store import Row, StoreIndex, StoreWriter


def dense(seed: int = 0, n: int = 12, s: int = 9) -> torch.Tensor:
    draw = torch.Generator().manual_seed(seed)
    values = torch.rand(n, s, generator=draw)
    return values * (torch.rand(n, s, generator=draw) < 0.3)


def stored(folder: Path, x: torch.Tensor) -> Store:
    index = StoreIndex(
        provenance=Provenance(model="m", fingerprint="f", site="s", tokens="all", data="d"),
        dtype="float32", width=x.shape[2], tokens_per_image=x.shape[1], prefix_tokens=0, grid=None,
    )  # fmt: skip
    writer = StoreWriter(folder, index)
    writer.add(x, [Row(i, f"k{i}", {}) for i in range(len(x))])
    writer.finish()
    return Store(folder)


def indexed(folder: Path, rows: torch.Tensor) -> Index:
    keys = [f"image-{i}" for i in range(len(rows))]
    return write(Codes.of_dense(rows), keys, folder, overwrite=True)


@given(seed=st.integers(0, 50))
def test_neighbours_are_those_of_the_dense_cosine(
    seed: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    rows = dense(seed)
    index = indexed(tmp_path_factory.mktemp("index"), rows)
    first = int(rows.abs().sum(1).argmax())
    want = torch.cosine_similarity(rows[[first]], rows)
    hits = index.nearest(index.codes_of(first), top=len(rows))
    assert hits[0].number == first and hits[0].score == pytest.approx(1)
    assert {hit.number for hit in hits} == set(want.nonzero()[:, 0].tolist())
    assert [hit.score for hit in hits] == pytest.approx([float(want[h.number]) for h in hits])
    for hit in hits:
        assert sum(part for _, part in hit.shared) == pytest.approx(hit.score)


def test_what_two_images_share_and_do_not(tmp_path: Path) -> None:
    index = indexed(tmp_path / "i", torch.tensor([[3.0, 4, 0, 0], [3, 0, 4, 0], [0, 0, 0, 1]]))
    (hit,) = index.nearest(index.codes_of("image-0"), leave_out=[0])
    assert hit.key == "image-1" and hit.score == pytest.approx(9 / 25)
    assert [latent for latent, _ in hit.shared] == [0]
    assert (hit.only_query, hit.only_hit) == ([1], [2])


def test_plus_and_minus_a_concept(tmp_path: Path) -> None:
    index = indexed(tmp_path / "i", torch.tensor([[3.0, 4, 0], [3, 0, 2], [0, 0, 4]]))
    names = {2: Name(2, "heart", 0.5, "sign", 0.1), 1: Name(1, "pizza", 0.5, "pie", 0.1)}
    query = query_of(index, "image-0", ["heart"], ["pizza"], names)
    assert query.codes == {0: 3.0, 2: 3.0}  # typically 3 where it fires
    assert index.nearest(query)[0].key == "image-1"
    assert query_of(index, None, ["2=7"], [], {}).codes == {2: 7.0}


def test_bad_queries_say_what_is_wrong(tmp_path: Path) -> None:
    index = indexed(tmp_path / "i", dense())
    with pytest.raises(ConfigError, match="search needs --key, --plus or both"):
        query_of(index, None, [], ["x"], {})
    with pytest.raises(UnknownName, match=r"image 'image-99'.*image-9"):
        index.codes_of("image-99")
    with pytest.raises(UnknownName, match="concept 'dog'"):
        latents_of("dog", {0: Name(0, "dogs", 0.5, "cat", 0.1)})
    with pytest.raises(DataError, match="no active latent"):
        index.nearest(Query({}))
    with pytest.raises(DataError, match=r"latents \[99\] are not among the 9"):
        index.nearest(Query({99: 1.0}))
    with pytest.raises(DataError, match="is no index of codes"):
        Index(tmp_path)
    with pytest.raises(OutputExists):
        write(Codes.of_dense(dense()), [str(i) for i in range(12)], tmp_path / "i")


@pytest.mark.slow
def test_the_commands(tmp_path: Path) -> None:
    from PIL import Image

    for c, colour in enumerate(("red", "green", "blue")):
        (tmp_path / "images" / colour).mkdir(parents=True)
        for i in range(4):
            picture = Image.new("RGB", (16, 16), colour)
            picture.putpixel((i, c), (255, 255, 255))
            picture.save(tmp_path / "images" / colour / f"{i}.png")
    runner, acts = CliRunner(), tmp_path / "acts"
    words = ["extract", "--model", "toy", "--site", "blocks.1", "--data", tmp_path / "images"]
    assert runner.invoke(app, [*map(str, words), "--out", str(acts)]).exit_code == 0
    sae = SAE(SAEConfig.of(Store(acts).width, 32, k=4))
    save(sae, tmp_path / "sae")
    words = ["search", "build", tmp_path / "sae", "--acts", acts, "--out", tmp_path / "index"]
    assert runner.invoke(app, [*map(str, words)]).exit_code == 0
    index = Index(tmp_path / "index")
    assert list(index.keys) == Store(acts).keys
    key = index.keys[0]
    found = runner.invoke(
        app, ["search", "find", str(tmp_path / "index"), "--key", key, "--top", "3", "--json"]
    )
    hits = json.loads(found.stdout)
    assert len(hits) == 3 and key not in {hit["key"] for hit in hits}
    words = ["search", "find", tmp_path / "index", "--key", key, "--out", tmp_path / "page"]
    assert runner.invoke(app, [*map(str, words)]).exit_code == 0
    page = (tmp_path / "page" / "index.html").read_text()
    assert f"like {key}" in page and all(hit["key"] in page for hit in hits)
    assert list((tmp_path / "page" / "sprites").glob("*.webp"))
    again = build(sae, Store(acts), tmp_path / "again")
    assert again.codes_of(key) == index.codes_of(key)


@given(names=st.lists(st.text(max_size=4), unique=True))
def test_keys_are_found_as_in_a_list(names: list[str]) -> None:
    arrays = key_arrays(names)
    keys = Keys(arrays["key_bytes"], arrays["key_start"], arrays["key_order"])
    assert list(keys) == names
    assert [keys.number(name) for name in names] == list(range(len(names)))
    with pytest.raises(UnknownName):
        keys.number("longer")


def test_an_open_index_has_read_none_of_its_arrays(tmp_path: Path) -> None:
    index = indexed(tmp_path / "i", dense())
    first = index.codes_of(0)
    with (tmp_path / "i" / FILE).open("r+b") as file:  # what a copy would not see
        size = len(file.read())
        file.seek(0)
        header = 8 + int.from_bytes(file.read(8), "little")
        file.seek(header)
        file.write(bytes(size - header))
    assert first.codes and not index.codes_of(0).codes


def test_an_index_is_of_one_site(tmp_path: Path) -> None:
    sae = SAE(SAEConfig.of(5, 8, k=2))
    with pytest.raises(MismatchError, match="the SAE reads width 5, the store holds 3"):
        build(sae, stored(tmp_path / "acts", torch.randn(4, 1, 3)), tmp_path / "i")


def test_pictures_are_those_of_the_indexed_store(tmp_path: Path) -> None:
    sae, store = SAE(SAEConfig.of(3, 8, k=2)), stored(tmp_path / "acts", torch.randn(4, 1, 3))
    index = build(sae, store, tmp_path / "i")
    assert pictured(index, None).keys == store.keys
    stored(tmp_path / "other", torch.randn(5, 1, 3))
    with pytest.raises(DataError, match="other holds other images than the index"):
        pictured(index, tmp_path / "other")
    with pytest.raises(DataError, match="are gone; pass --acts"):
        pictured(indexed(tmp_path / "j", dense()), None)


def test_a_query_in_words() -> None:
    assert in_words("a/B", ["heart", "17"], ["pizza"]) == "like a/B, with heart, 17, without pizza"
