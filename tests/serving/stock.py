"""What an engine of vLLM answers to prompts of each kind that its models take, as a program: stock.py FILE FOLDER ...

FILE gets JSON: whether the plugin was loaded, and for each checkpoint tokens and log-probabilities of each prompt. The
kinds are those of vLLM's own tests of multimodal models: one image and one video in several sizes, several of either,
both in one prompt, none, alone and in a batch.
"""

import json
import os
import sys
from pathlib import Path

os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1"}

from engines import DATA, ROOT, metadata, model_of, opened, prompted
from PIL import Image
from vllm import SamplingParams

from tango.inference.video import read_video

SIZES = (1, 0.5, 0.25)
FRAMES = (2, 5, 16)
MARKS = {
    "llava_onevision": ("<image>\n", "<video>\n"),
    "internvl": ("<IMG_CONTEXT>\n", "<video>\n"),
    "qwen": ("<|vision_start|><|image_pad|><|vision_end|>", "<|vision_start|><|video_pad|><|vision_end|>"),
}


def requests(name):
    """Each as vLLM takes it; `name` of the folder says which family it is."""
    llava = name == "llava_onevision"
    image, video = MARKS.get(name, MARKS["qwen"])
    counts = (8, 8, 8) if llava else FRAMES  # vLLM's own LLaVA-OneVision has no batch of videos of unequal length
    clips = [read_video(ROOT / DATA / "videos" / f"{index}.mp4", count) for index, count in enumerate(counts)]
    whole = Image.fromarray(clips[2].frames[7])
    images = [whole.resize((int(whole.width * size), int(whole.height * size))) for size in SIZES]
    told = [(clip.frames, metadata(clip) | {"do_sample_frames": False}) for clip in clips]
    videos = [frames for frames, _ in told] if name in MARKS else told
    parts = [([image, "Which shape is in the middle?"], [one], []) for one in images]
    parts += [([image, "What is its colour?"], [images[1].crop((0, 0, images[1].width // 2, images[1].height))], [])]
    parts += [([video, "What moves, and where to?"], [], [one]) for one in videos]
    parts += [([image, image, image, "Which of these is the largest?"], images, [])]
    parts += [(["First ", video, " then ", video, " What has changed?"], [], videos[1:])]
    parts += [([video, image, "Is this of the video?", image], images[:2], videos[1:2]), (["Say hello."], [], [])]
    for words, shown, seen in parts:
        media = {kind: found for kind, found in (("image", shown), ("video", seen)) if found}
        yield {"prompt": prompted(words), "multi_modal_data": media} if media else {"prompt": prompted(words)}


def answers(llm, asked):
    options = SamplingParams(temperature=0, max_tokens=12, logprobs=5, ignore_eos=True)
    for output in llm.generate(asked, options, use_tqdm=False):
        one = output.outputs[0]
        likely = [{token: found.logprob for token, found in step.items()} for step in one.logprobs]
        yield [list(one.token_ids), likely]


def main(file, *folders):
    found = {}
    for folder in map(Path, folders):
        asked = list(requests(folder.name))
        with opened(folder) as llm:
            together = list(answers(llm, asked))
            alone = [answer for one in reversed(asked) for answer in answers(llm, [one])]
            found[folder.name] = {"class": type(model_of(llm)).__module__, "together": together, "alone": alone}
    Path(file).write_text(json.dumps({"plugin": "tango_vllm" in sys.modules, "found": found}))


if __name__ == "__main__":
    main(*sys.argv[1:])
