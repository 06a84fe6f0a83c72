"""What the tests of vLLM share: setting an engine's method, asking it, and what it kept."""

import contextlib
import dataclasses
import gc
import re
import shutil
from contextlib import contextmanager

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from vllm import SamplingParams

from tango.inference.video import read_video
from tango.motionqa.questions import prompt, read_questions
from tango.motionqa.shipped import DATA, FRAMES, MODEL, checkout
from tango.pruners.base import Pruner

ROOT = checkout()
MODEL = ROOT / MODEL
OURS = {"architectures": ["TangoLlavaOnevisionForConditionalGeneration"], "tango": {"method": "tango"}}


@contextmanager
def opened(model, config=None, **options):
    """An engine in this process; `config` is what --hf-overrides says."""
    from vllm import LLM

    limits = {"video": 4, "image": 4}
    options = {
        "enforce_eager": True,
        "dtype": "float32",
        "max_model_len": 4096,
        "limit_mm_per_prompt": limits,
    } | options
    llm = LLM(model=str(model), hf_overrides=config or {}, seed=0, disable_log_stats=True, **options)
    try:
        yield llm
    finally:
        llm.llm_engine.engine_core.shutdown()
        del llm
        gc.collect()


def model_of(llm):
    return llm.llm_engine.model_executor.driver_worker.worker.model_runner.get_model()


def processor_of(llm):
    return llm.llm_engine.renderer.get_mm_processor()


def set_method(llm, pruner):
    """Another method for an engine that runs; its caches are kept, as their keys tell methods apart."""
    pruner = dataclasses.replace(pruner, exact_budget=True)
    model_of(llm).prune_with(pruner)
    processor_of(llm).__dict__["pruner"] = pruner
    return pruner


def ask(llm, requests, tokens=8, **sampling):
    """Tokens of each request's answers: one list, or with n > 1 several."""
    options = SamplingParams(temperature=0, max_tokens=tokens, **sampling)
    outputs = llm.generate(requests, options, use_tqdm=False)
    return [[list(one.token_ids) for one in output.outputs] for output in outputs]


@contextmanager
def kept():
    """What methods keep while this is open, in the order in which videos are encoded: Pruned, one a video."""
    found, original = [], Pruner.prune_tokens

    def recording(self, video):
        found.append(original(self, video))
        return found[-1]

    Pruner.prune_tokens = recording
    try:
        yield found
    finally:
        Pruner.prune_tokens = original


@contextmanager
def given(decoder):
    """Positions (3, N) or (N,) and embeddings (N, D) of each call of a decoder; vLLM calls forward(), past hooks."""
    calls, forward = [], decoder.forward

    def noting(*args, **kwargs):
        embeds, places = kwargs["inputs_embeds"].flatten(0, -2), kwargs.get("positions", kwargs.get("position_ids"))
        if places is None:  # transformers' decoder counts them itself
            places = torch.arange(len(embeds))
        elif "position_ids" in kwargs:
            places = places[-3:, 0] if places.dim() == 3 else places[0]
        calls.append((places.clone(), embeds.float().clone()))
        return forward(*args, **kwargs)

    decoder.forward = noting
    try:
        yield calls
    finally:
        decoder.forward = forward


def prompted(parts):
    """The prompt of a list of parts, in tango-tiny's template: "<video>", "<image>" and text in any order."""
    return f"<|im_start|>user {''.join(parts)}<|im_end|>\n<|im_start|>assistant\n"


def request(prompt, clips=(), images=()):
    """A request of vLLM's, videos with the true times of their frames."""
    data = {}
    if clips:
        data["video"] = [(clip.frames, metadata(clip) | {"timestamps": list(clip.timestamps)}) for clip in clips]
    if images:
        data["image"] = list(images)
    return {"prompt": prompt, "multi_modal_data": data} if data else {"prompt": prompt}


def metadata(clip):
    """What a processor that tells the model about time must know."""
    rate = clip.total_frames / clip.duration if clip.duration else 1.0
    shown = [round(time * rate) for time in clip.timestamps]
    return {"total_num_frames": clip.total_frames, "fps": rate, "duration": clip.duration, "frames_indices": shown}


class Reference:
    """The same model in transformers, with the same method attached."""

    def __init__(self, folder, dtype="float32"):
        from transformers import AutoModelForImageTextToText, AutoProcessor

        self.model = AutoModelForImageTextToText.from_pretrained(folder, dtype=dtype).eval()
        self.processor = AutoProcessor.from_pretrained(folder)

    def inputs(self, prompt, clips=(), images=()):
        data = {}
        if clips:
            data["videos"] = [torch.from_numpy(clip.frames).permute(0, 3, 1, 2) for clip in clips]
            data["video_metadata"] = [metadata(clip) for clip in clips]
            data["videos_kwargs"] = {"do_sample_frames": False}
        if images:
            data["images"] = list(images)
        return self.processor(text=[prompt], return_tensors="pt", **data)

    def answer(self, pruner, prompt, clips=(), images=(), tokens=8):
        """Tokens of the greedy answer and the flat indices that each video kept; pruner None: unpruned."""
        inputs = self.inputs(prompt, clips, images).to(dtype=self.model.dtype)
        extra = {"video_timestamps": [list(clip.timestamps) for clip in clips]} if clips and pruner else {}
        attached = (
            contextlib.nullcontext() if pruner is None else dataclasses.replace(pruner, exact_budget=True)(self.model)
        )
        with attached as session, torch.inference_mode():
            out = self.model.generate(**inputs, **extra, max_new_tokens=tokens, do_sample=False)
        new = out[0, inputs["input_ids"].shape[1] :].tolist()
        return new, [video.indices.tolist() for video in session.videos] if clips and pruner else []


def published_layout(folder):
    """tango-tiny with the names that published checkpoints have: vLLM itself does not read those of transformers 5."""
    file = "model.safetensors"
    shutil.copytree(MODEL, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    with safe_open(MODEL / file, "pt") as found:
        tensors = {name: found.get_tensor(name) for name in found.keys()}  # noqa: SIM118
    save_file({re.sub("^vision_tower.", "vision_tower.vision_model.", k): v for k, v in tensors.items()}, folder / file)
    return folder


def questions(count, first=0, frames=FRAMES):
    """(prompt, clip) of questions of MotionQA, every seventh from the first on: all kinds, few of one video."""
    rows = read_questions(ROOT / DATA)
    rows = [rows[index * 7 % len(rows)] for index in range(first, first + count)]
    return [
        (
            prompted(["<video>\n", prompt(row["question"], row["options"])]),
            read_video(ROOT / DATA / row["video"], frames),
        )
        for row in rows
    ]


def check_orders(engine, reference, orders, pruner):
    """Prompts (text, clips, images) asked cold, warm, alone and together have the answers and kept tokens of
    transformers; the answers cold.
    """
    requests = [request(*one) for one in orders]
    with kept() as found:
        cold = ask(engine, requests)
    indices = [one.indices.tolist() for one in found]
    for (answer,), one in zip(cold, orders, strict=True):
        expected, wanted = reference.answer(pruner if one[1] else None, *one)
        assert answer == expected, one[0]
        assert all(kept_there in indices for kept_there in wanted)
    assert ask(engine, requests) == cold
    assert [ask(engine, [one])[0] for one in reversed(requests)] == cold[::-1]
    return cold


def clips_of(counts):
    """So many frames of each of MotionQA's first videos."""
    return [read_video(ROOT / DATA / "videos" / f"{index}.mp4", count) for index, count in enumerate(counts)]


def check_method(engine, reference, clips, pruner, text):
    """A question about each clip alone: kept tokens, answers, and what the decoder is given are those of transformers;
    the kept tokens, clip by clip. Tokens of a frame stand in the order in which the method gives them.
    """
    for clip in clips:
        engine.reset_prefix_cache()
        with kept() as found, given(model_of(engine).language_model.model) as ours:
            ((answer,),) = ask(engine, [request(text, [clip])])
        with given(reference.model.model.language_model) as theirs:
            expected, (indices,) = reference.answer(pruner, text, [clip])
        assert [one.indices.tolist() for one in found] == [indices] and answer == expected
        (places, embedded), (wanted, meant) = ours[0], theirs[0]
        assert torch.equal(places, wanted)
        torch.testing.assert_close(embedded, meant, rtol=1e-3, atol=1e-3)
        yield indices
