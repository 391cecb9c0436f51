"""Image models of transformers: CLIP, SigLIP, DINOv2, DINOv3, ViT and their like."""

from collections.abc import Sequence
from functools import partial
from math import isqrt
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vision_sae.adapters.base import ModuleAdapter
from vision_sae.adapters.texts import Tokenize, on_first_use
from vision_sae.adapters.transformers_files import (
    library,
    load_config,
    load_model,
    load_part,
    load_tokenizer,
)
from vision_sae.adapters.transformers_text import fixed_length
from vision_sae.errors import ConfigError
from vision_sae.model.adapter import on_device
from vision_sae.model.hooks import inference

# parameters that stand before the patches in the sequence of tokens, registers behind the others
CLASS_TOKENS = ("class_embedding", "cls_token", "distillation_token")
REGISTERS = "register_tokens"


class TransformersAdapter(ModuleAdapter):
    """An image model; sites are paths in it, as transformers names them.

    `encoder.layers.4` (CLIP, SigLIP), `encoder.layer.4` (DINOv2), `model.layer.4` (DINOv3),
    `layers.4` (ViT); all behind `vision_model.` in a model that holds more than the image tower.
    transformers renames modules between versions: `vision-sae sites` lists those that there are.
    """

    def __init__(self, model: nn.Module, processor: Any, *, name: str) -> None:
        super().__init__(model, processor, name=name, **_prefix(model))

    def prepare(self, items: Sequence[Any]) -> Any:
        """`pixel_values` [b c h w], or for SigLIP 2 a dict of patches, their mask and grids."""
        processor: Any = self.transform
        if hasattr(processor, "max_num_patches"):
            return _square_patches(processor, items)
        return processor(images=list(items), return_tensors="pt")["pixel_values"]

    def run(self, batch: Any) -> Any:
        return self.model(**_inputs(batch))


class TransformersClipAdapter(TransformersAdapter):
    """A whole CLIPModel or SiglipModel: its image tower is read, both towers embed."""

    def __init__(self, model: nn.Module, processor: Any, tokenizer: Tokenize, *, name: str) -> None:
        super().__init__(model, processor, name=name)
        self.tokenizer = tokenizer

    def run(self, batch: Any) -> Any:
        return self.model.get_image_features(**_inputs(batch))  # type: ignore[operator]

    @property
    def logit_scale(self) -> float:
        return float(self.model.logit_scale.detach().exp())  # type: ignore[operator]

    def embed_images(self, batch: Any) -> Float[Tensor, "b e"]:
        with inference(self.model):
            return _unit(self.run(on_device(self, batch)))

    def embed_texts(self, texts: Sequence[str], batch: int = 256) -> Float[Tensor, "n e"]:
        embed: Any = self.model.get_text_features
        parts = []
        with inference(self.model):
            for i in range(0, len(texts), batch):
                tokens = on_device(self, self.tokenizer(list(texts[i : i + batch])))
                parts.append(_unit(embed(**_inputs(tokens, "input_ids"))))
        return torch.cat(parts)


def wrap(model: nn.Module, processor: Any, *, name: str) -> TransformersAdapter:
    """A model that you have loaded, with its AutoImageProcessor (for CLIP its AutoProcessor).

    Raises ConfigError for a model that reads no images or that shuffles its patches.
    """
    images = getattr(processor, "image_processor", processor)
    _check(model)
    if not hasattr(model, "get_image_features"):
        return TransformersAdapter(model.eval(), images, name=name)
    if not hasattr(processor, "tokenizer"):
        raise ConfigError(
            f"{type(model).__name__} embeds texts too: wrap it with its AutoProcessor, "
            f"which holds a tokenizer; got {type(processor).__name__}"
        )
    tokenize = fixed_length(model, processor.tokenizer)
    return TransformersClipAdapter(model.eval(), images, tokenize, name=name)


def from_name(argument: str) -> TransformersAdapter:
    """A local folder, or a hub's `OWNER/NAME`, in 32 bits; safetensors only, no remote code.

    Raises DataError for what cannot be loaded, ConfigError for models that `wrap` refuses.
    """
    auto, name = library(), f"transformers:{argument}"
    model = load_model(auto.AutoModel, load_config(argument), argument).float()
    _check(model)
    images = load_part(auto.AutoImageProcessor, argument)
    if not hasattr(model, "get_image_features"):
        return TransformersAdapter(model, images, name=name)
    tokenize = on_first_use(partial(_tokenize, model, argument))
    return TransformersClipAdapter(model, images, tokenize, name=name)


def _tokenize(model: nn.Module, folder: str) -> Tokenize:
    return fixed_length(model, load_tokenizer(folder))


def _check(model: nn.Module) -> None:
    kind, config = type(model).__name__, getattr(model, "config", None)
    reads = getattr(model, "main_input_name", "pixel_values")
    if reads != "pixel_values" and not hasattr(model, "get_image_features"):
        raise ConfigError(f"{kind} reads {reads}, not images; transformers-text: is for texts")
    if getattr(config, "mask_ratio", 0):
        raise ConfigError(f"{kind} hides and shuffles patches at random; load it as a plain ViT")


def _prefix(model: nn.Module) -> dict[str, int]:
    """Class, distillation and register tokens of the image tower, counted by their weights."""
    tower: Any = getattr(model, "vision_model", model)
    classes = registers = 0
    for name, weight in tower.named_parameters():
        count, last = 1 if weight.ndim == 1 else weight.shape[-2], name.rpartition(".")[2]
        classes += count * (last in CLASS_TOKENS)
        registers += count * (last == REGISTERS)
    return {"prefix_tokens": classes + registers, "registers": registers}


def _inputs(batch: Any, name: str = "pixel_values") -> dict[str, Any]:
    return batch if isinstance(batch, dict) else {name: batch}


def _unit(features: Any) -> Float[Tensor, "b e"]:
    embedded = getattr(features, "pooler_output", features)  # a bare tensor before version 5
    return nn.functional.normalize(embedded.float(), dim=-1)


def _square_patches(processor: Any, images: Sequence[Any]) -> dict[str, Tensor]:
    """SigLIP 2 keeps each image's shape; squashed to squares, as SigLIP's, all have one grid."""
    side = isqrt(processor.max_num_patches)
    size = side * processor.patch_size
    squares = [image.resize((size, size), resample=processor.resample) for image in images]
    return dict(processor(images=squares, max_num_patches=side * side, return_tensors="pt"))
