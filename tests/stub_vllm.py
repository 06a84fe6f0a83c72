"""Stands in for vLLM where a test is of what asks it: an HTTP server that answers each question with its first option.

As a program it takes the words that vLLM's Python is started with. In the folder that STUB_VLLM names, methods.json has
by WRAPPER what the server says of its method, and requests.jsonl gets a line for each request; while the file `broken`
is there, questions about shapes are answered by 500.
"""

import json
import os
import re
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


def make_server(port, method, settings, folder, before=512, after=51):
    """A server that says that it prunes with a method and settings, and that each video has so many tokens."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            said = f'tango:method{{method="{method}",settings="{settings}"}} 1.0\n' if method else ""
            self.say(200, {"/version": '{"version": "0.32.0"}', "/metrics": said}.get(self.path, ""))

        def do_POST(self):
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with (folder / "requests.jsonl").open("a") as file:
                file.write(json.dumps(asked) + "\n")
            text = next(part["text"] for part in asked["messages"][-1]["content"] if part["type"] == "text")
            if (folder / "broken").exists() and "shape" in text:
                self.say(500, json.dumps({"error": {"message": "the engine is dead"}}))
                return
            told = {"video": after + 1, "video_before": before, "video_after": after}
            usage = {"prompt_tokens": 92, "completion_tokens": 2, "prompt_tokens_details": {"multimodal_tokens": told}}
            message = {"content": re.search(r"A\. (\w+)", text)[1]}
            self.say(200, json.dumps({"choices": [{"message": message}], "usage": usage}))

        def say(self, status, text):
            self.send_response(status)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *args):
            pass

    return ThreadingHTTPServer(("127.0.0.1", port), Handler)


def main(words):
    if words[0] == "-c":  # whether vLLM is installed
        return
    folder = Path(os.environ["STUB_VLLM"])
    with (folder / "starts").open("a") as file:
        file.write(f"{os.environ['WRAPPER']} {' '.join(words)}\n")
    method, settings, kept = json.loads((folder / "methods.json").read_text())[os.environ["WRAPPER"]]
    make_server(int(words[words.index("--port") + 1]), method, settings, folder, after=kept).serve_forever()


if __name__ == "__main__":
    main(sys.argv[1:])
