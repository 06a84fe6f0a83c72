"""Ask the same question with every method, and see what each keeps and answers.

python examples/compare_methods.py [VIDEO] [QUESTION]

One question shows how methods are called, not which is better: for that there is `tango sweep`.
"""

import sys

from tango.inference.chat import Chat
from tango.inference.checkpoints import load
from tango.pruners import REGISTRY

video = sys.argv[1] if len(sys.argv) > 1 else "data/motionqa/videos/0.mp4"
options = "A. orange\nB. red\nC. yellow\nD. green\nAnswer with one of the options."
question = sys.argv[2] if len(sys.argv) > 2 else f"What colour is the ring?\n{options}"
RATIO = 0.6  # FastV, whose first layers see every token, cannot keep much less in a model of four layers

checkpoint = load("checkpoints/tango-tiny")  # a folder or a hub id, of any supported family
messages = [{"role": "user", "content": [{"type": "video", "video": video}, {"type": "text", "text": question}]}]

print(f"{'':12}{'entering':>10}{'mean over layers':>18}  answer")
for name, method in {"unpruned": None, **REGISTRY}.items():
    pruner = None if method is None else method(retention_ratio=RATIO)
    with Chat(checkpoint, pruner, max_frames=8).session() as chat:
        answer = chat.generate(messages, {"max_new_tokens": 32}, name=video)
    tokens = answer.tokens
    print(f"{name:12}{tokens['video_tokens_after']:>10}{tokens['video_tokens_average']:>18.1f}  {answer.response}")
