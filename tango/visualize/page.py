"""A picture as one HTML file that needs nothing else: frames as data URIs, the rest as JSON, read by page.html."""

import base64
import html
import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tango.inference.files import write_whole
from tango.visualize.picture import HEAT, HUE_STEP, KEPT_COLOUR, SALIENT_COLOUR, Panel, Picture

TEMPLATE = Path(__file__).with_name("page.html")
LONGEST = 448  # pixels of a frame's longer side


def write_page(picture: Picture, path: Path) -> None:
    """Write the page. Texts come from files' names and models, so none is trusted: all go in as data, not as HTML."""
    data = json.dumps(page_data(picture), separators=(",", ":"), allow_nan=False)
    # Inside a script element only "<" could end it or open a comment.
    data = data.replace("<", "\\u003c")
    parts = {"title": html.escape(f"{picture.video}: tokens kept"), "data": data}
    page = re.sub(r"\{\{(title|data)\}\}", lambda place: parts[place[1]], TEMPLATE.read_text(encoding="utf-8"))
    write_whole(path, page)


def page_data(picture: Picture) -> dict[str, Any]:
    """What the page's script reads."""
    return {
        "video": picture.video,
        "model": picture.model,
        "command": picture.command,
        "question": picture.question,
        "unpruned": picture.unpruned,
        "grid": list(picture.grid),
        "times": list(picture.times),
        "frames": [_data_uri(frame) for frame in picture.frames],
        "methods": [row[0].method for row in picture.panels],
        "ratios": list(picture.ratios),
        "heat": [list(colour) for colour in HEAT],
        "hueStep": HUE_STEP,
        "colours": {"salient": list(SALIENT_COLOUR), "kept": list(KEPT_COLOUR)},
        "panels": [[_panel(panel) for panel in row] for row in picture.panels],
    }


def _panel(panel: Panel) -> dict[str, Any]:
    """roles and static: one digit a token; heat: bytes in base 64; joined: a list a column, of a number a token."""
    return {
        "count": panel.count,
        "answer": panel.answer,
        "segments": list(panel.segments),
        "roles": _digits(panel.roles),
        "static": _digits(panel.static),
        "joined": panel.joined.T.tolist(),
        "heat": None if panel.heat is None else base64.b64encode(panel.heat.tobytes()).decode(),
    }


def _digits(values: Any) -> str:
    return bytes(np.asarray(values, dtype=np.uint8) + ord("0")).decode()


def _data_uri(frame: Any) -> str:
    image = Image.fromarray(frame)
    image.thumbnail((LONGEST, LONGEST))
    file = io.BytesIO()
    image.save(file, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()
