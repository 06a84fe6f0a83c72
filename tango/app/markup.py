"""What both tabs show as HTML: pictures, and why something was refused."""

import base64
import html
import io

from PIL import Image


def inline(image: Image.Image, alt: str, kind: str = "frame") -> str:
    """An image as an element of HTML."""
    file = io.BytesIO()
    image.save(file, "WEBP", quality=90)
    data = base64.b64encode(file.getvalue()).decode()
    return f'<img class="{kind}" alt="{html.escape(alt)}" src="data:image/webp;base64,{data}">'


def refused(error: Exception) -> str:
    """What a visitor is told in place of an answer."""
    return f'<p class="refused" role="alert">{html.escape(str(error))}</p>'
