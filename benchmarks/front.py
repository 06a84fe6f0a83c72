"""Accuracy of many settings on MotionQA in one process: the tower once a video, the six questions of a video together.

    python benchmarks/front.py --methods all --positions both
    python benchmarks/front.py --methods tango --vary all --half development --frames 16

Answers are kept in --work, a file a setting, and not computed again: files of several commands make one table
(benchmarks/front_tables.py). The first, third, fifth .. video by sorted names are the development half, on which
settings may be tried, the others the held one. A video's tokens are encoded once for each kind of saliency, pruned once
a setting, and prefilled once; then its questions go on from there, greedily, in a batch with other videos'. --check
asks single questions in the ordinary way too, and says how many answers are the same. With pruning inside the language
model, and of other models than LLaVA's and tango-tiny-qwen, they are asked in the ordinary way alone.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tango.inference.chat import Answer, Chat
from tango.inference.checkpoints import Checkpoint, load
from tango.inference.encoded import Encodings
from tango.inference.files import write_whole
from tango.models import attach
from tango.motionqa.questions import prompt, read_questions
from tango.pruners import REGISTRY, Pruner
from tango.runs.scoring import parse_choice
from tango.sweeps.expand import impossible

RATIOS = (0.05, 0.1, 0.15, 0.2, 0.3)
HALVES = ("development", "held")
TOGETHER = 20  # videos in a batch
NEW_TOKENS = 8  # as the benchmark's task has it, to the end of a line
UNPRUNED = REGISTRY["uniform"](retention_ratio=1)  # to the bit what the model does by itself
# Changes of Tango, one at a time.
VARIATIONS: dict[str, dict[str, Any]] = {
    "no segments": {"segmentation": "none"},
    "segments of fastvid": {"segmentation": "fastvid"},
    "context_ratio 0.2": {"context_ratio": 0.2},
    "context_ratio 0.6": {"context_ratio": 0.6},
    "context_ratio 0.8": {"context_ratio": 0.8},
    "static_threshold 0.9": {"static_threshold": 0.9},
    "static_threshold 1": {"static_threshold": 1.0},
    "similarity_threshold 0.9": {"similarity_threshold": 0.9},
    "expansion 1": {"selection": "topk"},
    "expansion 3": {"expansion": 3.0},
    "plain cosine": {"merging": "cosine"},
    "anchor_weight 0.3": {"anchor_weight": 0.3},
    "num_neighbors 3": {"num_neighbors": 3},
    "received attention": {"saliency": "received_attention"},
    "no segments, context_ratio 0.6": {"segmentation": "none", "context_ratio": 0.6},
    "no segments, context_ratio 0.8": {"segmentation": "none", "context_ratio": 0.8},
    "no segments, context_ratio 1": {"segmentation": "none", "context_ratio": 1.0},
    "no segments, received attention": {"segmentation": "none", "saliency": "received_attention"},
    "no segments, context_ratio 0.6, received attention": {
        "segmentation": "none",
        "context_ratio": 0.6,
        "saliency": "received_attention",
    },
}


@dataclass(frozen=True)
class Video:
    """One video: its name, its questions, and the prompt of each, whose pixels are the same."""

    name: str
    rows: list[dict[str, Any]]
    prompts: list[dict[str, Any]]


def half_of(rows: Sequence[dict[str, Any]], half: str) -> list[dict[str, Any]]:
    """The rows about the videos of a half, or of `both`."""
    names = sorted({row["video"] for row in rows})
    chosen = {"both": names, "development": names[::2], "held": names[1::2]}[half]
    return [row for row in rows if row["video"] in set(chosen)]


def messages(folder: Path, row: dict[str, Any]) -> list[dict[str, Any]]:
    """The conversation of a question."""
    text = {"type": "text", "text": prompt(row["question"], row["options"])}
    return [{"role": "user", "content": [{"type": "video", "video": str(folder / row["video"])}, text]}]


def prepared(checkpoint: Checkpoint, folder: Path, rows: Sequence[dict[str, Any]], frames: int) -> Iterator[Video]:
    """The prompts of all questions, by video, read as any run reads them."""
    of_video = defaultdict(list)
    for row in rows:
        of_video[row["video"]].append(row)
    chat = Chat(checkpoint, UNPRUNED, max_frames=frames)
    for name, asked in of_video.items():
        prompts = []
        for row in asked:
            inputs, extra, _ = chat._prepare(messages(folder, row))
            if prompts:
                inputs["pixel_values_videos"] = prompts[0]["pixel_values_videos"]
            prompts.append(inputs | extra)
        yield Video(name, asked, prompts)


def axes(positions: Tensor) -> Tensor:
    """(B, n) as it is; (B, n, 3) as models with M-RoPE take it, (3, B, n)."""
    return positions.permute(2, 0, 1) if positions.dim() == 3 else positions


@torch.inference_mode()
def asked(checkpoint: Checkpoint, videos: Sequence[Video], seam: Any) -> tuple[list[str], Tensor, list[float]]:
    """Answers to the questions about some videos, one after another, log-probabilities (Q, vocabulary) of their first
    tokens, and the share of each video's tokens that was kept. All prompts are the same up to the end of their video.
    """
    model, tokenizer = checkpoint.model, checkpoint.processor.tokenizer
    forward, embed = type(model).forward, model.get_input_embeddings()
    prefixes, places, kept, texts = [], [], [], []
    for video in videos:
        first = seam.prune(video.prompts[0], "left")
        kept.append(seam.session.videos[0].tokens_after / seam.session.videos[0].tokens_before)
        last = int((video.prompts[0]["input_ids"][0] == model.config.video_token_id).nonzero()[-1])
        end = int((first.source[0] <= last).sum())  # what stands between frames of the video belongs to it
        prefixes.append(first.inputs_embeds[0, :end])
        numbers = torch.arange(end + 1) if first.position_ids is None else first.position_ids[..., 0, :]
        places.append((numbers[..., :end].movedim(-1, 0), int(numbers[..., end].max())))
        texts.append([inputs["input_ids"][0, last + 1 :] for inputs in video.prompts])

    # Videos are padded on the right and texts on the left, so that one column is the last of all.
    pad = torch.nn.utils.rnn.pad_sequence
    of_video = pad([torch.ones(len(one), dtype=torch.long) for one in prefixes], batch_first=True)
    out = forward(model, inputs_embeds=pad(prefixes, batch_first=True), attention_mask=of_video, use_cache=True,
                  position_ids=axes(pad([own for own, _ in places], batch_first=True)), logits_to_keep=1)  # fmt: skip
    (count,) = {len(of) for of in texts}
    cache = out.past_key_values
    cache.batch_repeat_interleave(count)
    rows = [(text, start) for of, (_, start) in zip(texts, places, strict=True) for text in of]
    embeds = pad([embed(text) for text, _ in rows], batch_first=True, padding_side="left")
    own = pad([torch.ones_like(text) for text, _ in rows], batch_first=True, padding_side="left")
    positions = pad([start + torch.arange(len(text)) for text, start in rows], batch_first=True, padding_side="left")
    mask = torch.cat((of_video.repeat_interleave(count, 0), own), 1)
    positions = positions.expand(3, *positions.shape) if places[0][0].dim() == 2 else positions

    stops = model.generation_config.eos_token_id
    stops = {stops} if isinstance(stops, int) else set(stops)
    new: list[list[int]] = [[] for _ in rows]
    going, first_tokens = set(range(len(rows))), torch.empty(0)
    while going:
        out = forward(model, inputs_embeds=embeds, attention_mask=mask, position_ids=positions, past_key_values=cache,
                      use_cache=True, logits_to_keep=1)  # fmt: skip
        logits = out.logits[:, -1].float()
        first_tokens = first_tokens if len(first_tokens) else logits.log_softmax(-1)
        chosen = logits.argmax(-1)
        for row in sorted(going):
            new[row].append(int(chosen[row]))
            text = tokenizer.decode(new[row], skip_special_tokens=True)
            if new[row][-1] in stops or "\n" in text or len(new[row]) == NEW_TOKENS:
                going.remove(row)
        embeds, positions = embed(chosen)[:, None], positions[..., -1:] + 1
        mask = torch.cat((mask, mask.new_ones(len(rows), 1)), 1)
    said = [str(tokenizer.decode(ids, skip_special_tokens=True)).split("\n")[0].strip() for ids in new]
    return said, first_tokens, kept


def run(
    checkpoint: Checkpoint, data: Path, videos: Sequence[Video], pruner: Pruner, encodings: Encodings,
    unpruned: dict[str, Tensor], frames: int,
) -> dict[str, Any]:  # fmt: skip
    """Answers of one setting by their questions' ids, each whether it is right, as text, and KL(unpruned || pruned) of
    its first token (None where questions are asked in the ordinary way); and the share of tokens kept.
    """
    start, model = time.process_time(), checkpoint.model
    answers: dict[str, list[Any]] = {}
    shares: list[float] = []
    if not together(model, pruner):
        rows = [row for video in videos for row in video.rows]
        for row, answer in zip(rows, ordinary(checkpoint, data, rows, pruner, frames, encodings), strict=True):
            choice = parse_choice(answer.response, row["options"])
            answers[row["id"]] = [int(choice == row["answer"]), answer.response, None]
            shares.append(answer.tokens["video_tokens_average"] / answer.tokens["video_tokens_before"])
        videos = []
    with attach(model, pruner) if videos else contextlib.nullcontext():
        for some in batched(videos, TOGETHER):
            encodings.share()
            said, logs, kept = asked(checkpoint, some, model.generate.seam)
            shares += kept
            for row, text, log in zip([row for video in some for row in video.rows], said, logs, strict=True):
                reference = unpruned.setdefault(row["id"], log)
                kl = float((reference.exp() * (reference - log)).sum().clamp(min=0))
                choice = parse_choice(text, row["options"])
                answers[row["id"]] = [int(choice == row["answer"]), text, round(kl, 5)]
    kept_share = sum(shares) / len(shares)
    return {"answers": answers, "kept": kept_share, "cpu_s": round(time.process_time() - start, 1)}


def batched(videos: Sequence[Video], number: int) -> Iterator[Sequence[Video]]:
    """So many videos at a time."""
    yield from (videos[start : start + number] for start in range(0, len(videos), number))


def ordinary(
    checkpoint: Checkpoint, folder: Path, rows: Sequence[dict[str, Any]], pruner: Pruner, frames: int,
    encodings: Encodings | None = None,
) -> list[Answer]:  # fmt: skip
    """The same answers as any run computes them, one by one; with all their own parts, unless there are encodings."""
    settings = {"max_new_tokens": NEW_TOKENS, "until": ["\n"]}
    alone = pruner == UNPRUNED and encodings is None
    with Chat(checkpoint, None if alone else pruner, max_frames=frames).session() as chat:
        if encodings is not None:
            encodings.share()
        return [chat.generate(messages(folder, row), settings, row["id"]) for row in rows]


def together(model: Any, pruner: Pruner) -> bool:
    """Whether questions can go on from their video: in a LLaVA, and in a Qwen3-VL whose tower hands nothing over but
    tokens, with nothing pruned inside the language model."""
    layers, name = model.config.get_text_config().num_hidden_layers, type(model).__name__
    qwen = name.startswith("Qwen3VL") and not model.config.vision_config.deepstack_visual_indexes
    return ("Llava" in name or qwen) and pruner.in_llm(layers) is None


def name_of(pruner: Pruner, half: str) -> str:
    """The name of the file of a setting's answers on a half."""
    text = json.dumps([pruner.name, pruner.settings(), half], sort_keys=True)
    return f"{pruner.name}-{pruner.retention_ratio:g}-{half}-{hashlib.sha256(text.encode()).hexdigest()[:10]}.json"


def settings_of(args: argparse.Namespace) -> list[tuple[str, Pruner]]:
    """What to evaluate: name of the variation ("" for a method as it is) and pruner."""
    methods = list(REGISTRY) if args.methods == ["all"] else args.methods
    kept = {"default": [{}], "kept": [{"keep_positions": True}], "both": [{}, {"keep_positions": True}]}[args.positions]
    fields = json.loads(args.fields) if args.fields else {}
    chosen, wanted = [], set(args.vary)
    if unknown := wanted - {*VARIATIONS, "all"}:
        raise SystemExit(f"--vary {sorted(unknown)}: there are {list(VARIATIONS)}")
    for ratio in args.ratios:
        for positions in kept:
            changed = ", ".join(f"{field} {value}" for field, value in fields.items())
            asked_for = [(changed, method, fields) for method in methods]
            asked_for += [(name, "tango", changes) for name, changes in VARIATIONS.items() if wanted & {name, "all"}]
            chosen += [
                (name, REGISTRY[method](retention_ratio=ratio, **{**positions, **changes}))
                for name, method, changes in asked_for
            ]
    if args.exact:
        chosen = [(f"{name}, exact_budget".lstrip(", "), replace(pruner, exact_budget=True)) for name, pruner in chosen]
    return chosen


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--checkpoint", default="checkpoints/tango-tiny", help="folder of a LLaVA-OneVision")
    parser.add_argument("--data", type=Path, default=Path("data/motionqa"), help="folder with test.json and videos/")
    parser.add_argument("--frames", type=int, default=8)
    parser.add_argument("--half", choices=(*HALVES, "both"), default="development")
    parser.add_argument("--ratios", type=float, nargs="+", default=RATIOS)
    parser.add_argument("--methods", nargs="*", default=[], help="names, or 'all'")
    parser.add_argument("--positions", choices=("default", "kept", "both"), default="default", help="keep_positions")
    parser.add_argument("--vary", nargs="*", default=[], help="also Tango with these changes (VARIATIONS), or 'all'")
    parser.add_argument("--exact", action="store_true", help="all with exact_budget")
    parser.add_argument("--fields", help="other fields of all methods, as JSON")
    parser.add_argument("--limit", type=int, help="only the first so many videos of the half")
    parser.add_argument(
        "--check", type=int, default=0, metavar="N", help="compare N answers a setting with ordinary runs"
    )
    parser.add_argument("--work", type=Path, default=Path("build/front"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    checkpoint = load(args.checkpoint, device="cpu", dtype="float32")
    layers = checkpoint.model.config.get_text_config().num_hidden_layers
    folder = args.work / Path(args.checkpoint).name / str(args.frames)
    folder.mkdir(parents=True, exist_ok=True)
    chosen = [("", UNPRUNED), *settings_of(args)]
    todo = []
    for name, pruner in chosen:
        if reason := impossible(pruner, layers):
            print(f"left out: {pruner.name} {pruner.retention_ratio:g}: {reason}")
        elif args.check or args.limit or not (folder / name_of(pruner, args.half)).is_file() or pruner == UNPRUNED:
            todo.append((name, pruner))
    if [pruner for _, pruner in todo] == [UNPRUNED] and (folder / name_of(UNPRUNED, args.half)).is_file():
        return
    rows = half_of(read_questions(args.data), args.half)
    videos = list(prepared(checkpoint, args.data, rows, args.frames))[: args.limit]
    encodings, unpruned = Encodings(checkpoint.model, [pruner for _, pruner in todo]), dict[str, Tensor]()
    for number, (name, pruner) in enumerate(todo, 1):
        result = run(checkpoint, args.data, videos, pruner, encodings, unpruned, args.frames)
        score = sum(right for right, *_ in result["answers"].values()) / len(result["answers"])
        where = f"{number}/{len(todo)} {pruner.name} {pruner.retention_ratio:g} {name}"
        found = f"{100 * score:.1f} % at {100 * result['kept']:.1f} %, {result['cpu_s']} s of CPU"
        print(f"{where} keep_positions={pruner.keep_positions}: {found}", flush=True)
        if args.check:
            some = [row for video in videos for row in video.rows][: args.check]
            expected = ordinary(checkpoint, args.data, some, pruner, args.frames)
            same = sum(result["answers"][row["id"]][1] == one.response for row, one in zip(some, expected, strict=True))
            print(f"   {same} of {len(some)} answers are those of the ordinary run", flush=True)
        elif args.limit is None:
            head = {"name": name, "method": pruner.name, "settings": pruner.settings(), "half": args.half,
                    "frames": args.frames, "checkpoint": args.checkpoint}  # fmt: skip
            write_whole(folder / name_of(pruner, args.half), json.dumps(head | result))
    print(f"the tower ran {encodings.runs} times for {len(videos)} videos; {time.process_time():.0f} s of CPU in all")


if __name__ == "__main__":
    main()
