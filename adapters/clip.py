"""CLIP and SigLIP models through open_clip."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vision_sae.adapter import on_device
from vision_sae.adapters.base import ModuleAdapter, Transform
from vision_sae.errors import ConfigError, DataError, UnknownName, require
from vision_sae.hooks import inference


class ClipAdapter(ModuleAdapter):
    """An open_clip model; sites are paths in it, as `visual.transformer.resblocks.4`."""

    def __init__(
        self, model: nn.Module, transform: Transform, tokenizer: Any, *, name: str
    ) -> None:
        visual: Any = model.visual
        super().__init__(model, transform, name=name, prefix_tokens=_prefix(visual))
        self.tokenizer = tokenizer

    def run(self, batch: Float[Tensor, "b c h w"]) -> Any:
        return self.model.encode_image(batch)  # type: ignore[operator]

    @property
    def logit_scale(self) -> float:
        return float(self.model.logit_scale.detach().exp())  # type: ignore[operator]

    def embed_images(self, batch: Float[Tensor, "b c h w"]) -> Float[Tensor, "b e"]:
        with inference(self.model):
            embedded = self.run(on_device(self, batch)).float()
        return torch.nn.functional.normalize(embedded, dim=-1)

    def embed_texts(self, texts: Sequence[str], batch: int = 256) -> Float[Tensor, "n e"]:
        parts, device = [], next(self.model.parameters()).device
        with inference(self.model):
            for i in range(0, len(texts), batch):
                tokens = self.tokenizer(list(texts[i : i + batch])).to(device)
                parts.append(self.model.encode_text(tokens).float())  # type: ignore[operator]
        return torch.nn.functional.normalize(torch.cat(parts), dim=-1)


def _prefix(visual: Any) -> int:
    """Tokens before the patches: timm trunks count them, open_clip's own ViT has a class token."""
    trunk = getattr(visual, "trunk", None)
    if trunk is not None:
        return int(getattr(trunk, "num_prefix_tokens", 0))
    return int(hasattr(visual, "class_embedding"))


def from_name(argument: str) -> ClipAdapter:
    """`ViT-B-32/laion2b_s34b_b79k`, `ViT-B-32/random`, `ViT-B-32/FILE`, or `local-dir:FOLDER`.

    Raises UnknownName for an architecture that open_clip does not list and ConfigError for weights
    that it does not have.
    """
    open_clip = require("open_clip", "clip")
    if argument.startswith("local-dir:"):
        return from_folder(Path(argument.removeprefix("local-dir:")))
    name, weights = argument.split("/", 1) if "/" in argument else (argument, "")
    if name not in open_clip.list_models():
        raise UnknownName("open_clip model", name, open_clip.list_models())
    tags = open_clip.list_pretrained_tags_by_model(name)
    if weights != "random" and weights not in tags and not Path(weights).is_file():
        raise ConfigError(
            f"open_clip:{name} needs weights after a slash, got {weights!r}: "
            f"{', '.join([*tags, 'random'])}, or a file"
        )
    pretrained = None if weights == "random" else weights
    return _load(name, f"open_clip:{argument}", pretrained=pretrained)


def from_folder(folder: Path, name: str = "") -> ClipAdapter:
    """A folder of open_clip_config.json and weights, as `open_clip` pushes to the hub."""
    if not (folder / "open_clip_config.json").exists():
        raise DataError(f"{folder} holds no open_clip_config.json")
    # open_clip only warns, and goes on with random weights
    if not any(p.suffix in (".safetensors", ".bin", ".pth") for p in folder.iterdir()):
        raise DataError(f"{folder} holds no weights (open_clip_model.safetensors)")
    path = f"local-dir:{folder.resolve()}"
    return _load(path, name or f"open_clip:{path}")


def _load(model_name: str, name: str, **options: Any) -> ClipAdapter:
    open_clip = require("open_clip", "clip")
    model, _, transform = open_clip.create_model_and_transforms(model_name, **options)
    return ClipAdapter(model.eval(), transform, open_clip.get_tokenizer(model_name), name=name)
