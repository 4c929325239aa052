"""Plain text for a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence


def columns(header: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """The lines of an aligned table.

    >>> [*columns(["a", "b"], [["long", "x"]])]
    ['a     b', 'long  x']
    """
    cells = [header, *rows]
    widths = [max(len(row[column]) for row in cells) for column in range(len(header))]
    for row in cells:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()


def shortened(text: str, length: int) -> str:
    """A text of at most that length, in one line.

    >>> shortened("a deep, raspy voice", 10)
    'a deep, r…'
    """
    text = " ".join(text.split())
    return text if len(text) <= length else text[: length - 1] + "…"
