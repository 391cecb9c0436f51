"""EmojiCanvas-Unlearn: how well a concept is removed, and what it costs."""
