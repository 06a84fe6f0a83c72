"""Ask a model about a video file while Tango drops nine tenths of the video's tokens.

python examples/video_question.py [VIDEO] [QUESTION]

From the repository's root, without arguments, about a video that comes with it.
"""

import sys

from transformers import AutoProcessor, LlavaOnevisionForConditionalGeneration

from tango import Tango
from tango.inference.video import read_video

CHECKPOINT = "checkpoints/tango-tiny"  # or, for real use: llava-hf/llava-onevision-qwen2-7b-ov-hf, with 32 frames
FRAMES = 8
video = sys.argv[1] if len(sys.argv) > 1 else "data/motionqa/videos/0.mp4"
options = "A. orange\nB. red\nC. yellow\nD. green\nAnswer with one of the options."
question = sys.argv[2] if len(sys.argv) > 2 else f"What colour is the ring?\n{options}"

model = LlavaOnevisionForConditionalGeneration.from_pretrained(CHECKPOINT, dtype="auto").eval()
processor = AutoProcessor.from_pretrained(CHECKPOINT)

clip = read_video(video, FRAMES)  # frames and the second at which each is shown
messages = [{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": question}]}]
text = processor.apply_chat_template(messages, add_generation_prompt=True)
inputs = processor(text=text, videos=[clip.frames], return_tensors="pt").to(model.device)

with Tango(retention_ratio=0.1)(model) as session:
    output = model.generate(**inputs, video_timestamps=[clip.timestamps], max_new_tokens=32)

print(question)
print("->", processor.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))
kept = session.videos[0]
print(f"{kept.tokens_after} of {kept.tokens_before} video tokens, segments of {kept.segment_sizes} frames")
