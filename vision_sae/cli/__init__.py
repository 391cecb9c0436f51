"""The `vision-sae` command. Only this room prints."""

from vision_sae.cli.app import main

__all__ = ["main"]
