"""Labels: found, matched, turned into targets, split by hash."""

from pathlib import Path

import numpy as np
import pytest

from vision_sae.errors import DataError, UnknownName
from vision_sae.recipes.bottleneck.labels import (
    held_out,
    read_labels,
    targets_for,
    targets_of,
)

KEYS = ["a", "b", "c"]


def test_labels_come_from_what_the_data_knows_and_lists_are_several() -> None:
    about = [{"kind": "x", "tags": ["p", "q"]}, {"kind": "y", "tags": []}, {"kind": 3, "tags": "p"}]
    assert read_labels("kind", KEYS, about) == ["x", "y", "3"]
    assert read_labels("tags", KEYS, about) == [["p", "q"], [], ["p"]]
    with pytest.raises(UnknownName, match="no label of the images 'knd'; did you mean kind"):
        read_labels("knd", KEYS, about)
    with pytest.raises(DataError, match="2 of 3 images have no 'kind': b, c"):
        read_labels("kind", KEYS, [{"kind": "x"}, {}, {"kind": ""}])


def test_a_table_gives_labels_by_key(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    table = tmp_path / "labels.csv"
    table.write_text("key,label\nc,x\na,y\nb,x\nz,y\n")
    assert read_labels(str(table), KEYS, [{}] * 3) == ["y", "x", "x"]
    assert "1 labels of no image: z" in caplog.text
    table.write_text("key,label\nc,x\na,y\nb,x\nb,y\n")
    assert read_labels(str(table), KEYS, [{}] * 3) == [["y"], ["x", "y"], ["x"]]


def test_a_table_that_does_not_match_is_refused_with_counts_and_examples(tmp_path: Path) -> None:
    table = tmp_path / "labels.csv"
    table.write_text("key,label\na,x\nz,y\nw,y\n")
    with pytest.raises(DataError, match=r"2 of 3 images have no label \(b, c\), 2 of 3 labels no"):
        read_labels(str(table), KEYS, [{}] * 3)
    table.write_text("image,class\na,x\n")
    with pytest.raises(DataError, match="needs the columns key and label; it has image, class"):
        read_labels(str(table), KEYS, [{}] * 3)
    with pytest.raises(DataError, match="no table of labels"):
        read_labels(str(tmp_path / "none.csv"), KEYS, [{}] * 3)


def test_what_cannot_be_fitted_is_refused() -> None:
    with pytest.raises(DataError, match="2 labels for 3 images"):
        targets_of(["x", "y"], 3)
    with pytest.raises(DataError, match="needs two classes or more; all labels are x"):
        targets_of(["x", "x"], 2)
    with pytest.raises(DataError, match="1 of 2 classes have one example.*: rare"):
        targets_of(["x", "x", "rare"], 3)
    with pytest.raises(DataError, match="every image has p"):
        targets_of([["p", "q"], ["p", "q"], ["p"]], 3)


def test_classes_that_fitting_did_not_see_are_named() -> None:
    with pytest.raises(DataError, match=r"1 classes were not seen in fitting: z \(2 images\); it"):
        targets_for(["x", "z", "z"], 3, ["x", "y"], False)


def test_a_split_is_by_hash_by_class_and_keeps_groups_together() -> None:
    y = ["x"] * 40 + ["y"] * 20 + ["rare"] * 2
    targets = targets_of(y, 62)
    names = [f"k{i}" for i in range(62)]
    mask = held_out(names, targets, 0.25)
    assert targets.Y[mask].sum(0).tolist() == [0, 10, 5]  # rare, x, y
    order = np.random.default_rng(0).permutation(62)
    shuffled = held_out([names[i] for i in order], targets_of([y[i] for i in order], 62), 0.25)
    assert (shuffled == mask[order]).all()
    groups = [i // 4 for i in range(62)]
    together = held_out(names, targets, 0.25, groups)
    assert 10 <= together.sum() <= 20
    assert all(len(set(together[np.array(groups) == g])) == 1 for g in set(groups))


def test_every_class_keeps_an_example_to_fit() -> None:
    y = [["p", "q"] if i % 7 == 0 else ["p"] if i % 2 else [] for i in range(30)]
    targets = targets_of(y, 30)
    for seed in range(20):
        mask = held_out([f"{seed}-{i}" for i in range(30)], targets, 0.8)
        assert (targets.Y[~mask].sum(0) > 0).all()
