"""Text of others as it may stand on a terminal, in a Markdown table and in a CSV."""

import re

# control characters but tab and line feed, line separators, and characters that turn the direction of a line
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_FORMULA = re.compile(r"[=+\-@\t\r]")
_GUARDED = re.compile(r"'[=+\-@\t\r]")


def printable(text: str) -> str:
    r"""Return ``text`` with its control characters spelled out (``\x1b``): they would steer a terminal."""
    return _CONTROL.sub(lambda found: ascii(found[0])[1:-1], text)


def on_one_line(text: str) -> str:
    """Return :func:`printable` text, its line ends and tabs as spaces."""
    return printable(re.sub(r"\s*[\r\n\t]+\s*", " ", text))


def in_cell(text: str) -> str:
    r"""Return ``text`` for one cell of a Markdown table: on one line, ``|`` as ``\|``."""
    return on_one_line(text).replace("|", "\\|")


def guarded(text: str) -> str:
    """Return ``text`` for a CSV: a quote stands before what a spreadsheet would take for a formula; numbers stay."""
    return f"'{text}" if _FORMULA.match(text) and not _is_number(text) else text


def unguarded(text: str) -> str:
    """Return what :func:`guarded` was given."""
    return text[1:] if _GUARDED.match(text) else text


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return text == text.strip()
