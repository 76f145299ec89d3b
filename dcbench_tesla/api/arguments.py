"""The arguments of the functions for Python: whatever kind they have, as the harness takes them, or one clear error."""

import operator
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, SupportsIndex

from dcbench_tesla.config import Override, overrides_from
from dcbench_tesla.errors import UsageError


def whole_number(name: str, value: SupportsIndex, *, least: int, several: str = "") -> int:
    """Return an integer of any kind as Python's own: others cannot be written into rows.

    Args:
        name: the name of the argument.
        value: its value.
        least: the smallest allowed value.
        several: what takes several values, for the message.

    Raises:
        UsageError: it is no integer, or too small.
    """
    try:
        number = operator.index(value)
    except (TypeError, ValueError, RuntimeError):
        number = None
    if number is None or isinstance(value, bool):
        told = f"{name} must be an integer, not {value!r} ({type(value).__name__})."
        many = several and isinstance(value, Iterable) and not isinstance(value, (str, bytes))
        raise UsageError(f"{told} {several} takes several." if many else told)
    if number < least:
        raise UsageError(f"{name} must be at least {least}, not {number}.")
    return number


def text(name: str, value: str) -> str:
    """Return a string of any kind as Python's own.

    Raises:
        UsageError: it is none.
    """
    if not isinstance(value, str):
        raise UsageError(f"{name} must be a string, not {value!r} ({type(value).__name__}).")
    return str(value)


def texts(name: str, values: str | Iterable[str]) -> tuple[str, ...]:
    """Return one string or several as a tuple; raises the error of :func:`text`."""
    return (str(values),) if isinstance(values, str) else tuple(text(f"each of {name}", value) for value in values)


def one_or_several(values: Any) -> Sequence[Any]:
    """Return one value or several as a sequence; a string is one."""
    return list(values) if isinstance(values, Iterable) and not isinstance(values, (str, bytes)) else [values]


def overrides(settings: Mapping[str, Any] | None) -> list[Override]:
    """Return settings as overrides, with numbers of NumPy and PyTorch as Python's own.

    Raises:
        UsageError: a name is no string.
    """
    plain = {text("the name of a setting", name): _plain(value) for name, value in (settings or {}).items()}
    return overrides_from(plain)


def _plain(value: Any) -> Any:
    return value.item() if getattr(value, "shape", None) == () else value
