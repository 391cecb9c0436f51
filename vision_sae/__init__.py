"""vision_sae."""
