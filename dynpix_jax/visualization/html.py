"""Pieces of HTML that the report is made of: figures, tiles, legends, tables."""

from __future__ import annotations

import base64
import html
from collections.abc import Iterable, Sequence

import matplotlib
import numpy as np
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from dynpix_jax.visualization.pictures import HEAT, png_bytes
from dynpix_jax.visualization.task_pictures import Colour


def text(value: object) -> str:
    """A value as text of a page."""
    return html.escape(str(value))


def figure(picture: np.ndarray | Figure, title: str, note: str = "", *, crisp: bool = False) -> str:
    """A picture with its title and a note; ``crisp``: enlarged without smoothing."""
    style = ' class="crisp"' if crisp else ""
    note = f" <small>{text(note)}</small>" if note else ""
    return _captioned(png_bytes(picture), "png", style, title, note)


def film(gif: bytes, title: str, note: str) -> str:
    """An animated GIF with its title and a note."""
    return _captioned(gif, "gif", "", title, f" <small>{text(note)}</small>")


def _captioned(file: bytes, kind: str, style: str, title: str, note: str) -> str:
    data = base64.b64encode(file).decode("ascii")
    image = f'<img{style} alt="{text(title)}" src="data:image/{kind};base64,{data}">'
    return f"<figure>{image}<figcaption><b>{text(title)}</b>{note}</figcaption></figure>"


def tiles(figures: Iterable[str], *, small: bool = False) -> str:
    """Figures beside each other."""
    return f'<div class="tiles{" small" if small else ""}">{"".join(figures)}</div>'


def details(summary: str, figures: Sequence[str], *, legend: str = "", opened: bool = True) -> str:
    """Small tiles under a line that opens and closes them; "" without figures."""
    if not figures:
        return ""
    tag = "<details open>" if opened else "<details>"
    return f"{tag}<summary>{summary}</summary>{legend}{tiles(figures, small=True)}</details>"


def chips(legend: Iterable[tuple[str, Colour]]) -> str:
    """Names with their colours; "" without names."""
    spans = [f'<span><i style="background: rgb{colour}"></i>{text(name)}</span>' for name, colour in legend]
    return f'<p class="classes">{"".join(spans)}</p>' if spans else ""


def table(lines: Iterable[Iterable[str]]) -> str:
    """Rows of finished cells (<th> or <td>)."""
    rows = "".join(f"<tr>{''.join(cells)}</tr>" for cells in lines)
    return f'<div class="scroll"><table>{rows}</table></div>'


def heat_gradient() -> str:
    """The colours of `HEAT` as the stops of a CSS gradient."""
    colours = matplotlib.colormaps[HEAT]
    return ", ".join(to_hex(colours(step / 8)) for step in range(9))
