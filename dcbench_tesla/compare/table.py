"""Tables as text: Markdown whose columns line up, and tables that fit a terminal without breaking a word."""

import re
import textwrap
from collections.abc import Iterator, Sequence

from dcbench_tesla.records.text import in_cell, on_one_line

NARROW = 80
_GAP = "  "
_MOST_LINES = 2  # of what is told beside a row; more of them stand below it


def aligned(head: Sequence[str], body: Sequence[Sequence[str]], left: int = 1) -> list[str]:
    """Return the lines of a Markdown table with aligned columns; the first ``left`` are left-aligned, others right.

    No text can end its cell, break its line or steer the terminal.
    """
    head, body = [in_cell(text) for text in head], [[in_cell(text) for text in row] for row in body]
    widths = [max(len(row[i]) for row in (head, *body)) for i in range(len(head))]

    def line(row: Sequence[str]) -> str:
        texts = (
            text.ljust(w) if i < left else text.rjust(w) for i, (text, w) in enumerate(zip(row, widths, strict=True))
        )
        return f"| {' | '.join(texts)} |"

    rule = [f":{'-' * (w - 1)}" if i < left else f"{'-' * (w - 1)}:" for i, w in enumerate(widths)]
    return [line(head), f"| {' | '.join(rule)} |", *map(line, body)]


def in_widths(head: Sequence[str], body: Sequence[Sequence[str]], width: int) -> list[list[str]]:
    """Return a Markdown table of :func:`aligned`, in several tables if it is wider than ``width``.

    Each of them begins with the first column, and has at least one other.
    """
    widths = [max(len(in_cell(row[i])) for row in (head, *body)) for i in range(len(head))]
    parts: list[list[int]] = [[]]
    for i in range(1, len(head)):
        taken = sum(widths[j] + 3 for j in (0, *parts[-1], i)) + 1
        if parts[-1] and taken > width:
            parts.append([])
        parts[-1].append(i)
    return [aligned([head[i] for i in (0, *part)], [[row[i] for i in (0, *part)] for row in body]) for part in parts]


def paragraph(text: str, width: int = NARROW, *, indent: str = "") -> list[str]:
    """Return Markdown on one line as lines of a paragraph or a bullet, broken at blanks, and never within code."""
    held = re.sub(r"`[^`]*`", lambda code: code[0].replace(" ", "\0"), on_one_line(text))
    return [line.replace("\0", " ") for line in wrapped(held, width, indent=indent)]


def bullet(text: str) -> list[str]:
    """Return a note as the lines of a Markdown bullet."""
    return paragraph(f"- {text}", indent="  ")


def wrapped(text: str, width: int, *, first: str = "", indent: str = "") -> list[str]:
    """Return ``text`` in lines of at most ``width`` characters, broken at blanks only."""
    return textwrap.wrap(
        text, width, initial_indent=first, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )


def fitted(
    head: Sequence[str],
    body: Sequence[Sequence[str]],
    width: int,
    *,
    keys: int = 1,
    left: int | None = None,
    told: Sequence[str] = (),
    told_as: str = "settings",
) -> list[str]:
    """Return the lines of a table for a terminal; no word is broken, and numbers line up.

    What is told of a row stands beside it if it takes few lines there, else below it. Where the columns do not fit, the
    ``keys`` of a row stand on a line of their own.

    Args:
        head: the names of the columns, which may be broken at blanks.
        body: the rows.
        width: the columns of the terminal.
        keys: how many columns, from the left, name a row.
        left: how many of them are left-aligned, the others right-aligned; by default the ``keys``.
        told: a text for every row, in words that stay whole; none: nothing is told.
        told_as: what the texts are called.
    """
    body = [[on_one_line(text) for text in row] for row in body]
    told = [on_one_line(text) for text in told] if any(told) else [""] * len(body)
    widths = _widths(body, [[name] for name in head])
    if _across(widths) > width:  # names of several words in several lines
        widths = _widths(body, [name.split() for name in head])
    if _across(widths) > width and keys < len(head):
        return _stacked(head, body, width, keys=keys, left=left, told=told)
    left = keys if left is None else left
    room = width - _across(widths) - len(_GAP)
    beside = any(told) and _fits_beside([told_as, *told], room)
    titles = _titles(head, widths, left, told_as if beside else "")
    rule = _across(widths) + (len(_GAP) + _told_width([told_as, *told], room) if beside else 0)
    lines = [*titles, "─" * rule]
    for row, text in zip(body, told, strict=True):
        if beside:
            first, *others = wrapped(text, room) or [""]
            lines += [_line(row, widths, left, first), *(" " * (width - room) + other for other in others)]
        else:
            lines += [_line(row, widths, left), *_below(text, width)]
    return lines


def _titles(head: Sequence[str], widths: Sequence[int], keys: int, last: str) -> list[str]:
    """Return the lines of the head; names of several words stand in several lines, the last one lowest."""
    titles = [wrapped(text, max(w, 1)) for text, w in zip(head, widths, strict=True)]
    height = max(map(len, titles))
    padded = [[""] * (height - len(title)) + title for title in titles]
    lines = list(zip(*padded, strict=True))
    return [_line(line, widths, keys, last if line is lines[-1] else "") for line in lines]


def _widths(body: Sequence[Sequence[str]], titles: Sequence[Sequence[str]]) -> list[int]:
    return [max(map(len, ["", *words, *(row[i] for row in body)])) for i, words in enumerate(titles)]


def _across(widths: Sequence[int]) -> int:
    return sum(widths) + len(_GAP) * (len(widths) - 1)


def _fits_beside(texts: Sequence[str], room: int) -> bool:
    longest = max(len(word) for text in texts for word in text.split())
    return longest <= room and all(len(wrapped(text, room)) <= _MOST_LINES for text in texts)


def _told_width(texts: Sequence[str], room: int) -> int:
    return max(len(line) for text in texts for line in (wrapped(text, room) or [""]))


def _below(text: str, width: int) -> list[str]:
    return wrapped(text, width, first="    ", indent="    ") if text else []


def _line(texts: Sequence[str], widths: Sequence[int], keys: int, last: str = "") -> str:
    placed = [t.ljust(w) if i < keys else t.rjust(w) for i, (t, w) in enumerate(zip(texts, widths, strict=True))]
    return _GAP.join([*placed, last]).rstrip()


def _stacked(
    head: Sequence[str],
    body: Sequence[Sequence[str]],
    width: int,
    *,
    keys: int,
    left: int | None,
    told: Sequence[str],
) -> list[str]:
    """Return the lines of a table too wide for its terminal: what names a row, and below it the rest."""
    own = 1 if left is None else left - keys + 1
    rest = ["", *head[keys:]]
    numbers = fitted(rest, [["", *row[keys:]] for row in body], width, keys=len(rest), left=own)
    rows = iter(numbers[-len(body) :] if body else ())
    names = ", ".join(head[:keys])
    return [names, *numbers[: len(numbers) - len(body)], *_each(body, rows, told, keys, width)]


def _each(
    body: Sequence[Sequence[str]], rows: Iterator[str], told: Sequence[str], keys: int, width: int
) -> Iterator[str]:
    for row, numbers, text in zip(body, rows, told, strict=True):
        yield from wrapped(", ".join(filter(None, row[:keys])), width, indent="  ")
        yield numbers
        yield from _below(text, width)
