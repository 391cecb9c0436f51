"""The embedded data and models: EmojiCanvas, emoji-clip, and the scripts that built them."""

if __name__ != "vision_sae.assets":
    raise ImportError("import vision_sae.assets (run `pip install -e .`), not assets")

from vision_sae.assets.canvas import EmojiCanvas, augment, emoji_canvas

__all__ = ["EmojiCanvas", "augment", "emoji_canvas"]
