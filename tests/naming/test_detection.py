"""Names as detectors: fast AUROC tables against pair counting, and too few images."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import normalize

from vision_sae.measures.factors import auroc
from vision_sae.measures.latents import ImageCodes, image_codes
from vision_sae.naming import (
    best_detecting,
    carriers,
    check_known,
    detect,
    detection_table,
    firing,
    restricted,
)
from vision_sae.sparse.codes import Codes


def codes_of(dense: Tensor) -> ImageCodes:
    """[images latents] by latent."""
    return image_codes(Codes.of_dense(dense), 1)


def planted(seed: int, images: int = 40) -> tuple[Tensor, Tensor, Tensor]:
    """(codes [images latents], image and text embeddings of whole numbers: many equal products)."""
    generator = torch.Generator().manual_seed(seed)
    dense = torch.randn(images, 6, generator=generator).sub(0.5).relu()
    corners, texts = (torch.randint(-1, 2, (n, 3), generator=generator) for n in (images, 6))
    return dense, corners.float(), texts.float()


@settings(max_examples=25)
@given(st.integers(0, 10_000))
def test_the_table_is_pair_counting_latent_by_latent(seed: int) -> None:
    dense, images, texts = planted(seed)
    found = detection_table(texts, images, firing(codes_of(dense), range(6)))
    assert found.shape == (6, 6)
    for latent in range(6):
        for word in range(6):
            slow = auroc(images @ texts[word], dense[:, latent] > 0)
            assert float(found[latent, word]) == pytest.approx(slow, nan_ok=True)


@settings(max_examples=25)
@given(st.integers(0, 10_000))
def test_each_own_text_is_the_tables_diagonal(seed: int) -> None:
    dense, images, texts = planted(seed)
    fires = firing(codes_of(dense), range(6))
    table = detection_table(texts, images, fires)
    for latent, tested in enumerate(detect(texts, images, fires)):
        assert tested.positives == int((dense[:, latent] > 0).sum()) and tested.images == 40
        if tested.auroc is not None:
            assert tested.auroc == pytest.approx(float(table[latent, latent]))


def test_too_few_images_say_why() -> None:
    dense = torch.zeros(20, 3)
    dense[:4, 0], dense[:17, 1], dense[:5, 2] = 1, 1, 1
    images = normalize(torch.randn(20, 3, generator=torch.Generator().manual_seed(0)), dim=1)
    few, all_but, enough = detect(torch.eye(3), images, firing(codes_of(dense), range(3)))
    assert few.auroc is None and few.untested == "it fires on 4 of 20 held-out images, 5 are needed"
    assert all_but.untested == "it is silent on 3 of 20 held-out images, 5 are needed"
    assert enough.auroc is not None and enough.untested == ""


def test_without_held_out_images_nothing_is_tested() -> None:
    codes = restricted(codes_of(torch.ones(4, 2)), [])
    found = detect(torch.eye(2), torch.empty(0, 2), firing(codes, [0, 1]))
    assert [t.untested for t in found] == ["it fires on 0 of 0 held-out images, 5 are needed"] * 2


def test_firing_can_ask_for_strong_activations() -> None:
    dense = torch.tensor([[4.0, 0.0], [1.0, 0.0], [3.0, 2.0], [0.0, 0.0]])
    codes = codes_of(dense)
    assert torch.equal(firing(codes, [0, 1]).to_dense(), (dense > 0).T.float())
    assert firing(codes, [0], above=0.5).to_dense().tolist() == [[1, 0, 1, 0]]


@given(st.integers(0, 1000), st.sets(st.integers(0, 29), min_size=1))
def test_restricted_codes_are_those_of_the_chosen_images(seed: int, chosen: set[int]) -> None:
    dense = torch.randn(30, 5, generator=torch.Generator().manual_seed(seed)).relu()
    some = sorted(chosen)
    found, expected = restricted(codes_of(dense), some), codes_of(dense[some])
    assert found.images == len(some) and found.live == expected.live
    for latent in range(5):
        for mine, theirs in zip(found.of(latent), expected.of(latent), strict=True):
            assert torch.equal(mine, theirs)


def test_the_best_detecting_candidate_is_taken_and_no_other_word() -> None:
    kind = torch.arange(30) % 3
    images, texts = torch.eye(3)[kind], torch.eye(3)
    fires = firing(codes_of((kind == 1).float()[:, None]), [0])
    assert best_detecting(torch.tensor([[0, 1, 2]]), texts, images, fires).tolist() == [1]
    assert best_detecting(torch.tensor([[2, 0]]), texts, images, fires).tolist() == [2]


# --- against what is known of the images ---

ABOUT = [
    {"name": "clapping hands", "category": "people-body", "keywords": ["Bravo"], "caption": "x"},
    {"name": "red heart", "category": "smileys_emotion", "caption": "clapping"},
]


@pytest.mark.parametrize(
    ("word", "images"),
    [
        ("clapping hands", [0]), ("hands", [0]), ("body", [0]), ("BRAVO", [0]), ("heart", [1]),
        ("emotion", [1]), ("hand", []), ("hands clapping", []), ("x", []),
    ],
)  # fmt: skip
def test_images_carry_the_words_of_their_facts(word: str, images: list[int]) -> None:
    assert carriers(ABOUT, [word])[word].tolist() == images


def test_a_name_is_right_when_half_of_the_latents_images_carry_it() -> None:
    about = [{"name": "dog" if i < 6 else "cat"} for i in range(20)]
    dense = torch.zeros(20, 4)
    dense[:8, 0], dense[4:14, 1], dense[:3, 2], dense[:8, 3] = 1, 1, 1, 1
    fires = firing(codes_of(dense), range(4))
    right, wrong, few, unheard = check_known(["dog", "dog", "dog", "zebra"], about, fires)
    assert (right.carried, right.found, right.verdict) == (0.75, 1.0, "right")
    assert (wrong.carried, wrong.found) == (pytest.approx(0.2), pytest.approx(1 / 3))
    assert wrong.verdict == "wrong" and few.verdict is None and unheard.verdict is None
