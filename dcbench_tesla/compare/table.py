"""Markdown tables whose columns line up in a terminal."""

from collections.abc import Sequence

from dcbench_tesla.records.text import in_cell


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
