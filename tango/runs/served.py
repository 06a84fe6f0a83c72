"""Asks a server of vLLM with the plugin of vllm-plugin/ in the place of a model in this process.

The server reads the videos and prunes them, with the frames, the method and the settings that this process means: all
three are asked for or held against what the server says. docs/serving.md has the commands.
"""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import importlib
import io
import json
import re
import urllib.error
import urllib.request
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import AutoProcessor

from tango.inference.chat import TIMES, Answer, Chat, open_image
from tango.inference.checkpoints import Checkpoint, class_name
from tango.inference.generation import generation_settings
from tango.inference.prompt import Message, check_text
from tango.inference.video import read_video, uniform_indices
from tango.models import FAMILIES
from tango.models.original import read_config
from tango.pruners.base import Pruner
from tango.runs import provenance
from tango.runs.run import ArgumentError
from tango.runs.settings import MethodSettings, SettingsError, check_served, fingerprint, served

# By class: whether positions in its prompts are those of the shorter prompt. The families of vllm-plugin/tango_vllm.
GAPLESS = {
    "LlavaOnevisionForConditionalGeneration": True,
    "InternVLForConditionalGeneration": True,
    "Qwen2_5_VLForConditionalGeneration": False,
    "Qwen3VLForConditionalGeneration": False,
    "Qwen3_5ForConditionalGeneration": False,
}
TIMEOUT = 600.0  # seconds, of a request
# Settings of generate() that vLLM has, by its names; the rest of what generate() takes is refused.
SETTINGS = {
    "max_new_tokens": "max_tokens", "min_new_tokens": "min_tokens", "repetition_penalty": "repetition_penalty",
    "temperature": "temperature", "top_p": "top_p", "top_k": "top_k",
}  # fmt: skip
HANDLED = ("do_sample", "use_cache")


def why_not_served(pruner: Pruner | None, family: str | None, layers: int | None) -> str | None:
    """Why vLLM cannot serve a model of this class with a method; None if it can, or if the model is not known.

    pruner: None for the unpruned model. layers: of its language model.
    """
    if family is None:
        return None
    if family not in GAPLESS:
        return f"{family} is not served; these are: {', '.join(GAPLESS)}"
    saliencies = importlib.import_module(FAMILIES[family]).FAMILY.saliencies
    try:
        check_served(served(pruner), layers or 1, saliencies, gapless=GAPLESS[family])
    except SettingsError as error:
        return str(error)
    return None


@dataclass
class ServedChat(Chat):
    """A model that a server answers for: as Chat, but without times of parts, log-likelihoods and kept indices.

    Args, beside those of Chat:
        server: http://host:port.
    """

    server: str = ""
    _seen: tuple[Any, tuple[Sequence[int], Sequence[int]]] | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.times != TIMES[0]:
            raise ArgumentError(f"times={self.times!r}: a server of vLLM has the real times of frames; leave it out")

    @contextlib.contextmanager
    def session(self) -> Iterator[ServedChat]:
        """Hold the server against what is meant; ask within.

        Raises:
            ArgumentError: it prunes with another method or other settings, or does not say with which.
        """
        wanted = served(self.pruner)
        found = re.findall(r'^tango:method\{method="(\w+)",settings="(\w+)"\} 1', self._fetch("/metrics"), re.MULTILINE)
        if (wanted.name, fingerprint(wanted)) not in found:
            told = ", ".join(f"{name} ({settings})" for name, settings in found) or "no method of tango-vllm"
            unpruned = ", which for the unpruned model is WRAPPER=uniform TANGO_ARGS=retention_ratio=1.0"
            raise ArgumentError(
                f"server={self.server!r} has {told}; this run is of {wanted.name} ({fingerprint(wanted)}): start it "
                f"with the same WRAPPER, TANGO_CONFIG and TANGO_ARGS{unpruned if self.pruner is None else ''}"
            )
        yield self

    def generate(self, messages: Sequence[Message], settings: Mapping[str, Any], name: str) -> Answer:
        """Answer a conversation, as Chat.generate().

        Raises:
            ValueError: what a server cannot be asked, or what it says is wrong with the request.
        """
        options, until = generation_settings(settings, self.use_cache)
        unknown = sorted(
            key for key, value in options.items() if value is not None and key not in (*SETTINGS, *HANDLED)
        )
        if unknown:
            raise ValueError(f"{', '.join(unknown)}: a server of vLLM does not decode so; leave it out")
        asked = {SETTINGS[key]: value for key, value in options.items() if key in SETTINGS and value is not None}
        asked |= (
            {"seed": (self.seed + zlib.crc32(name.encode())) % 2**63} if options["do_sample"] else {"temperature": 0}
        )
        asked |= {"stop": until} if until else {}
        reply = json.loads(self._fetch("/v1/chat/completions", {**self._prompt(messages), **asked}))
        usage = reply["usage"]
        told = (usage.get("prompt_tokens_details") or {}).get("multimodal_tokens") or {}
        if "video" in told and "video_before" not in told:
            raise ValueError("the server tells no video tokens before and after pruning; is it one of tango-vllm?")
        before, after = (told.get(f"video_{when}", 0) for when in ("before", "after"))
        return Answer(
            response=(reply["choices"][0]["message"]["content"] or "").strip(),
            timing=None,
            tokens={
                "input_tokens": usage["prompt_tokens"],
                "output_tokens": usage["completion_tokens"],
                "video_tokens_before": before,
                "video_tokens_after": after,
                "video_tokens_average": after,
            },
            videos=[{"tokens_before": before, "tokens_after": after}]
            if before
            else [],  # together, if there are several
        )

    def generate_batch(
        self, conversations: Sequence[Sequence[Message]], settings: Mapping[str, Any], names: Sequence[str]
    ) -> list[Answer]:
        """Answer several conversations, one request after another."""
        return [self.generate(*asked) for asked in zip(conversations, [settings] * len(names), names, strict=True)]

    def loglikelihood(self, messages: Sequence[Message], continuation: str) -> Answer:
        """Raises ValueError: servers are asked for text."""
        raise ValueError("a server is asked for text, and this task needs log-likelihoods: evaluate it in transformers")

    def _prompt(self, messages: Sequence[Message]) -> dict[str, Any]:
        """The conversation for a server, and which frames it is to read."""
        special = [t.content for t in self.checkpoint.processor.tokenizer.added_tokens_decoder.values() if t.special]
        parts = {id(part): part for message in messages for part in message["content"] if part["type"] == "video"}
        ends = {(part.get("start"), part.get("end")) for part in parts.values()} or {(None, None)}
        if len(ends) > 1:
            raise ValueError(
                "videos of which other parts are shown: a server takes one start and end for all of a prompt"
            )
        ((start, end),) = ends
        frames: dict[str, Any] = {"num_frames": self.max_frames, "video_backend": "tango"}
        frames |= {key: value for key, value in (("start", start), ("end", end)) if value is not None}
        sizes: dict[str, Any] = {}
        if self.limits is not None or self.sampling is not None:
            looks = [self._look(part) for part in parts.values()]
            if any(look != looks[0] for look in looks):
                raise ValueError("videos of unequal length or shape: a server takes one size for all of a prompt")
            frames |= dict(zip(("indices", "size"), looks[0], strict=True)) if looks else {}
        if self.limits is not None:
            sizes = {"mm_processor_kwargs": {"videos_kwargs": {"do_resize": False}} | self.limits.of_images()}
        shown = [
            {"role": message["role"], "content": [_part(part, special) for part in message["content"]]}
            for message in messages
        ]
        return {"messages": shown} | sizes | ({"media_io_kwargs": {"video": frames}} if parts else {})

    def _look(self, part: Mapping[str, Any]) -> tuple[Sequence[int], Sequence[int]]:
        """Which frames of a video, or of its part, are shown, and their height and width."""
        wanted = (str(part["video"]), part.get("start"), part.get("end"))
        if self._seen is None or self._seen[0] != wanted:
            chosen: list[int] = []

            def choose(total: int, seconds: float) -> Sequence[int]:
                chosen[:] = self.sampling(total, seconds) if self.sampling else uniform_indices(total, self.max_frames)
                return chosen

            clip = read_video(wanted[0], choose, *wanted[1:], self._resized)
            self._seen = (wanted, (chosen, list(clip.frames.shape[1:3])))
        return self._seen[1]

    def _fetch(self, path: str, content: Mapping[str, Any] | None = None) -> str:
        """What the server says at a path, or to a request there.

        Raises:
            ValueError: it says that the request is wrong, with its reason.
            ConnectionError: it does not answer.
        """
        data = None if content is None else json.dumps(content).encode()
        request = urllib.request.Request(self.server + path, data, {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=TIMEOUT) as response:
                return str(response.read().decode())
        except urllib.error.HTTPError as error:
            said = error.read().decode(errors="replace")
            with contextlib.suppress(ValueError, KeyError, TypeError):
                said = json.loads(said)["error"]["message"]
            raise ValueError(f"the server answered {error.code}: {said[:500]}") from error
        except (urllib.error.URLError, TimeoutError) as error:
            raise ConnectionError(f"server={self.server!r} does not answer: {error}") from error


def outline(
    pretrained: str, server: str, settings: MethodSettings, *, revision: str = "main", dtype: Any = None
) -> tuple[Checkpoint, MethodSettings]:
    """A checkpoint that a server holds, its processor and what results say of it, without weights; and the method as it
    is served.

    Raises:
        CheckpointError: it is none. ArgumentError: no server answers there, or it cannot serve that.
    """
    family, config = class_name(pretrained, revision), read_config(pretrained, revision)
    layers = config.get("text_config", config).get("num_hidden_layers")
    if reason := why_not_served(settings.pruner, family, layers):
        raise ArgumentError(f"server={server!r}: {reason}")
    try:
        with urllib.request.urlopen(f"{server}/version", timeout=60) as response:
            version = json.loads(response.read())["version"]
    except (OSError, ValueError, KeyError) as error:
        raise ArgumentError(f"server={server!r}: no server of vLLM answers there ({error})") from error
    stored = config.get("dtype", config.get("torch_dtype"))
    described = {
        "pretrained": pretrained,
        "revision": revision,
        "class": family,
        "dtype": str(stored if dtype in (None, "auto") else dtype).removeprefix("torch."),
        "attn_implementation": None,
        "engine": f"vLLM {version}",
        "served_by": provenance.served_fingerprint(),
    }
    processor = AutoProcessor.from_pretrained(pretrained, revision=revision, trust_remote_code=False)  # type: ignore[no-untyped-call]
    pruner = None if settings.pruner is None else served(settings.pruner)
    return Checkpoint(None, processor, torch.device("cpu"), described), dataclasses.replace(settings, pruner=pruner)


def _part(part: Mapping[str, Any], special: Sequence[str]) -> dict[str, Any]:
    """A part of a message as OpenAI's API has it, with the content of its file."""
    if part["type"] == "text":
        check_text(part["text"])
        if any(token in part["text"] for token in special):
            raise ValueError(
                f"the text {part['text'][:80]!r} has a special token in it, which a server would take for one"
            )
        return {"type": "text", "text": part["text"]}
    if part["type"] == "video":
        content, kind = Path(part["video"]).read_bytes(), "video/mp4"
    elif part["type"] == "image":
        file, kind = io.BytesIO(), "image/png"
        open_image(part["image"]).save(file, "png")
        content = file.getvalue()
    else:
        raise ValueError(f"a message part of type {part['type']!r}; text, image and video can be asked about")
    name = f"{part['type']}_url"
    return {"type": name, name: {"url": f"data:{kind};base64,{base64.b64encode(content).decode()}"}}
