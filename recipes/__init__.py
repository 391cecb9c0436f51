"""recipes."""

if __name__ != "vision_sae.recipes":
    raise ImportError("import vision_sae.recipes (run `pip install -e .`), not recipes")
