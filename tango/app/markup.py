"""What both tabs show as HTML: pictures, and why something was refused."""

from __future__ import annotations

import html

from PIL import Image

from tango.visualize.picture import data_uri


def inline(image: Image.Image, alt: str, kind: str = "frame") -> str:
    """An image as an element of HTML."""
    return f'<img class="{kind}" alt="{html.escape(alt)}" src="{data_uri(image, "WEBP", 90)}">'


def refused(error: Exception) -> str:
    """What a visitor is told in place of an answer."""
    return f'<p class="refused" role="alert">{html.escape(str(error))}</p>'
