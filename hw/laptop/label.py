"""Labels to be stuck on routers: device id, venue, QR code; one SVG each, or a sheet of A4 with 24 of them.

SVG prints from every browser, and from there to PDF. The QR code holds the device id alone: it is public, and short.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple
from xml.sax.saxutils import escape

from hw.laptop.trouble import TroubleError

WIDTH_MM: Final = 70.0
HEIGHT_MM: Final = 37.0
"""70 x 37 mm, 24 to a sheet of A4: what every stationer has."""
COLUMNS: Final = 3
ROWS: Final = 8
_QR_MM: Final = 27.0


class Label(NamedTuple):
    """One of them."""

    device: str
    venue: str = ""
    name: str = ""
    note: str = ""


def qr_path(text: str) -> tuple[str, int]:
    """An SVG path, one unit a module, and the modules of a side with their quiet zone. Raises: TroubleError."""
    try:
        import segno
    except ImportError:
        raise TroubleError("label: the library segno is needed", "pip install --group installer") from None
    code = segno.make_qr(text, error="m")
    matrix = [list(row) for row in code.matrix_iter(border=4)]
    runs = []
    for y, row in enumerate(matrix):
        x = 0
        while x < len(row):
            if not row[x]:
                x += 1
                continue
            end = x
            while end < len(row) and row[end]:
                end += 1
            runs.append(f"M{x} {y}h{end - x}v1h-{end - x}z")
            x = end
    return "".join(runs), len(matrix)


def make_label(label: Label, title: str) -> str:
    """One SVG file."""
    return _svg(WIDTH_MM, HEIGHT_MM, _body(label, title))


def make_sheet(labels: Sequence[Label], title: str) -> list[str]:
    """SVG files of A4, 24 labels each."""
    sheets = []
    for at in range(0, len(labels), COLUMNS * ROWS):
        bodies = []
        for number, label in enumerate(labels[at : at + COLUMNS * ROWS]):
            x, y = number % COLUMNS * WIDTH_MM, number // COLUMNS * HEIGHT_MM
            bodies.append(f'<g transform="translate({x:g} {y + 0.5:g})">{_body(label, title)}</g>')
        sheets.append(_svg(210.0, 297.0, "".join(bodies)))
    return sheets


def _svg(width: float, height: float, body: str) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:g}mm" height="{height:g}mm" '
        f'viewBox="0 0 {width:g} {height:g}" font-family="sans-serif" fill="black">{body}</svg>\n'
    )


def _body(label: Label, title: str) -> str:
    path, modules = qr_path(label.device)
    scale = _QR_MM / modules
    lines = [
        (title, 4.0, "bold"),
        (label.name, 3.2, "normal"),
        (label.venue, 3.2, "normal"),
        (label.note, 3.2, "normal"),
    ]
    x, y = _QR_MM + 4.0, 8.0
    texts = []
    for text, size, weight in lines:
        if text:
            shown = text if len(text) <= 22 else text[:21] + "…"
            texts.append(
                f'<text x="{x:g}" y="{y:g}" font-size="{size:g}" font-weight="{weight}">{escape(shown)}</text>'
            )
            y += size + 2.0
    texts.append(
        f'<text x="3" y="34.5" font-size="4.2" font-family="monospace" textLength="64">{escape(label.device)}</text>'
    )
    code = f'<g transform="translate(2 2) scale({scale:.5g})"><path d="{path}"/></g>'
    return code + "".join(texts)
