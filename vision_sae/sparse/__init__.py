"""Sparse codes: choosing latents, and products with them, never dense in [n s]."""
