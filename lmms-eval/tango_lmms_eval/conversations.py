"""lmms-eval's prompts as conversations that tango.inference.chat can ask."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tango.runs.settings import NOTHING

IMAGE = "<image>"
IMAGE_FILES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tiff", ".webp")


def simple_messages(text: str, visuals: Sequence[Any]) -> list[dict[str, Any]]:
    """One user message of a text and its visuals: at the text's <image> marks if it has one for each, else before the
    text.

    Raises:
        ValueError: another number of marks than of visuals.
    """
    parts = [visual_part(visual) for visual in visuals]
    pieces = re.split(rf"{IMAGE}\n?", text)
    if len(pieces) == 1:
        content = [*parts, {"type": "text", "text": text}]
    elif len(pieces) == len(parts) + 1:
        content = [{"type": "text", "text": pieces[0]}]
        for part, piece in zip(parts, pieces[1:], strict=True):
            content += [part, {"type": "text", "text": piece}]
        content = [part for part in content if part["type"] != "text" or part["text"]]
    else:
        raise ValueError(f"the prompt has {len(pieces) - 1} {IMAGE} marks for {len(parts)} images and videos")
    return [{"role": "user", "content": content}]


def chat_messages(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Messages of lmms-eval's chat tasks as tango.inference.chat takes them."""
    converted = []
    for message in messages:
        content = message["content"]
        content = [{"type": "text", "text": content}] if isinstance(content, str) else content
        parts = [dict(part) if part["type"] == "text" else visual_part(part["url"], part) for part in content]
        converted.append({"role": message["role"], "content": parts})
    return converted


def visual_part(visual: Any, part: Mapping[str, Any] = NOTHING) -> dict[str, Any]:
    """An image (PIL or file) or a video (file, or {"url": file, "video_start": s, "video_end": s}) as part of a
    message.
    """
    if isinstance(visual, Mapping):
        path = next((visual[name] for name in ("url", "path", "video") if visual.get(name)), None)
        if path is None:
            raise ValueError(f"a visual with the keys {sorted(visual)}; give its file as url, path or video")
        return visual_part(path, {**part, "start_time": visual.get("video_start"), "end_time": visual.get("video_end")})
    if part.get("type") == "audio":
        raise ValueError("this model cannot hear: the task asks about audio")
    if isinstance(visual, str | Path) and part.get("type") != "image" and not str(visual).lower().endswith(IMAGE_FILES):
        return {"type": "video", "video": str(visual), "start": part.get("start_time"), "end": part.get("end_time")}
    return {"type": "image", "image": visual}
