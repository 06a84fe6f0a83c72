"""LLaVA-Video (arXiv 2410.02713): a model class that transformers lacks, its processor, and its family.

The parts are LLaVA-OneVision's, but a frame's patches are averaged by 2 x 2 (27 x 27 to 13 x 13), and a newline follows
each row of each frame instead of one the whole video. So F frames of W x W tokens stand in the prompt as F*W*(W + 1)
placeholders. After pruning a newline follows each row of a frame of which a token is left.

Importing this file makes the class known to AutoConfig, AutoModelForImageTextToText and AutoProcessor.
"""

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    AutoProcessor,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    LlavaOnevisionProcessor,
)
from transformers.models.llava_onevision.modeling_llava_onevision import LlavaOnevisionModel

from tango.models.family import PlacedVideo
from tango.models.llava_onevision import LlavaOnevision
from tango.models.prompt import Edit
from tango.models.tower import weight
from tango.models.versions import FORWARD_ENDS_VIDEOS
from tango.pruners.video import Pruned

FRAMES = 64  # sampled from each video, as in the published evaluation


class LlavaVideoConfig(LlavaOnevisionConfig):  # type: ignore[no-untyped-call]
    """LlavaOnevisionConfig under a model type of its own, so that a saved model comes back as the class it was."""

    model_type = "llava_video"


class LlavaVideoModel(LlavaOnevisionModel):  # type: ignore[no-untyped-call]
    """LlavaOnevisionModel with LLaVA-Video's pooling and newlines; everything else is inherited."""

    config: LlavaVideoConfig

    def apply_pooling(self, image_features: Tensor) -> Tensor:
        """Means of 2 x 2 patches: (F, P*P, D) to (F, (P // 2)**2, D). An odd last row and column are left out."""
        frames, patches, width = image_features.shape
        side = math.isqrt(patches)
        grid = image_features.view(frames, side, side, width).permute(0, 3, 1, 2)
        return F.avg_pool2d(grid, 2).flatten(2).mT.contiguous()

    @functools.wraps(LlavaOnevisionModel.get_video_features, assigned=())  # generate() goes by the names it takes
    def get_video_features(self, *args: Any, **kwargs: Any) -> Any:
        """As in LlavaOnevisionModel, with `pooler_output` (V, F*W*(W + 1), D): a newline after each row of tokens."""
        whole = kwargs.pop("return_dict", self.config.return_dict)
        output = super().get_video_features(*args, return_dict=True, **kwargs)
        features = output.pooler_output
        videos, length, width = features.shape
        frames = len(output.last_hidden_state) // videos
        side = math.isqrt(length // frames)
        rows = features[:, : frames * side**2].reshape(videos, -1, side, width)
        newlines = self.image_newline.to(rows.device).expand(*rows.shape[:2], 1, -1)
        lines = torch.cat((rows, newlines), 2).flatten(1, 2)
        output.pooler_output = lines[:, :-1] if FORWARD_ENDS_VIDEOS else lines
        return output if whole or whole is None else output.to_tuple()


class LlavaVideoForConditionalGeneration(LlavaOnevisionForConditionalGeneration):  # type: ignore[no-untyped-call]
    """LLaVA-Video, with the interface of LlavaOnevisionForConditionalGeneration. Runs with and without a pruner."""

    config: LlavaVideoConfig

    def __init__(self, config: LlavaVideoConfig) -> None:
        super(LlavaOnevisionForConditionalGeneration, self).__init__(config)  # its own would build the other model
        text: Any = config.text_config
        self.model = LlavaVideoModel(config)
        self.lm_head = nn.Linear(text.hidden_size, text.vocab_size, bias=False)
        self.post_init()  # type: ignore[no-untyped-call]


class LlavaVideoProcessor(LlavaOnevisionProcessor):
    """LlavaOnevisionProcessor that writes F*W*(W + 1) placeholders for a video of F frames."""

    def replace_video_token(self, video_inputs: Mapping[str, Any], video_idx: int, **kwargs: Any) -> str:
        side = math.isqrt(self.num_image_tokens) // 2
        return str(self.video_token) * (len(video_inputs["pixel_values_videos"][video_idx]) * side * (side + 1))

    @staticmethod
    def time_instruction(duration: float, timestamps: Sequence[float], spaces: bool = True) -> str:
        """What stands between a video and the question: its length and the time of each frame.

        duration and timestamps (F,) are seconds; the text says them with two decimals. spaces: as in LLaVA-NeXT, with
        which the model was trained, and in lmms-eval. False: as in VLMEvalKit, with which the published tables were
        made, and which has no space after the first comma and the first full stop. (VLMEvalKit also says the height of
        a frame in pixels where the number of frames belongs; here it is the number of frames.)
        """
        times, space = ",".join(f"{time:.2f}s" for time in timestamps), " " if spaces else ""
        return (
            f"The video lasts for {duration:.2f} seconds,{space}and {len(timestamps)} frames are uniformly sampled "
            f"from it.{space}These frames are located at {times}."
            "Please answer the following questions related to this video."
        )


class LlavaVideo(LlavaOnevision):
    """LlavaVideoForConditionalGeneration. Everything as in LLaVA-OneVision, pooled by averages."""

    title = "LLaVA-Video"
    sinks: Mapping[tuple[int, int], tuple[int, ...]] = {(13, 13): (26, 157, 11)}

    @staticmethod
    def layout(config: Any, frames: int) -> tuple[int, int, str]:
        vision = config.vision_config
        side = vision.image_size // vision.patch_size // 2
        return side, frames * side * (side + 1), f"{side} rows of {side} and a newline a frame"

    def pool(self, patches: Tensor) -> Tensor:
        tokens: Tensor = self.core.apply_pooling(patches)
        return tokens

    def lay_out(self, video: PlacedVideo, pruned: Pruned) -> Edit:
        """The kept tokens in ascending place, whatever order the pruner gave them, and a newline after each row."""
        grid: Any = video.tokens.grid
        features, width = pruned.features, grid[1]
        indices = pruned.indices.to(features.device)
        rows = indices // width
        ends: Tensor = torch.unique(rows)  # ascending
        places = torch.cat((indices + rows, ends * (width + 1) + width))
        places, order = places.sort(stable=True)
        newlines = weight(self.core, "image_newline").to(features.device).expand(len(ends), -1)
        columns = video.columns[places.to(video.columns.device)]
        visual = places % (width + 1) != width
        return Edit(video.row, video.columns, columns, torch.cat((features, newlines))[order], visual)


FAMILY = LlavaVideo

AutoConfig.register(LlavaVideoConfig.model_type, LlavaVideoConfig, exist_ok=True)
AutoModelForImageTextToText.register(LlavaVideoConfig, LlavaVideoForConditionalGeneration, exist_ok=True)
AutoProcessor.register(LlavaVideoConfig, LlavaVideoProcessor, exist_ok=True)  # type: ignore[no-untyped-call]
