"""The scan, factors and names on planted codes with known answers."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from vision_sae.errors import MismatchError
from vision_sae.matching import check_match
from vision_sae.measures.factors import auroc, detections, folds, labels_of
from vision_sae.measures.latents import ImageCodes, scan
from vision_sae.provenance import Provenance
from vision_sae.sae import SAE, SAEConfig
from vision_sae.store import Row, Store, StoreIndex, StoreWriter

FROM = Provenance(model="m", fingerprint="f", site="s", tokens="all", data="d")


def store_of(acts: Tensor, folder: Path) -> Store:
    b, t, d = acts.shape
    index = StoreIndex(
        provenance=FROM, dtype="float32", width=d, tokens_per_image=t, prefix_tokens=0, grid=None
    )
    writer = StoreWriter(folder, index, shard_bytes=7 * t * d * 4)
    writer.add(acts, [Row(i, f"k{i}", {"n": i}) for i in range(b)])
    writer.finish()
    return Store(folder)


def image_codes(dense: Tensor) -> ImageCodes:
    """[images latents] to ImageCodes, the obvious way."""
    start, image, value = [0], [], []
    for column in dense.T:
        order = column.argsort(descending=True, stable=True)
        order = order[column[order] > 0]
        image += order.tolist()
        value += column[order].tolist()
        start.append(len(image))
    return ImageCodes(
        torch.tensor(start), torch.tensor(image).long(), torch.tensor(value), len(dense)
    )


def test_a_scan_equals_the_dense_computation(tmp_path: Path) -> None:
    torch.manual_seed(0)
    acts = torch.randn(20, 5, 6)
    sae = SAE(SAEConfig.of(6, 12, "topk", 2)).eval()
    found = scan(sae, store_of(acts, tmp_path / "acts"))
    with torch.no_grad():
        dense = sae.encode(acts).to_dense().view(20, 5, 12)
    per_image = dense.amax(1)
    for latent in range(12):
        images, values = found.codes.of(latent)
        want = per_image[:, latent]
        assert images.tolist() == [i for i in want.argsort(descending=True).tolist() if want[i] > 0]
        assert torch.allclose(values, want[images])
    fires = (dense > 0).flatten(0, 1)
    assert torch.allclose(found.frequencies, fires.double().mean(0))
    means = dense.flatten(0, 1).sum(0) / fires.sum(0)
    assert torch.allclose(found.means[found.live].float(), means[found.live])
    assert sum(found.frequency_histogram().values()) == 12
    assert found.live == fires.any(0).nonzero()[:, 0].tolist()


def test_image_fvu_averages_to_the_whole_when_weighted(tmp_path: Path) -> None:
    torch.manual_seed(0)
    acts = torch.randn(20, 5, 6)
    found = scan(SAE(SAEConfig.of(6, 12, "topk", 2)).eval(), store_of(acts, tmp_path / "acts"))
    spread = (acts - acts.mean((0, 1))).square().sum((1, 2))
    assert float((found.image_fvu * spread).sum() / spread.sum()) == pytest.approx(
        found.metrics.fvu, rel=1e-4
    )


@pytest.mark.parametrize(("field", "words"), [("site", "site 's' against 't'"), ("model", "model")])
def test_an_sae_of_something_else_is_refused(field: str, words: str, tmp_path: Path) -> None:
    sae = SAE(SAEConfig.of(6, 12, "topk", 2))
    store = store_of(torch.randn(3, 2, 6), tmp_path / "acts")
    sae.provenance = FROM.model_copy(update={field: "s" if field == "site" else "other"})
    store.index.provenance.__dict__[field] = "t" if field == "site" else "m"
    with pytest.raises(MismatchError, match=f"do not belong together: {words}"):
        check_match(sae, store)


def test_another_width_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MismatchError, match="reads width 5, the store holds 6"):
        check_match(
            SAE(SAEConfig.of(5, 9, "topk", 2)), store_of(torch.randn(3, 2, 6), tmp_path / "a")
        )


# --- factors ---


def about_of(n: int) -> list[dict[str, Any]]:
    return [
        {"style": "ab"[i % 2], "tags": ["x"] if i < n // 4 else [], "caption": str(i)}
        for i in range(n)
    ]


def test_labels_leave_out_captions_rare_values_and_what_all_images_have() -> None:
    about = [{**a, "same": 1, "rare": i < 3} for i, a in enumerate(about_of(40))]
    assert labels_of(about).names == [
        ("rare", "False"),
        ("style", "a"),
        ("style", "b"),
        ("tags", "x"),
    ]


def slow_best(scores: Tensor, about: list[dict[str, Any]]) -> tuple[float, str, float]:
    """The largest F1 over all values and thresholds, by trying them all: (F1, value, threshold)."""
    labels, best = labels_of(about), (-1.0, "", 0.0)
    for v, (_, name) in enumerate(labels.names):
        positive = torch.zeros(len(about), dtype=torch.bool)
        positive[labels.image[labels.value == v]] = True
        for threshold in scores[scores > 0].tolist():
            fires = scores >= threshold
            f1 = 2 * float((fires & positive).sum()) / float(fires.sum() + positive.sum())
            best = max(best, (f1, name, threshold))
    return best


@given(st.integers(0, 10_000))
def test_the_best_value_and_threshold_is_the_best_of_all(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(30, generator=generator).relu()
    about = about_of(30)
    found = detections(image_codes(scores[:, None]), labels_of(about), torch.arange(30) % 3)
    if not found:
        assert not bool((scores > 0).any())
        return
    positive = torch.tensor([found[0].value in (a["style"], *a["tags"]) for a in about])
    fires = scores >= found[0].threshold
    got = 2 * float((fires & positive).sum()) / float(fires.sum() + positive.sum())
    assert got == pytest.approx(slow_best(scores, about)[0])


def test_rates_pool_the_folds_and_no_image_is_scored_by_its_own_threshold() -> None:
    """The obvious twin: for each fold, the best of the others by trying them all."""
    about = about_of(60)
    noise = torch.randn(60, generator=torch.Generator().manual_seed(1))
    scores = (noise + torch.tensor([2.0 * (a["style"] == "a") for a in about])).relu()
    fold = torch.arange(60) % 4
    hits = fired = positives = 0
    for held_out in range(4):
        rest = [i for i in range(60) if fold[i] != held_out]
        _, value, threshold = slow_best(scores[rest], [about[i] for i in rest])
        for i in (i for i in range(60) if fold[i] == held_out):
            has = value in (about[i]["style"], *about[i]["tags"])
            fires = bool(scores[i] >= threshold)
            hits, fired, positives = hits + (has and fires), fired + fires, positives + has
    (found,) = detections(image_codes(scores[:, None]), labels_of(about), fold)
    assert found.precision == pytest.approx(hits / fired)
    assert found.recall == pytest.approx(hits / positives)
    assert found.f1 == pytest.approx(2 * hits / (fired + positives))


def test_a_planted_detector_is_found() -> None:
    about = about_of(200)
    scores = torch.tensor([[float(a["style"] == "a"), float(i < 50)] for i, a in enumerate(about)])
    fold = folds([str(i) for i in range(200)])
    assert set(fold.tolist()) == set(range(5))
    one, two = detections(image_codes(scores), labels_of(about), fold)
    assert (one.factor, one.value, one.f1, one.auroc) == ("style", "a", 1.0, 1.0)
    assert (two.factor, two.value, two.precision, two.recall) == ("tags", "x", 1.0, 1.0)


@given(st.lists(st.tuples(st.integers(0, 4), st.booleans()), min_size=2, max_size=30))
def test_auroc_is_the_share_of_pairs_in_order_with_ties_half(pairs: list[tuple[int, bool]]) -> None:
    yes = [s for s, p in pairs if p]
    no = [s for s, p in pairs if not p]
    got = auroc(torch.tensor([float(s) for s, _ in pairs]), torch.tensor([p for _, p in pairs]))
    if not yes or not no:
        assert math.isnan(got)
        return
    wins = sum((a > b) + 0.5 * (a == b) for a in yes for b in no)
    assert got == pytest.approx(wins / (len(yes) * len(no)))
