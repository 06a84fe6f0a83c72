"""Reads a file a line of stdin, each in a process of its own, and prints what came of it: JSON, a line each.

[null, ..] what read_video() gave: frames; [the error, its message] what it raised; [the signal, ""] how it ended.
"""

import json
import os
import resource
import sys

from tango.inference.video import read_video

SECONDS, GIB = 20, 4

resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
for line in sys.stdin:
    reading, writing = os.pipe()
    if (child := os.fork()) == 0:
        resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
        resource.setrlimit(resource.RLIMIT_AS, (GIB << 30, GIB << 30))
        try:
            said = [None, len(read_video(line.rstrip("\n"), 8).frames)]
        except BaseException as error:
            said = [type(error).__name__, str(error)]
        os.write(writing, json.dumps(said).encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        said = pipe.read()
    _, status = os.waitpid(child, 0)
    print(json.dumps([f"signal {status & 127}", ""]) if status else said, flush=True)
