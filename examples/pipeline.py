"""Tango around what transformers offers for chats about videos: the pipeline, and a chat template that loads the video.

python examples/pipeline.py [VIDEO] [QUESTION]

From the repository's root, without arguments, about a video that comes with it. transformers reads files by torchcodec
(`pip install torchcodec`, with FFmpeg's libraries); frames that read_video() gives may stand in the message instead.
"""

import sys

from transformers import pipeline

from tango import Tango

video = sys.argv[1] if len(sys.argv) > 1 else "data/motionqa/videos/0.mp4"
options = "A. orange\nB. red\nC. yellow\nD. green\nAnswer with one of the options."
question = sys.argv[2] if len(sys.argv) > 2 else f"What colour is the ring?\n{options}"
chat = [{"role": "user", "content": [{"type": "video", "path": video}, {"type": "text", "text": question}]}]
reading = {"num_frames": 8, "return_metadata": True}  # with it the times of frames, which Tango uses

pipe = pipeline("any-to-any", model="checkpoints/tango-tiny")  # or llava-hf/llava-onevision-qwen2-7b-ov-hf
with Tango(retention_ratio=0.1)(pipe.model) as session:
    reply = pipe(text=chat, processor_kwargs=reading, max_new_tokens=32, return_full_text=False)
print("pipeline:", reply[0]["generated_text"])
kept = session.videos[0]
print(f"{kept.tokens_after} of {kept.tokens_before} video tokens")

model, processor = pipe.model, pipe.processor
inputs = processor.apply_chat_template(
    chat, tokenize=True, add_generation_prompt=True, return_dict=True, return_tensors="pt", processor_kwargs=reading
)
with Tango(retention_ratio=0.1)(model):
    output = model.generate(**inputs, max_new_tokens=32)
print("generate:", processor.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))
