"""Remove concepts from a text-to-image model while it samples."""
