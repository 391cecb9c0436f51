"""Rows for training straight from a running model: nothing is stored."""

from vision_sae.stream.source import Stream, streams

__all__ = ["Stream", "streams"]
