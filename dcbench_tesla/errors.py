"""The errors a user can meet: each carries one message with the remedy, and the exit code it ends with."""

import difflib
from collections.abc import Iterable


class DcbenchError(RuntimeError):
    """Something failed while running; the command line prints the message and exits with code 1."""

    exit_code = 1


class UsageError(ValueError):
    """What was asked for cannot be done as asked; the command line prints the message and exits with code 2."""

    exit_code = 2


class DataMissingError(DcbenchError):
    """A data set's files are not on this machine; says where they were looked for and how to get them."""


class CorruptFileError(DcbenchError):
    """A file exists but does not hold what it should; says which file and what to do with it."""


class DivergedError(DcbenchError):
    """A computation produced NaN or infinity; says where, and which settings to lower."""


def require(condition: bool, message: str) -> None:
    """Raise :class:`UsageError` with ``message`` unless ``condition`` holds."""
    if not condition:
        raise UsageError(message)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether ``error`` says that memory ran out: Python's, PyTorch's on a GPU, or PyTorch's on a CPU."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)


def explained(error: BaseException) -> str | None:
    """Return what a user is told of ``error``; ``None`` for a defect of the program, which deserves its traceback."""
    if isinstance(error, (DcbenchError, UsageError)):
        return str(error)
    if is_out_of_memory(error):
        remedy = "Choose a smaller batch_size, fewer steps, a narrower network, or method tesla."
        return f"out of memory. {remedy} What was done is kept."
    if isinstance(error, OSError) and not isinstance(error, BrokenPipeError):  # click ends quietly after `| head`
        return f"{error.filename or 'a file'}: {error.strerror or error}."
    return None


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return ``" Did you mean 'x'?"`` for the known name nearest to ``name``, or an empty string."""
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f" Did you mean {near[0]!r}?" if near else ""


def unknown_name(kind: str, name: str, known: Iterable[str]) -> UsageError:
    """Build the error for an unknown ``name`` of a ``kind`` (method, data set, setting): nearest name, then all."""
    names = sorted(known)
    return UsageError(f"unknown {kind} {name!r}.{did_you_mean(name, names)} Known: {', '.join(names) or 'none'}.")
