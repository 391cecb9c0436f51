"""What the libraries that load models may raise, said in short."""

from pickle import UnpicklingError

# of a file, of the hub, or of weights that do not fit
FAILURES = (OSError, RuntimeError, ValueError, KeyError, UnpicklingError)


def first_line(error: Exception) -> str:
    """What another library's error says, in short."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
