"""Which values are asked for, and what is left out, by name."""

from typing import Any

import pytest
import torch

from vision_sae.errors import DataError, UnknownName
from vision_sae.measures.factors import labels_of
from vision_sae.measures.labelled.task import Task, properties, task

Rows = list[dict[str, Any]]


def test_lists_and_names_of_single_images_are_no_factors_unless_asked_for(about: Rows) -> None:
    more = [
        {**row, "tags": ["t"] if i % 2 else [], "id": str(i // 2)} for i, row in enumerate(about)
    ]
    assert {f for f, _ in properties(more).names} == {"kind", "style", "rare"}
    assert properties(more, factors=["tags"]).names == [("tags", "t")]


def test_conjunctions_are_values_too(about: Rows) -> None:
    labels = properties(about, factors=["rare"], cross=[("kind", "style")])
    assert ("kind & style", "a & x") in labels.names
    assert len(labels.names) == 1 + 12


def test_a_factor_that_no_image_has_is_refused(about: Rows) -> None:
    with pytest.raises(UnknownName, match="no factor 'sort'.*kind, rare, style"):
        properties(about, factors=["sort"])


def test_values_that_cannot_be_tested_are_named() -> None:
    rows = [{"f": "a"} if i < 20 else {"f": "b"} for i in range(40)]
    rows += [{"f": "c"}] * 6
    test = torch.arange(46) % 2 == 0
    test[:20] = False
    found = task(labels_of(rows, least=1), test, least=4)
    assert found.names == [("f", "b")]
    assert found.left_out == {"f=a": "no test image", "f=c": "3 train images, 4 needed"}
    with pytest.raises(DataError, match="none of 3 factor values has 30 train images"):
        task(labels_of(rows, least=1), test, least=30)
    with pytest.raises(DataError, match="split is of 3 images, the labels of 46"):
        task(labels_of(rows, least=1), test[:3])


def test_classes_are_those_of_the_columns(known: Task) -> None:
    classes = known.classes("kind")
    for number, column in enumerate(known.columns("kind")):
        assert torch.equal(classes == number, known.members[:, column])
    assert set(known.classes("rare").tolist()) == {-1, 0}


def test_classes_need_one_value_per_image() -> None:
    rows = [{"f": ["a", "b"]} if i % 2 else {"f": ["a"] if i % 4 else []} for i in range(40)]
    found = task(labels_of(rows), torch.arange(40) % 5 == 0)
    with pytest.raises(DataError, match="several values of f"):
        found.classes("f")
