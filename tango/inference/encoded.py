"""What the vision tower says of a video, computed once and used with every method and every question about it."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tango.models import family_of
from tango.models.family import Family
from tango.pruners.base import Pruner
from tango.pruners.video import Pruned, VideoTokens

ALWAYS = frozenset({"features", "grid", "timestamps", "extra"})
Kind = tuple[Any, ...]


class Encodings:
    """The tower's outputs for videos, told apart by their keys (`video_keys`), for several methods on one model.

    The tower runs once a video for each kind of saliency that methods ask for, with all that methods of that kind need,
    and once for methods at a ratio of 1, whose encoding equals the model's own to the bit. Methods that change what the
    tower does have their own, each time. Each prompt holds one video.
    """

    def __init__(self, model: Any, pruners: Sequence[Pruner]) -> None:
        self.model, self.family = model, family_of(model)
        layers = self.family.language_model(model).config.num_hidden_layers
        self.runs = 0  # of the tower
        self._needs: dict[Kind, frozenset[str]] = {}
        for before in (pruner.before_llm(layers) for pruner in pruners):
            if in_tower(before):
                continue
            kind, needs = _kind(before, self.family), before.needs
            self._needs[kind] = self._needs.get(kind, frozenset()) | needs
        # Methods that need no saliency share the encoding of some that do.
        self._stands_for: dict[Kind, Kind] = {}
        for kind in [kind for kind in self._needs if kind[1] is None]:
            if others := [other for other in self._needs if other[1] and (other[0], other[2]) == (kind[0], kind[2])]:
                self._stands_for[kind] = others[0]
                self._needs[others[0]] |= self._needs.pop(kind)
        self._found: dict[tuple[Kind, str], dict[str, Any]] = {}

    def share(self) -> None:
        """Call while one of the methods is attached to the model: until it is detached, encodings come from here."""
        seam = self.model.generate.seam
        if in_tower(seam.pruner):
            return
        kind, names = _kind(seam.pruner, self.family), seam.pruner.needs | ALWAYS
        kind = self._stands_for.get(kind, kind)

        def encode(inputs: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
            (key,) = inputs["video_keys"]
            if (kind, key) not in self._found:
                wanted = _Wanted(1.0 if kind[0] else 0.5, kind[1], kind[2])
                wanted.needs = self._needs[kind]
                (self._found[kind, key],) = self.family(self.model, wanted).encode(inputs)
                self.runs += 1
            yield {name: part for name, part in self._found[kind, key].items() if name in names}

        seam.family.encode = encode

    def forget(self) -> None:
        """Let go of all videos."""
        self._found.clear()


def in_tower(pruner: Pruner) -> bool:
    """Whether a method changes what the vision tower does."""
    return pruner.in_tower or pruner.tower_reuse is not None


def _kind(before: Pruner, family: type[Family]) -> Kind:
    """Whether nothing is pruned; the saliency, None where none is needed; where its weights are from."""
    saliency = (before.saliency or family.saliencies[0]) if "saliency" in before.needs else None
    return before.retention_ratio == 1, saliency, before.saliency_weights


class _Wanted(Pruner):
    """Asks a family for parts; prunes nothing."""

    name = "wanted"
    needs = frozenset[str]()

    def _prune(self, video: VideoTokens) -> Pruned:
        raise NotImplementedError("parts are asked for, and nothing is pruned")
