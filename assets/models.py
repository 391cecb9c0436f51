"""The embedded models."""

from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / "emoji-clip"


def emoji_clip(argument: str = "") -> Any:
    """emoji-clip as an adapter, through the same loading path as any open_clip folder."""
    from vision_sae.adapters.clip import from_folder

    return from_folder(FOLDER, name="emoji-clip")
