"""Settings are frozen data: pydantic models that refuse unknown keys and go through JSON."""

from pydantic import BaseModel, ConfigDict, ValidationError


class Frozen(BaseModel):
    """Immutable settings that refuse unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")


def plain_error(error: ValidationError) -> str:
    """Pydantic's complaints on one line: which field, what is allowed, what came."""
    return "; ".join(_complaint(e["msg"], e["loc"], e["input"]) for e in error.errors())


def _complaint(message: str, where: tuple[int | str, ...], value: object) -> str:
    text = message.removeprefix("Value error, ")
    name = ".".join(str(part) for part in where)
    return f"{name}: {text}; got {value!r}" if name else text
