"""The errors that users meet: each carries a message that ends with a remedy, and the exit code of the command line."""

import difflib
import re
from collections.abc import Iterable


class DcbenchError(RuntimeError):
    """Something failed at run time. The command line prints the message and exits with code 1."""

    exit_code = 1


class UsageError(ValueError):
    """The request is invalid. The command line prints the message and exits with code 2."""

    exit_code = 2


class DataMissingError(DcbenchError):
    """The files of a data set are not on this machine. The message says where dcbench looked and how to get them."""


class CorruptFileError(DcbenchError):
    """A file exists, but its content is damaged or unexpected. The message names the file and says what to do."""


class DivergedError(DcbenchError):
    """A computation produced NaN or infinity. The message says where, and which settings to lower."""


def require(condition: bool, message: str) -> None:
    """Raise :class:`UsageError` with ``message`` unless ``condition`` holds."""
    if not condition:
        raise UsageError(message)


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether ``error`` reports that memory ran out, in Python or in PyTorch on a GPU or a CPU."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)


def explained(error: BaseException) -> str | None:
    """Return the message for the user, or ``None`` if ``error`` is a bug, whose traceback should be shown."""
    if isinstance(error, (DcbenchError, UsageError)):
        return str(error)
    if is_out_of_memory(error):
        remedy = "Choose a smaller batch_size, fewer steps, a narrower network, or method tesla."
        return f"out of memory. {remedy} What was done is kept."
    if isinstance(error, OSError) and not isinstance(error, BrokenPipeError):  # click handles `| head` by itself
        return f"{error.filename or 'a file'}: {error.strerror or error}."
    return None


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return ``" Did you mean 'x'?"`` for the known name most similar to ``name``, or an empty string.

    ``CIFAR-10`` is similar to ``cifar10``: upper case, dashes and underscores do not count.
    """
    plain = {re.sub(r"[-_ ]", "", text).lower(): text for text in known}
    near = difflib.get_close_matches(re.sub(r"[-_ ]", "", name).lower(), list(plain), n=1, cutoff=0.5)
    return f" Did you mean {plain[near[0]]!r}?" if near else ""


def unknown_name(kind: str, name: str, known: Iterable[str]) -> UsageError:
    """Build the error for a name that does not exist, with the most similar known name and all known names.

    Args:
        kind: what the name should be a name of, as the message says it: "method", "data set", "setting".
        name: the unknown name.
        known: the names that exist.
    """
    names = sorted(known)
    return UsageError(f"unknown {kind} {name!r}.{did_you_mean(name, names)} Known: {', '.join(names) or 'none'}.")
