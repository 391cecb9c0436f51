"""CLIP and SigLIP models through open_clip: their images; `clip_text` has their texts."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vision_sae.adapters.base import ModuleAdapter
from vision_sae.adapters.loading import FAILURES, first_line
from vision_sae.adapters.pictures import Transform
from vision_sae.adapters.texts import Tokenize, on_first_use
from vision_sae.adapters.timm_models import prefix_of
from vision_sae.errors import ConfigError, DataError, UnknownName, require
from vision_sae.model.adapter import on_device
from vision_sae.model.hooks import inference


class ClipAdapter(ModuleAdapter):
    """An open_clip model; sites are paths in it.

    `visual.transformer.resblocks.4` is a block of open_clip's own ViT, `visual.ln_post` its tokens
    before the projection, `visual.trunk.blocks.4` a block of a ViT from timm (SigLIP, EVA),
    `visual.trunk.stages.2` a stage of a ConvNeXt, `visual.layer3` one of a ResNet; `visual` itself
    gives the projected embedding of every one of them.
    """

    def __init__(
        self, model: nn.Module, transform: Transform, tokenizer: Tokenize, *, name: str
    ) -> None:
        visual: Any = model.visual
        super().__init__(model, transform, name=name, **_prefix(visual))
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


def _prefix(visual: Any) -> dict[str, int]:
    """Tokens before the patches: timm trunks count them, open_clip's own ViT has a class token."""
    trunk = getattr(visual, "trunk", None)
    if trunk is not None:
        return prefix_of(trunk)
    return {"prefix_tokens": int(hasattr(visual, "class_embedding"))}


class Loaded(NamedTuple):
    model: nn.Module
    transform: Transform
    tokenizer: Tokenize


def from_name(argument: str) -> ClipAdapter:
    """`ViT-B-32/laion2b_s34b_b79k`, `ViT-B-32/random`, `ViT-B-32/FILE`, or a model's own folder.

    The last as `local-dir:FOLDER` or `hf-hub:OWNER/NAME`. Raises UnknownName for an architecture
    that open_clip does not list, ConfigError for weights that it does not have, and DataError for
    files that cannot be had or do not fit.
    """
    return ClipAdapter(*load(argument, "open_clip"), name=full_name(argument, "open_clip"))


def from_folder(folder: Path, name: str = "") -> ClipAdapter:
    """A folder of open_clip_config.json and weights, as `open_clip` pushes to the hub."""
    argument = f"local-dir:{folder}"
    name = name or full_name(argument, "open_clip")
    return ClipAdapter(*load(argument, "open_clip"), name=name)


def full_name(argument: str, plugin: str) -> str:
    """What the adapter remembers: a folder by its whole path."""
    if argument.startswith("local-dir:"):
        argument = f"local-dir:{Path(argument.removeprefix('local-dir:')).resolve()}"
    return f"{plugin}:{argument}"


def load(argument: str, plugin: str) -> Loaded:
    """The model that an argument names; raises what `from_name` says."""
    open_clip = require("open_clip", "clip")
    if argument.startswith("local-dir:"):
        return _load_folder(Path(argument.removeprefix("local-dir:")), plugin)
    if argument.startswith("hf-hub:"):
        return _load(argument, f"{plugin}:{argument}", None)
    name, weights = argument.split("/", 1) if "/" in argument else (argument, "")
    if name not in open_clip.list_models():
        raise UnknownName("open_clip model", name, open_clip.list_models())
    tags = open_clip.list_pretrained_tags_by_model(name)
    if weights != "random" and weights not in tags and not Path(weights).is_file():
        raise ConfigError(
            f"{plugin}:{name} needs weights after a slash, got {weights!r}: "
            f"{', '.join([*tags, 'random'])}, or a file"
        )
    return _load(name, f"{plugin}:{argument}", None if weights == "random" else weights)


def _load_folder(folder: Path, plugin: str) -> Loaded:
    if not (folder / "open_clip_config.json").exists():
        raise DataError(f"{folder} holds no open_clip_config.json")
    # open_clip only warns, and goes on with random weights
    if not any(p.suffix in (".safetensors", ".bin", ".pth") for p in folder.iterdir()):
        raise DataError(f"{folder} holds no weights (open_clip_model.safetensors)")
    path = f"local-dir:{folder.resolve()}"
    return _load(path, f"{plugin}:{path}", None)


def _load(model_name: str, name: str, pretrained: str | None) -> Loaded:
    open_clip = require("open_clip", "clip")
    try:
        _check_text_tower(open_clip.get_model_config(model_name))
        model, _, transform = open_clip.create_model_and_transforms(
            model_name, pretrained, require_pretrained=not name.endswith("/random")
        )
    except FAILURES as error:
        raise DataError(f"open_clip could not load {name}: {first_line(error)}") from error
    return Loaded(model.eval(), transform, on_first_use(lambda: _tokenizer(model_name)))


def _check_text_tower(config: dict[str, Any]) -> None:
    """Text towers of the hub (RoBERTa, mT5, NLLB) are built by transformers.

    Raises what transformers raises where it cannot be had, before the image tower is built.
    """
    if name := config.get("text_cfg", {}).get("hf_model_name"):
        require("transformers", "transformers").AutoConfig.from_pretrained(name)


def _tokenizer(model_name: str) -> Tokenize:
    open_clip = require("open_clip", "clip")
    if open_clip.get_model_config(model_name)["text_cfg"].get("hf_tokenizer_name"):
        require("transformers", "transformers")
    try:
        tokenizer: Tokenize = open_clip.get_tokenizer(model_name)
    except FAILURES as error:
        raise DataError(
            f"the tokenizer of {model_name} comes from the Hugging Face hub and could not be had; "
            f"images can be read without it: {first_line(error)}"
        ) from error
    return tokenizer
