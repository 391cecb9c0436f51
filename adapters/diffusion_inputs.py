"""What the denoisers of diffusers are called with: one function per class for a prompt's part."""

from collections.abc import Callable
from contextlib import suppress
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from vision_sae.errors import ConfigError

Conditions = dict[str, Tensor]  # each [1 ...]: of one row


class Size(NamedTuple):
    """Of the images, in pixels."""

    height: int
    width: int


def denoiser_of(pipe: Any) -> nn.Module:
    """The U-Net or transformer of a pipeline.

    Raises ConfigError when it has neither, or one of a class that we do not know how to call.
    """
    model = getattr(pipe, "unet", None) or getattr(pipe, "transformer", None)
    if model is None:
        parts = ", ".join(sorted(getattr(pipe, "components", {}))) or "none"
        raise ConfigError(
            f"{type(pipe).__name__} has no denoiser: it needs a component `unet` or "
            f"`transformer`, and has {parts}"
        )
    kind_of(model)
    return model  # type: ignore[no-any-return]


def kind_of(model: nn.Module) -> str:
    """The diffusers class of a denoiser. Raises ConfigError for one that is not supported."""
    config: Any = getattr(model, "config", None)
    kind = next((c.__name__ for c in type(model).__mro__ if c.__name__ in _CONDITIONS), None)
    if kind is None:
        raise ConfigError(
            f"{type(model).__name__} is no denoiser that can be read; "
            f"those that can: {', '.join(_CONDITIONS)}"
        )
    if kind == "UNet2DConditionModel":
        _check_unet(config)
    return kind


def _check_unet(config: Any) -> None:
    for setting in ("encoder_hid_dim_type", "class_embed_type", "num_class_embeds"):
        if getattr(config, setting, None) is not None:
            raise ConfigError(f"a U-Net with {setting}={config[setting]!r} needs more than a text")
    if config.addition_embed_type not in (None, "text_time"):
        raise ConfigError(
            f"a U-Net with addition_embed_type={config.addition_embed_type!r} needs more than a "
            "text; allowed: none (Stable Diffusion 1 and 2) and 'text_time' (SDXL)"
        )


# ---- sizes


def vae_scale(pipe: Any) -> int:
    """Pixels of an image per position of its latents."""
    vae = getattr(pipe, "vae", None)
    return 2 ** (len(vae.config.block_out_channels) - 1) if vae is not None else 8


def image_size(pipe: Any, height: int | None, width: int | None) -> Size:
    """The size asked for, or the pipeline's own. Raises ConfigError for one that does not fit."""
    model, scale = denoiser_of(pipe), vae_scale(pipe)
    config: Any = model.config
    flux = kind_of(model) == "FluxTransformer2DModel"
    sample = pipe.default_sample_size if flux else config.sample_size
    default = Size(*((sample, sample) if isinstance(sample, int) else sample))
    size = Size(height or default.height * scale, width or default.width * scale)
    unit = scale * (2 if flux else getattr(config, "patch_size", None) or 1)
    if min(size) < 1 or any(side % unit for side in size):
        raise ConfigError(
            f"height and width must be multiples of {unit}, such as {default.height * scale}; "
            f"got {size.height} x {size.width}"
        )
    return size


def latent_shape(pipe: Any, size: Size) -> tuple[int, int, int]:
    """[c h w] of the latents before Flux packs them."""
    model, scale = denoiser_of(pipe), vae_scale(pipe)
    config: Any = model.config
    channels = config.in_channels // (4 if kind_of(model) == "FluxTransformer2DModel" else 1)
    return channels, size.height // scale, size.width // scale


# ---- what a prompt gives, as one row


def conditions(pipe: Any, text: str, size: Size) -> Conditions:
    """What the denoiser is given beside latents and timestep for a text; each [1 ...].

    Ready for gradients, also where it is called in inference mode.
    """
    model = denoiser_of(pipe)
    with torch.inference_mode(False), torch.no_grad():
        return _CONDITIONS[kind_of(model)](pipe, model, text, size)


def _unet(pipe: Any, model: Any, text: str, size: Size) -> Conditions:
    encoded = pipe.encode_prompt(
        text, device=model.device, num_images_per_prompt=1, do_classifier_free_guidance=False
    )
    if model.config.addition_embed_type is None:
        return {"encoder_hidden_states": encoded[0]}
    whole = [size.height, size.width, 0, 0, size.height, size.width]  # original, crop, target
    time_ids = torch.tensor([whole], dtype=encoded[0].dtype, device=model.device)
    return {"encoder_hidden_states": encoded[0], "text_embeds": encoded[2], "time_ids": time_ids}


def _dit(pipe: Any, model: Any, text: str, size: Size) -> Conditions:
    if text:
        raise ConfigError(f"a DiT reads no text; its prompt must be empty, not {text!r}")
    null = model.config.num_embeds_ada_norm  # the class that stands for none
    return {"class_labels": torch.tensor([null], device=model.device)}


def _pixart(pipe: Any, model: Any, text: str, size: Size) -> Conditions:
    states, mask, *_ = pipe.encode_prompt(
        text, do_classifier_free_guidance=False, device=model.device
    )
    found = {"encoder_hidden_states": states, "encoder_attention_mask": mask}
    if getattr(model, "use_additional_conditions", False):
        options = {"dtype": states.dtype, "device": model.device}
        found["resolution"] = torch.tensor([[size.height, size.width]], **options)
        found["aspect_ratio"] = torch.tensor([[size.height / size.width]], **options)
    return found


def _sd3(pipe: Any, model: Any, text: str, size: Size) -> Conditions:
    states, _, pooled, _ = pipe.encode_prompt(
        text, None, None, do_classifier_free_guidance=False, device=model.device
    )
    return {"encoder_hidden_states": states, "pooled_projections": pooled}


def _flux(pipe: Any, model: Any, text: str, size: Size) -> Conditions:
    states, pooled, _ = pipe.encode_prompt(text, None, device=model.device)
    return {"encoder_hidden_states": states, "pooled_projections": pooled}


_CONDITIONS: dict[str, Callable[[Any, Any, str, Size], Conditions]] = {
    "UNet2DConditionModel": _unet,
    "DiTTransformer2DModel": _dit,
    "PixArtTransformer2DModel": _pixart,
    "SD3Transformer2DModel": _sd3,
    "FluxTransformer2DModel": _flux,
}


# ---- one call


def denoise(
    model: nn.Module,
    latents: Float[Tensor, "b c h w"],
    timesteps: Int64[Tensor, " b"],
    given: Conditions,
    guidance: float = 1.0,
) -> Tensor:
    """One forward pass, every row with the same conditions.

    `guidance` is for models that were distilled to take it as an input (Flux dev). Gives what the
    denoiser predicts, [b ...].
    """
    kind, b = kind_of(model), len(latents)
    rows = {name: value.expand(b, *value.shape[1:]) for name, value in given.items()}
    if kind == "FluxTransformer2DModel":
        return _call_flux(model, latents, timesteps, rows, guidance)
    if kind == "SD3Transformer2DModel":
        timesteps = timesteps.to(latents.dtype)
    added = ("text_embeds", "time_ids", "resolution", "aspect_ratio")
    if kind == "PixArtTransformer2DModel":
        rows["added_cond_kwargs"] = {name: rows.get(name) for name in added[2:]}  # type: ignore[assignment]
    elif "time_ids" in rows:
        rows["added_cond_kwargs"] = {name: rows[name] for name in added[:2]}  # type: ignore[assignment]
    for name in added:
        rows.pop(name, None)
    out: Tensor = model(latents, timestep=timesteps, return_dict=False, **rows)[0]
    return out


def _call_flux(
    model: Any,
    latents: Float[Tensor, "b c h w"],
    timesteps: Int64[Tensor, " b"],
    rows: Conditions,
    guidance: float,
) -> Tensor:
    (b, _, h, w), dtype, device = latents.shape, latents.dtype, latents.device
    packed = nn.functional.pixel_unshuffle(latents, 2).flatten(2).transpose(1, 2)
    img_ids = torch.zeros(h // 2, w // 2, 3, dtype=dtype, device=device)
    img_ids[..., 1] += torch.arange(h // 2, device=device)[:, None]
    img_ids[..., 2] += torch.arange(w // 2, device=device)[None, :]
    txt_ids = torch.zeros(rows["encoder_hidden_states"].shape[1], 3, dtype=dtype, device=device)
    embedded = model.config.guidance_embeds
    out: Tensor = model(
        hidden_states=packed,
        timestep=timesteps.to(dtype) / 1000,
        guidance=torch.full((b,), guidance, device=device) if embedded else None,
        img_ids=img_ids.flatten(0, 1),
        txt_ids=txt_ids,
        return_dict=False,
        **rows,
    )[0]
    return out


def gather(pipe: Any) -> None:
    """Move the other parts of a pipeline to where its denoiser is, unless it offloads them."""
    if getattr(pipe, "_all_hooks", None) or getattr(pipe, "hf_device_map", None):
        return
    model: Any = denoiser_of(pipe)
    for part in pipe.components.values():
        if isinstance(part, nn.Module) and not hasattr(part, "_hf_hook"):
            with suppress(StopIteration):
                if next(part.parameters()).device != model.device:
                    part.to(model.device)
