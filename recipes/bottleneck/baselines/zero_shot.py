"""Zero-shot: the class whose text lies nearest to the image."""

from collections.abc import Sequence

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from vision_sae.errors import MismatchError


def zero_shot(
    images: Float[Tensor, "n e"], texts: Float[Tensor, "c e"], classes: Sequence[str]
) -> list[str]:
    """The class of largest cosine for each image. Raises MismatchError for other counts."""
    if len(texts) != len(classes) or images.shape[1] != texts.shape[1]:
        raise MismatchError(
            f"{len(texts)} texts of width {texts.shape[1]} for {len(classes)} classes and images "
            f"of width {images.shape[1]}"
        )
    cosine = F.normalize(images, dim=1) @ F.normalize(texts, dim=1).T
    return [classes[i] for i in cosine.argmax(1).tolist()]
