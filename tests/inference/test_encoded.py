"""One encoding of a video for many methods: the same answers and logits to the bit, and how often the tower runs."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import save_qwen

from tango.inference.chat import Chat
from tango.inference.checkpoints import Checkpoint, load
from tango.inference.encoded import Encodings
from tango.models import family_of
from tango.pruners import REGISTRY, Pruned, Pruner, Uniform, VideoTokens

SOME = ("uniform", "fastvid", "visionzip", "stop_holitom", "tango")


@pytest.fixture(scope="module", params=["llava", "qwen2_5", "qwen3"])
def loaded(request: pytest.FixtureRequest, checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    if request.param == "llava":
        return load(str(checkpoint))
    folder = tmp_path_factory.mktemp("qwen") / request.param
    save_qwen(folder, new=request.param == "qwen3", scale=4)
    return load(str(folder))


def asked(chat: Chat, video: Path, text: str, encodings: Encodings | None) -> tuple[torch.Tensor, Any, Any]:
    """The logits of the prompt, and the answer and what was kept."""
    content = [{"type": "video", "video": str(video)}, {"type": "text", "text": text}]
    messages = [{"role": "user", "content": content}]
    with chat.session(), torch.inference_mode():
        if encodings is not None:
            encodings.share()
        inputs, extra, _ = chat._prepare(messages)
        logits = chat.checkpoint.model(**inputs, **extra).logits
        answer = chat.generate(messages, {"max_new_tokens": 4}, "x")
    return logits, answer.response, answer.videos


def test_answers_are_those_of_separate_runs(loaded: Checkpoint, benchmark: Path) -> None:
    """Methods before the language model, of LLaVA-OneVision all; the tower runs once a video for the unpruned model and
    each kind of saliency.
    """
    pruners: list[Pruner] = [REGISTRY["uniform"](retention_ratio=1)]
    names = (
        [name for name in REGISTRY if name not in ("fastv", "earlytom")]
        if "Llava" in type(loaded.model).__name__
        else SOME
    )
    pruners += [REGISTRY[name](retention_ratio=0.4) for name in names]
    pruners += [REGISTRY["tango"](retention_ratio=0.4, saliency="global_query", segmentation="fastvid")]
    videos = [benchmark / "videos" / f"{name}.mp4" for name in (0, 1)]
    encodings = Encodings(loaded.model, pruners)
    calls = []
    (tower,) = family_of(loaded.model).vision_modules(loaded.model)
    usual = family_of(loaded.model).saliencies[0]
    kinds = 1 + len({pruner.saliency or usual for pruner in pruners if "saliency" in pruner.needs})
    for pruner in pruners:
        chat = Chat(loaded, pruner, max_frames=4)
        for video in videos:
            for text in ("What?", "Which one?")[: 1 + (video == videos[0])]:
                hook = tower.register_forward_hook(lambda *_: calls.append(1))
                shared = asked(chat, video, text, encodings)
                hook.remove()
                alone = asked(chat, video, text, None)
                assert torch.equal(shared[0], alone[0]) and shared[1:] == alone[1:], (pruner, text)
    assert len(calls) == encodings.runs == kinds * len(videos)
    encodings.forget()
    asked(Chat(loaded, pruners[1], max_frames=4), videos[0], "What?", encodings)
    assert encodings.runs == kinds * len(videos) + 1


def test_what_changes_the_tower_is_not_shared(checkpoint: Path, benchmark: Path) -> None:
    loaded, video = load(str(checkpoint)), benchmark / "videos" / "0.mp4"
    pruners = [REGISTRY["divprune"](retention_ratio=0.4), REGISTRY["earlytom"](retention_ratio=0.4, prune_layers=(0,)),
               REGISTRY["divprune"](retention_ratio=0.4, tower_reuse="pixels", tower_reuse_threshold=10.0)]  # fmt: skip
    encodings, found = Encodings(loaded.model, pruners), []
    for pruner in pruners:
        chat = Chat(loaded, pruner, max_frames=4)
        shared, alone = (asked(chat, video, "What?", which) for which in (encodings, None))
        assert torch.equal(shared[0], alone[0]) and shared[1:] == alone[1:], pruner
        found.append(alone[0])
    assert encodings.runs == 1 and not torch.equal(found[0], found[1])


class ByFrame(Uniform):
    """Asks for a vector of each frame, and for no saliency."""

    name = "by_frame"
    needs = frozenset({"frame_vectors"})

    def _prune(self, video: VideoTokens) -> Pruned:
        assert video.frame_vectors is not None
        return super()._prune(video)


def test_an_encoding_that_is_shared_has_what_each_of_its_methods_needs(checkpoint: Path, benchmark: Path) -> None:
    """Whichever of them comes first."""
    loaded, video = load(str(checkpoint)), benchmark / "videos" / "0.mp4"
    pruners = [ByFrame(retention_ratio=0.4), REGISTRY["tango"](retention_ratio=0.4)]
    for order in (pruners, pruners[::-1]):
        encodings = Encodings(loaded.model, pruners)
        for pruner in order:
            asked(Chat(loaded, pruner, max_frames=4), video, "What?", encodings)
        assert encodings.runs == 1


def test_the_unpruned_model_is_the_model(loaded: Checkpoint, benchmark: Path) -> None:
    whole = REGISTRY["uniform"](retention_ratio=1)
    video = benchmark / "videos" / "0.mp4"
    shared = asked(Chat(loaded, whole, max_frames=4), video, "What?", Encodings(loaded.model, [whole]))
    assert asked(Chat(loaded, None, max_frames=4), video, "What?", None)[1] == shared[1]
