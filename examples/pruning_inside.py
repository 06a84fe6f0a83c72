"""Prune twice: before the language model, and again inside it.

python examples/pruning_inside.py [VIDEO]

Layers before `pruned_layer` see what Tango kept; that layer keeps `llm_retention` of it, by what the last token of
the prompt attends to. The retention ratio is the mean over all layers, so that ratios can be compared: more enters.
"""

import sys

from transformers import AutoProcessor, LlavaOnevisionForConditionalGeneration

from tango import Tango
from tango.inference.video import read_video
from tango.pruners import FastV

video = sys.argv[1] if len(sys.argv) > 1 else "data/motionqa/videos/0.mp4"
model = LlavaOnevisionForConditionalGeneration.from_pretrained("checkpoints/tango-tiny", dtype="auto").eval()
processor = AutoProcessor.from_pretrained("checkpoints/tango-tiny")
layers = model.config.text_config.num_hidden_layers  # 4 here; the paper prunes before layer 18 of 28

clip = read_video(video, 8)
messages = [{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": "Which object appears first?"}]}]
text = processor.apply_chat_template(messages, add_generation_prompt=True)
inputs = processor(text=text, videos=[clip.frames], return_tensors="pt").to(model.device)

for title, method in {
    "before the language model": Tango(retention_ratio=0.2),
    "before it and inside": Tango(retention_ratio=0.2, pruned_layer=layers // 2, llm_retention=0.5),
    "inside it alone (FastV)": FastV(retention_ratio=0.6, pruned_layer=layers // 2),
}.items():
    with method(model) as session:
        output = model.generate(**inputs, video_timestamps=[clip.timestamps], max_new_tokens=16)
    answer = processor.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    kept = session.videos[0]
    print(
        f"{title:26} {kept.tokens_before} -> {kept.tokens_after} enter -> {kept.tokens_in_llm} in the last layers, "
        f"{kept.average_retention:.1%} in the mean; {answer}"
    )
