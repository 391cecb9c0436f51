"""The `vision-sae` command. Only this room prints."""


def main() -> None:
    """Loads the commands, and those of recipes, when called: recipes import this room."""
    from vision_sae.cli import app
    from vision_sae.memory import keep_freed

    keep_freed()
    app.main()
