"""`compare` from Python: what it measures on what, what it keeps, what it refuses."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from vision_sae import SAE, SAEConfig, save
from vision_sae.errors import ConfigError, DataError, MismatchError, UnknownName
from vision_sae.interop import convert
from vision_sae.jobs import compare, train_store, train_sweep
from vision_sae.jobs.comparison import Comparison, count_of
from vision_sae.jobs.subjects import short_names
from vision_sae.measures import suite
from vision_sae.provenance import Provenance
from vision_sae.report.comparison import payload, write_comparison
from vision_sae.store import Row, Store, StoreIndex, StoreWriter

D = 8
SMALL = {"steps": 8, "batch_size": 16, "expansion": 2}


def make_store(folder: Path, seed: int = 0, site: str = "s", images: int = 60, d: int = D) -> Store:
    index = StoreIndex(
        provenance=Provenance(model="m", fingerprint="f", site=site, tokens="all", data="d"),
        dtype="float32", width=d, tokens_per_image=4, prefix_tokens=0, grid=(2, 2),
    )  # fmt: skip
    writer = StoreWriter(folder, index)
    acts = torch.randn(images, 4, d, generator=torch.Generator().manual_seed(seed))
    about = [{"label": "ab"[i % 2]} for i in range(images)]
    writer.add(acts, [Row(i, f"k{seed}-{i}", about[i]) for i in range(images)])
    writer.finish()
    return Store(folder)


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """acts, held-out, and a sweep of two seeds."""
    folder = tmp_path_factory.mktemp("comparison")
    store = make_store(folder / "acts")
    make_store(folder / "held-out", seed=1)
    train_sweep(store, folder / "sweep", {"k": [2], "seed": [0, 1]}, **SMALL)
    return folder


@pytest.fixture(scope="module")
def found(room: Path) -> Comparison:
    return compare(
        [room / "sweep"], room / "acts", validation=room / "held-out",
        baselines=["pca", "random:2"], embeddings=room / "held-out",
    )  # fmt: skip


def test_a_sweep_stands_for_its_members_and_baselines_follow(found: Comparison) -> None:
    names = [entry.name for entry in found.entries]
    assert names == ["k2-seed0", "k2-seed1", "pca", "random:2"]
    assert [e.latents for e in found.entries] == [16, 16, 16, 16]
    assert [e.kind for e in found.entries] == ["sae", "sae", "baseline", "baseline"]


def test_scores_are_of_the_held_out_store(found: Comparison) -> None:
    first = found.entries[0].scores
    assert first["l0"].value == 2
    assert (first["fvu"].n, first["probe_agreement"].n) == (240, 60)
    assert found.facts["measured on"] == "60 images of d"
    assert found.facts["classes"] == "label"
    assert found.entries[2].scores["fvu"].value == pytest.approx(0, abs=1e-4)


def test_seeds_of_one_setting_are_compared_and_the_others_say_why_not(found: Comparison) -> None:
    one, two, pca, _ = found.entries
    assert one.group == two.group != pca.group
    assert 0 < one.scores["stability"].value < 1
    assert one.scores["stability"].value == pytest.approx(two.scores["stability"].value)
    assert pca.scores["stability"].reason == "only one seed of it was given"


def test_what_cannot_be_measured_says_why_on_the_page_too(
    found: Comparison, tmp_path: Path
) -> None:
    assert "no latent has 50 maps" in str(found.entries[0].scores["morans_i"].reason)
    assert "no model to splice" in str(found.entries[0].scores["zero_shot"].reason)
    page = write_comparison(found, tmp_path / "page").read_text()
    assert "no latent has 50 maps" in page
    assert "NaN" not in json.dumps(payload(found), allow_nan=True)
    again = json.loads(json.dumps(found.as_dict(), allow_nan=False))
    assert again["entries"][0]["scores"]["zero_shot"]["value"] is None


def test_an_sae_of_another_library_is_measured_like_its_original(
    room: Path, tmp_path: Path
) -> None:
    convert(room / "sweep" / "k2-seed0", tmp_path / "theirs", to="saelens")
    found = compare(
        [room / "sweep" / "k2-seed0", tmp_path / "theirs"], room / "acts",
        validation=room / "held-out",
    )  # fmt: skip
    ours, theirs = found.entries
    assert (theirs.name, theirs.family, theirs.latents) == ("theirs", ours.family, ours.latents)
    for name in ("fvu", "cosine", "l0", "cknna", "nonorthogonality", "probe_agreement"):
        assert theirs.scores[name].value == pytest.approx(ours.scores[name].value), name


def test_without_a_held_out_store_a_fifth_is_held_out(room: Path) -> None:
    found = compare([room / "sweep" / "k2-seed0"], room / "acts", measures=["reconstruction"])
    assert "may have been trained on them" in found.facts["measured on"]
    rows = found.entries[0].scores["fvu"].n
    assert rows is not None and 4 <= rows < 120 and rows % 4 == 0


def test_images_are_spread_and_counted(room: Path) -> None:
    found = compare(
        [room / "sweep"], room / "acts", validation=room / "held-out", images=10,
        measures=["reconstruction"],
    )  # fmt: skip
    assert found.entries[0].scores["fvu"].n == 40


def test_what_was_measured_is_not_measured_again(
    room: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(**options: Any) -> tuple[Comparison, int]:
        done = 0

        def counted(case: Any, measure: Any) -> Any:
            nonlocal done
            done += 1
            return original(case, measure)

        original = suite.measured
        with monkeypatch.context() as patch:
            patch.setattr(suite, "measured", counted)
            result = compare(
                [room / "sweep"], room / "acts", validation=room / "held-out",
                baselines=["pca"], measures=["reconstruction", "cknna"], cache=tmp_path, **options,
            )  # fmt: skip
        return result, done

    first, measured = run()
    assert measured == 6
    again, measured = run()
    assert measured == 0
    assert again.as_dict() == first.as_dict()
    fewer, measured = run(images=20)
    assert measured == 6  # other images: other scores
    next(tmp_path.glob("*.json")).write_text("{")
    assert run()[1] <= 1  # a broken file is measured again


def test_progress_tells_as_often_as_it_said(room: Path) -> None:
    told: list[str] = []
    compare(
        [room / "sweep"], room / "acts", baselines=["pca"], measures=["geometry"],
        tell=lambda subject, measure: told.append(f"{subject} {measure}"),
    )  # fmt: skip
    assert told == ["k2-seed0 geometry", "k2-seed1 geometry", "pca geometry"]
    assert count_of([room / "sweep"], ["pca"], ["geometry"]) == 3


def test_members_that_are_still_trained_are_left_out_by_name(room: Path, tmp_path: Path) -> None:
    shutil.copytree(room / "sweep", tmp_path / "sweep")
    index = json.loads((tmp_path / "sweep" / "index.json").read_text())
    index["members"][1]["finished"] = False
    (tmp_path / "sweep" / "index.json").write_text(json.dumps(index))
    found = compare([tmp_path / "sweep"], room / "acts", measures=["geometry"])
    assert [entry.name for entry in found.entries] == ["k2-seed0"]
    assert found.facts["left out"] == f"unfinished members of sweeps: {tmp_path}/sweep/k2-seed1"
    index["members"][0]["finished"] = False
    (tmp_path / "sweep" / "index.json").write_text(json.dumps(index))
    with pytest.raises(ConfigError, match="has no finished member yet"):
        compare([tmp_path / "sweep"], room / "acts")


def test_names_are_as_short_as_tells_them_apart() -> None:
    paths = [Path("/x/a/sae"), Path("/x/b/sae")]
    assert list(short_names(paths).values()) == ["a/sae", "b/sae"]


Refusal = Callable[[Path, Path], Any]


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda room, new: compare([], room / "acts"), ConfigError, "nothing to compare: name an"),
        (
            lambda room, new: compare([room / "sweep"] * 2, room / "acts"),
            ConfigError,
            "named twice: .*k2-seed0",
        ),
        (
            lambda room, new: compare([room / "sweep"], room / "acts", measures=["fuv"]),
            UnknownName,
            "no measure 'fuv'",
        ),
        (
            lambda room, new: compare([room / "sweep"], room / "acts", label="colour"),
            UnknownName,
            "no label 'colour'; there are: label",
        ),
        (
            lambda room, new: compare([], room / "acts", baselines=["pcaa"]),
            UnknownName,
            "no baseline 'pcaa'",
        ),
        (
            lambda room, new: compare(
                [room / "sweep"], room / "acts", validation=make_store(new, site="t")
            ),
            MismatchError,
            "cannot measure SAEs of .*: site 's' against 't'",
        ),
        (
            lambda room, new: compare(
                [room / "sweep"], room / "acts", embeddings=make_store(new, seed=7)
            ),
            DataError,
            "lacks .* of the .* images that are measured, such as 'k0-",
        ),
    ],
)
def test_comparisons_that_cannot_be(
    room: Path, tmp_path: Path, call: Refusal, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        call(room, tmp_path / "new")


def test_saes_of_different_sites_are_refused_by_name(room: Path, tmp_path: Path) -> None:
    other = make_store(tmp_path / "acts", site="elsewhere")
    train_store(other, tmp_path / "stranger", k=2, **SMALL)
    with pytest.raises(MismatchError, match="stranger cannot be compared here: .*'elsewhere'"):
        compare([room / "sweep", tmp_path / "stranger"], room / "acts")


def test_transcoders_are_refused(room: Path, tmp_path: Path) -> None:
    save(SAE(SAEConfig.of(D, 16, "topk", 2, d_out=4)), tmp_path / "transcoder")
    with pytest.raises(DataError, match="transcoder is a transcoder"):
        compare([tmp_path / "transcoder"], room / "acts")
