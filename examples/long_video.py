"""Give the language model the same number of tokens however many frames are looked at.

python examples/long_video.py [VIDEO]

Without pruning a video's tokens grow with its frames. Here the retention ratio shrinks as they grow, so that eight
times as many frames cost the vision tower more, and the language model nothing.
"""

import sys

from transformers import AutoProcessor, LlavaOnevisionForConditionalGeneration

from tango import Tango
from tango.inference.video import read_video

video = sys.argv[1] if len(sys.argv) > 1 else "data/motionqa/videos/0.mp4"
BUDGET = 128  # video tokens for the language model

model = LlavaOnevisionForConditionalGeneration.from_pretrained("checkpoints/tango-tiny", dtype="auto").eval()
processor = AutoProcessor.from_pretrained("checkpoints/tango-tiny")
messages = [{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": "Which object appears first?"}]}]
text = processor.apply_chat_template(messages, add_generation_prompt=True)
tokens_per_frame = 64  # of this model; 196 of LLaVA-OneVision-7B

for frames in (8, 16, 32, 64):
    clip = read_video(video, frames)
    inputs = processor(text=text, videos=[clip.frames], return_tensors="pt").to(model.device)
    ratio = BUDGET / (len(clip.frames) * tokens_per_frame)
    with Tango(retention_ratio=ratio, exact_budget=True)(model) as session:  # exactly: not a token more
        output = model.generate(**inputs, video_timestamps=[clip.timestamps], max_new_tokens=16)
    answer = processor.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    kept = session.videos[0]
    print(f"{kept.frames:3} frames: {kept.tokens_before:5} -> {kept.tokens_after} tokens ({ratio:.1%})  {answer}")
