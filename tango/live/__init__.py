"""Live video: a stream that never ends, questions at any moment, and never more than so many tokens held.

    with Live(model, processor, Tango(retention_ratio=0.1), budget=2048, fps=1) as video:
        video.add(frame, time)
        for text in video.ask("What is on the table now?"):
            print(text, end="")

`session.py` is the class, `encoder.py` runs the vision tower on each frame, `cuts.py` closes segments as frames come,
`memory.py` keeps what is held within the budget, `layout.py` says what the language model receives of it, `writer.py`
writes answers, and `sources.py` reads files, cameras and streams.
"""

from tango.live.answer import Answer
from tango.live.memory import POLICIES, Held
from tango.live.session import Live, Status

__all__ = ["POLICIES", "Answer", "Held", "Live", "Status"]
