"""A Hugging Face hub in small: serves <store>/{models,datasets}/<owner>/<name>/ over the parts of its HTTP API that
`hf download`, transformers and datasets use. A folder @<branch> in a repository is another branch.
"""

import contextlib
import hashlib
import json
import threading
import urllib.parse
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar


def sha(*parts: Any) -> str:
    return hashlib.sha1(repr(parts).encode()).hexdigest()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    store: ClassVar[Path]
    salt: ClassVar[list[int]]  # changed: every repository has a new commit

    def log_message(self, *_: Any) -> None:
        """Say nothing."""

    def out(self, code: int, body: Any = b"", **headers: str) -> None:
        body = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(code)
        for name, value in {
            "Content-Type": "application/json", "Content-Length": str(len(body)), **headers
        }.items():  # fmt: skip
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def missing(self, what: str) -> None:
        self.out(404, {"error": what}, X_Error_Code=what, X_Error_Message=what)

    def find(self, kind: str, name: str, revision: str) -> tuple[Path, str] | None:
        """The folder and the commit of a branch or a commit."""
        base = self.store / kind / name
        for branch in ["main", *(one.name[1:] for one in base.glob("@*"))]:
            commit = sha(kind, name, branch, *self.salt)
            if base.is_dir() and revision in (branch, commit):
                return (base if branch == "main" else base / f"@{branch}"), commit
        return None

    def do_HEAD(self) -> None:
        self.answer()

    def do_GET(self) -> None:
        self.answer()

    def do_POST(self) -> None:
        self.answer()

    def answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        url = urllib.parse.urlparse(self.path)
        parts = [urllib.parse.unquote(part) for part in url.path.strip("/").split("/")]
        if parts[0] == "api" and len(parts) >= 4:
            self.api(parts[1], "/".join(parts[2:4]), parts[4:], urllib.parse.parse_qs(url.query), body)
            return
        kind = "datasets" if parts[0] == "datasets" else "models"
        parts = parts[1:] if parts[0] == "datasets" else parts
        found = self.find(kind, "/".join(parts[:2]), parts[3]) if parts[2:3] == ["resolve"] else None
        if found is None:
            self.missing("RepoNotFound")
            return
        file = found[0].joinpath(*parts[4:])
        if not file.is_file():
            self.out(404, {"error": "x"}, X_Error_Code="EntryNotFound", X_Repo_Commit=found[1])
            return
        content, first, last = file.read_bytes(), 0, file.stat().st_size - 1
        headers = {"ETag": f'"{self.oid(file)}"', "X_Repo_Commit": found[1], "Accept_Ranges": "bytes"}
        if asked := self.headers.get("Range"):
            start, _, end = asked.removeprefix("bytes=").partition("-")
            first, last = int(start), min(int(end or last), last)
            headers["Content_Range"] = f"bytes {first}-{last}/{len(content)}"
        self.out(206 if asked else 200, content[first : last + 1], Content_Type="application/octet-stream", **headers)

    def oid(self, file: Path) -> str:
        return hashlib.sha1(file.read_bytes()).hexdigest()

    def api(self, kind: str, name: str, rest: list[str], query: dict[str, list[str]], body: bytes) -> None:
        found = self.find(kind, name, rest[1] if len(rest) > 1 else "main")
        if found is None:
            self.missing("RepoNotFound")
            return
        root, commit = found

        def entry(place: Path) -> dict[str, Any]:
            path = place.relative_to(root).as_posix()
            if place.is_dir():
                return {"type": "directory", "path": path, "size": 0, "oid": "0" * 40}
            return {"type": "file", "path": path, "size": place.stat().st_size, "oid": self.oid(place)}

        def below(place: Path, deep: bool) -> list[Path]:
            found = place.rglob("*") if deep else place.iterdir()
            return sorted(one for one in found if "@" not in str(one.relative_to(root)))

        if not rest or rest[0] == "revision":
            files = [entry(one) for one in below(root, True) if one.is_file()]
            siblings = [{"rfilename": e["path"], "size": e["size"], "blobId": e["oid"]} for e in files]
            dates = dict.fromkeys(("lastModified", "createdAt"), "2024-01-01T00:00:00.000Z")
            told = {"_id": "1", "id": name, "modelId": name, "sha": commit, "tags": [], "downloads": 0, "likes": 0}
            flags = dict.fromkeys(("private", "gated", "disabled"), False)
            self.out(200, {**told, **flags, **dates, "siblings": siblings, "usedStorage": 1})
        elif rest[0] == "tree" and (place := root.joinpath(*rest[2:])).exists():
            deep = query.get("recursive", ["false"])[0].lower() == "true"
            self.out(200, [entry(one) for one in below(place, deep)])
        elif rest[0] == "paths-info":
            asked = json.loads(body) if body.startswith(b"{") else urllib.parse.parse_qs(body.decode())
            self.out(200, [entry(root / one) for one in asked.get("paths", []) if (root / one).exists()])
        else:
            self.missing("EntryNotFound")


@contextlib.contextmanager
def serve(store: Path) -> Iterator[tuple[str, list[int]]]:
    """A hub of a store: its address, and a list that gives every repository a new commit when it is changed."""
    handler = type("StoreHandler", (Handler,), {"store": store, "salt": [0]})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", handler.salt
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
