"""The embedded model: it loads as any open_clip folder does, and knows emoji it has not seen."""

from functools import cache

import pytest
import torch

from vision_sae.adapters.clip import ClipAdapter
from vision_sae.assets import emoji_canvas
from vision_sae.assets.models import FOLDER
from vision_sae.model.adapter import fingerprint, load_adapter

pytest.importorskip("open_clip")
SITE = "visual.transformer.resblocks.4"


@cache
def emoji_clip() -> ClipAdapter:
    adapter = load_adapter("emoji-clip")
    assert isinstance(adapter, ClipAdapter)
    return adapter


def test_it_is_an_open_clip_folder_like_any_other() -> None:
    same = load_adapter(f"open_clip:local-dir:{FOLDER}")
    assert emoji_clip().name == "emoji-clip"
    assert fingerprint(same.model) == fingerprint(emoji_clip().model)


@pytest.mark.slow
def test_it_names_held_out_emoji() -> None:
    """Zero-shot top-5 on the first 200 validation images among their own names."""
    model = emoji_clip()
    canvas = emoji_canvas("validation")
    rows = [canvas[i] for i in range(200)]
    names = sorted({about["name"] for _, about in rows})
    images = model.embed_images(model.prepare([image for image, _ in rows]))
    best = (images @ model.embed_texts(names).T).topk(5, dim=1).indices
    truth = torch.tensor([names.index(about["name"]) for _, about in rows])
    assert float((best == truth[:, None]).any(1).float().mean()) > 0.6
