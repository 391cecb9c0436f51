"""Codes of tokens as codes of images, against the dense twin."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from vision_sae.sparse import pooled
from vision_sae.sparse.codes import Codes


def codes_of(seed: int, tokens: int) -> tuple[Codes, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    dense = torch.randn(3 * tokens, 5, generator=draw)
    dense *= torch.rand(dense.shape, generator=draw) < 0.5
    return Codes.of_dense(dense), dense.view(3, tokens, 5)


@given(seed=st.integers(0, 50), tokens=st.integers(1, 4))
def test_of_the_largest_magnitude_with_its_sign(seed: int, tokens: int) -> None:
    codes, dense = codes_of(seed, tokens)
    want = dense.gather(1, dense.abs().argmax(1, keepdim=True))[:, 0]
    torch.testing.assert_close(pooled.largest(codes, tokens).to_dense(), want)


@given(seed=st.integers(0, 50), tokens=st.integers(1, 4))
def test_means_count_tokens_on_which_a_latent_is_off(seed: int, tokens: int) -> None:
    codes, dense = codes_of(seed, tokens)
    torch.testing.assert_close(pooled.mean(codes, tokens).to_dense(), dense.mean(1))
