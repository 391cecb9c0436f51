"""adapters."""

if __name__ != "vision_sae.adapters":
    raise ImportError("import vision_sae.adapters (run `pip install -e .`), not adapters")
