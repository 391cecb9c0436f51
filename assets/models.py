"""The embedded models."""

from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / "emoji-clip"
DIFFUSION = Path(__file__).parent / "emoji-diffusion"
DRAWING = {"steps": 25, "guidance": 3}


def emoji_clip(argument: str = "") -> Any:
    """emoji-clip as an adapter, through the same loading path as any open_clip folder."""
    from vision_sae.adapters.clip import from_folder

    return from_folder(FOLDER, name="emoji-clip")


def emoji_diffusion(argument: str = "") -> Any:
    """emoji-diffusion along its sampling: `emoji-diffusion?steps=25&guidance=3&half=cond`."""
    from vision_sae.adapters.diffusion import from_name

    settings = argument.removeprefix("?")
    told = {part.partition("=")[0] for part in settings.split("&")}
    usual = [f"{name}={value}" for name, value in DRAWING.items() if name not in told]
    adapter = from_name(f"{DIFFUSION}?{'&'.join(usual + [settings] * bool(settings))}")
    adapter.name = adapter.name.replace(f"diffusers:{DIFFUSION}", "emoji-diffusion", 1)
    return adapter


def emoji_diffusion_pipe(dtype: Any = None) -> Any:
    """The StableDiffusionPipeline itself, in float32 by default, without a progress bar."""
    import torch

    from vision_sae.adapters.diffusion_loading import load_pipeline

    pipe = load_pipeline(str(DIFFUSION), dtype or torch.float32)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def emoji_diffusion_saes() -> dict[str, Any]:
    """The trained SAEs of emoji-diffusion by site: where its text enters, each residual update."""
    from vision_sae.checkpoint import load

    folders = sorted((DIFFUSION / "saes").iterdir())
    return {f"{folder.name}:update": load(folder) for folder in folders}
