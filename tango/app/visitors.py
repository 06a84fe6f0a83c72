"""One model that several visitors ask in turn, and what of their videos and questions is refused."""

import threading
from dataclasses import dataclass, replace
from pathlib import Path

from tango.inference.asking import conversation
from tango.inference.chat import Answer, Chat
from tango.inference.checkpoints import Checkpoint
from tango.inference.prompt import PromptTooLong
from tango.inference.video import read_video
from tango.pruners import REGISTRY, Pruner
from tango.pruners.trace import traced
from tango.visualize.picture import Picture
from tango.visualize.runs import ANSWER_TOKENS, label, panel_of, stills

WARM_UP_TOKENS = 2
NO_VIDEO = "there is no video yet: upload or record one, or choose a sample"


class Refused(ValueError):
    """What a visitor asks for that cannot be; the message is for them and names no path of this machine."""


@dataclass(frozen=True)
class Limits:
    """What a visitor may hand in: a file of so many megabytes, seconds of video, pixels a frame, letters of a question.

    streams: how many visitors may watch one at once.

    Raises:
        ValueError: one of them is not positive.
    """

    megabytes: int = 100
    seconds: float = 600
    pixels: int = 3840 * 2160
    letters: int = 4000
    streams: int = 4

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not value > 0:
                raise ValueError(f"{name} = {value!r}: give a limit above 0")


class Visitors:
    """Asks the model for one visitor after the other: a method is attached to the model, so never for two at once.

    Args:
        checkpoint: what tango.inference.checkpoints.load() returned.
        frames: sampled from each video.
        limits: of what visitors hand in.
    """

    def __init__(self, checkpoint: Checkpoint, frames: int, limits: Limits) -> None:
        self.checkpoint, self.frames, self.limits = checkpoint, frames, limits
        self.methods = [name for name in REGISTRY if self._fits(REGISTRY[name]())]
        # Queues go on when a tab is closed, while the thread that answers it may not have ended.
        self.lock = threading.Lock()

    def _fits(self, pruner: Pruner) -> bool:
        try:
            with Chat(self.checkpoint, pruner, max_frames=1).session():
                return True
        except ValueError:
            return False

    def check(self, video: str | None, question: str) -> None:
        """Turn away what cannot be asked, before the model is.

        Raises:
            Refused: no video or question, one beyond the limits, or a file that is no video.
        """
        if not video:
            raise Refused(NO_VIDEO)
        self.check_question(question)
        self.check_video(video)

    def check_question(self, question: str) -> None:
        """The part of check() about the question."""
        if not question.strip():
            raise Refused("there is no question yet: write one")
        if len(question) > self.limits.letters:
            raise Refused(f"the question has {len(question):,} letters; ask with at most {self.limits.letters:,}")

    def check_video(self, video: str | None) -> None:
        """The part of check() about the video."""
        if not video:
            raise Refused(NO_VIDEO)
        if Path(video).stat().st_size > self.limits.megabytes * 1_000_000:
            raise Refused(f"the video is larger than {self.limits.megabytes} MB; use a shorter one")
        try:
            clip = read_video(video, 1)
        except (ValueError, OSError) as error:
            raise Refused(told(error, video)) from error
        height, width = clip.frames.shape[1:3]
        if height * width > self.limits.pixels:
            raise Refused(f"its frames have {width} x {height} pixels; use a video with at most {self.limits.pixels:,}")
        if clip.duration > self.limits.seconds:
            raise Refused(f"the video lasts {clip.duration:.0f} s; use one of at most {self.limits.seconds:g} s")

    def ask(self, video: str, question: str, pruner: Pruner | None) -> tuple[Answer, Picture | None]:
        """The answer to a question, and with a pruner the picture of what became of the video's tokens.

        As with `tango ask` a first run warms up, so that times are comparable; it is also the one that is drawn.

        Raises:
            Refused: the method cannot prune this video at this ratio, or the prompt is too long.
        """
        messages = conversation(video, question)
        try:
            with self.lock, Chat(self.checkpoint, pruner, max_frames=self.frames).session() as chat:
                with traced() as traces:
                    chat.generate(messages, {"max_new_tokens": WARM_UP_TOKENS}, "visitor")
                answer = chat.generate(messages, {"max_new_tokens": ANSWER_TOKENS}, "visitor")
            return answer, None if pruner is None else self._picture(video, pruner, traces, answer)
        except PromptTooLong as error:
            raise Refused(f"left out: {error}") from error
        except (ValueError, OSError) as error:
            raise Refused(told(error, video)) from error

    def _picture(self, video: str, pruner: Pruner, traces: list, answer: Answer) -> Picture:  # type: ignore[type-arg]
        (trace,), (record,) = traces, answer.videos
        frames, times, grid = stills(self.checkpoint, read_video(video, self.frames), trace, record)
        panel = panel_of(label(pruner), pruner.retention_ratio, trace, record, str(answer.response))
        # The page draws no saliency and no segments, so neither belongs into its legend.
        panel = replace(panel, heat=None, segments=(len(times),))
        return Picture(Path(video).name, "", frames, times, grid, (panel.ratio,), ((panel,),))


def told(error: Exception, video: str) -> str:
    """What an error says, with a file's name in place of where it lies on this machine."""
    return str(error).replace(video, Path(video).name)
