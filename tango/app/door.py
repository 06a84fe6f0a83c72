"""What of Gradio's server visitors reach: what the page needs, and files of the app's own folder.

Gradio's server does more than this page: it fetches any public address for whoever asks (`file=https://..`, or such an
address in place of an uploaded file), converts recordings, and has pages for developers.
"""

import json
import os
import re
from collections.abc import Awaitable, Callable, Iterator, Mapping, MutableMapping
from pathlib import Path
from typing import Any

OK = 200
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Part = Mapping[str, Any]

API = "/gradio_api/"
OPEN = re.compile(
    r"/|/(config|theme\.css|favicon\.ico|manifest\.json|robots\.txt)|/(assets|static)/.*|"
    rf"{API}(app_id|startup-events|theme\.css|heartbeat/\w+|queue/data|queue/join|cancel|upload|upload_progress)/?|"
    rf"{API}stream/\w+(/close)?"
)
CALLS = (f"{API}queue/join", f"{API}stream/")  # whose bodies are looked into: events, and pictures of a webcam
# A file as the page sends it.
FIELDS = {"path": str, "url": str, "orig_name": str, "mime_type": str, "size": int, "is_stream": bool}
META = {"_type": "gradio.FileData"}
ROOM = 30  # uploads of the largest size are kept at a time; Gradio removes them after an hour
LARGEST_CALL = 1_000_000  # bytes of an event of the page, of which files are no part; and of what surrounds a file
# Nothing but this server may be asked for anything. Gradio writes scripts and styles into its page.
POLICY = (
    b"default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; style-src 'self' 'unsafe-inline'; "
    b"img-src 'self' data: blob:; media-src 'self' data: blob:; font-src 'self' data:; worker-src 'self' blob:; "
    b"connect-src 'self' data: blob:; object-src 'none'; base-uri 'self'; form-action 'self'"
)
HEADERS = [
    (b"content-security-policy", POLICY),
    (b"referrer-policy", b"no-referrer"),
    (b"x-content-type-options", b"nosniff"),
]


class Door:
    """An ASGI middleware.

    Args:
        folder: where uploaded files are, and all that may be read of this machine.
        largest: bytes of a file; Gradio counts them as well, and reads on to the end of what is too long.
        events: what the page sends with each of its events, see events_of().
    """

    def __init__(self, app: Any, folder: str, largest: int, events: Mapping[int, list[Part]]) -> None:
        self.app, self.folder, self.largest, self.events = app, folder, largest, events
        self.coming = 0  # bytes of uploads that are under way

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Hand on a request that the page may make. The others are told 404, 403 for a file, 400, 411 or 413 for a call
        and 507 for an upload too many.
        """
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
        elif scope["type"] == "http":
            headers = dict(scope["headers"])
            length = headers.get(b"content-length", b"0")
            long = not length.isdigit() or int(length) > self.largest + LARGEST_CALL
            if b"transfer-encoding" in headers:  # as long as its sender likes; browsers say how long
                status = 411
            else:
                status, receive = (413, receive) if long else await self.looked_over(scope["path"], receive)
            if status == OK and scope["path"].startswith(f"{API}upload"):
                await self.uploaded(scope, receive, send, int(length))
            elif status != OK:
                await refuse(send, status)
            else:
                await self.app(scope, receive, with_headers(send))

    async def uploaded(self, scope: Message, receive: Receive, send: Send, length: int) -> None:
        """Hand on a file while there is room for it among those that are there and those that are coming."""
        held = sum(file.stat().st_size for file in Path(self.folder).rglob("*") if file.is_file())
        if held + self.coming + length > ROOM * self.largest:
            await refuse(send, 507)
            return
        self.coming += length
        try:
            await self.app(scope, receive, with_headers(send))
        finally:
            self.coming -= length

    async def looked_over(self, path: str, receive: Receive) -> tuple[int, Receive]:
        """OK, or why a request is refused; and what its body is to be read from."""
        if path.startswith(f"{API}file="):
            return OK if self.owns(path.removeprefix(f"{API}file=")) else 403, receive
        if not OPEN.fullmatch(path):
            return 404, receive
        if not path.startswith(CALLS):
            return OK, receive
        body, more = b"", True
        while more and len(body) <= LARGEST_CALL:
            message = await receive()
            body, more = body + message.get("body", b""), message.get("more_body", False)
        if len(body) > LARGEST_CALL:
            return 413, receive
        try:
            call = json.loads(body)
            inside = all(self.owns(file) for file in files(call))
        except (ValueError, RecursionError):
            return 400, receive
        if inside and not path.endswith("/close") and not self.known(call):
            return 400, receive
        return OK if inside else 403, first({"type": "http.request", "body": body, "more_body": False}, receive)

    def known(self, call: Any) -> bool:
        """Whether the page could send this: else Gradio fails on it, with a traceback in the owner's log."""
        number, sent = (call.get("fn_index"), call.get("data")) if isinstance(call, dict) else (None, None)
        parts = self.events.get(number) if isinstance(number, int) else None
        return parts is not None and isinstance(sent, list) and len(sent) == len(parts) and all(map(fits, parts, sent))

    def owns(self, file: str) -> bool:
        """Whether a path is that of a file in the folder; a folder there Gradio would try to remove as a file."""
        inside = file.startswith(f"{self.folder}/") and ".." not in file.split("/") and "\0" not in file
        return inside and os.path.isfile(file)


def events_of(page: Mapping[str, Any]) -> dict[int, list[Part]]:
    """The parts of a page whose values are sent with each of its events, from Gradio's description of the page."""
    parts = {part["id"]: part for part in page["components"]}
    return {event["id"]: [parts[number] for number in event["inputs"]] for event in page["dependencies"]}


def fits(part: Part, value: Any) -> bool:
    """Whether a part of the page may have a value."""
    kind, settings = part["type"], part["props"]
    if kind in ("dropdown", "radio"):
        return (value is None and settings["value"] is None) or value in [one for _, one in settings["choices"]]
    if kind == "slider":
        return type(value) in (int, float) and settings["minimum"] <= value <= settings["maximum"]
    if kind in ("video", "image") and value is not None:
        told = (
            isinstance(value, dict) and value.get("meta", META) == META and (kind == "image" or bool(value.get("path")))
        )
        return told and all(type(value.get(name)) in (form, type(None)) for name, form in FIELDS.items())
    return kind != "textbox" or value is None or isinstance(value, str)  # one that is hidden is None


async def refuse(send: Send, status: int) -> None:
    """Answer with a status and nothing else."""
    headers = [(b"content-length", b"0"), (b"connection", b"close")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": b""})


def files(content: Any) -> Iterator[str]:
    """The paths of all files in what the page sends."""
    if isinstance(content, dict) and isinstance(content.get("path"), str):
        yield content["path"]
    for value in content.values() if isinstance(content, dict) else content if isinstance(content, list) else ():
        yield from files(value)


def first(message: Message, receive: Receive) -> Receive:
    """A receive() that gives a message that was taken already, then the others."""
    taken = [message]

    async def again() -> Message:
        return taken.pop() if taken else await receive()

    return again


def with_headers(send: Send) -> Send:
    """A send() that tells the browser what it may do."""

    async def guarded(message: Message) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [*message.get("headers", []), *HEADERS]
        await send(message)

    return guarded
