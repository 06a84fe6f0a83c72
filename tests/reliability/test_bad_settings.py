"""Settings, grids and inputs of prune() that cannot be: what is said, before anything is computed."""

import errno
import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from faults import ROOT
from videos import made_up

from tango import Tango
from tango.cli import main
from tango.inference import video
from tango.runs.settings import SettingsError, from_environment

GROUP = "Settings and inputs"
KEPT = "nothing was started: it is told before anything is computed"
BOMB = "sink_tokens:\n- &a [x, x, x, x, x, x, x, x]\n" + "".join(
    f"- &{name} [{', '.join(['*' + before] * 8)}]\n" for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)
Seen = Callable[[str, str], None]
fault = pytest.mark.fault

CONFIGS = [
    (b"retention_ratio: 0.1\ntango: {context_ratio: [", "is not YAML", "corrupt YAML", "a list without an end"),
    (b"\x89PNG\r\n\x1a\n\x00\xff", "is not YAML", "no text", "the first bytes of a PNG"),
    (b"[" * 5000, "nested too deeply", "nested too deeply", "5000 opening brackets"),
    (b"- 1\n- 2\n", "must be a mapping", "no mapping", "a list"),
    (b"ratio: 0.1\n", "unknown key 'ratio'", "unknown key", "`ratio: 0.1`"),
    (b"tango: {depth: 3}\n", "has no field 'depth'", "unknown field of a method", "`tango: {depth: 3}`"),
    (b"retention_ratio: a tenth\n", "expected a number", "value of another type", "`retention_ratio: a tenth`"),
    (b"retention_ratio: 7\n", "Tango.retention_ratio = 7", "value out of range", "`retention_ratio: 7`"),
    (b"retention_ratio: .nan\n", "Tango.retention_ratio = nan", "NaN as a setting", "`retention_ratio: .nan`"),
    (b"retention_ratio: 1" + b"0" * 400, "expected a number", "a number too large", "1 with 400 zeros"),
    (BOMB.encode(), "sink_tokens[0] = [", "aliases that multiply", "a list of 8**9 members by aliases"),
]  # fmt: skip


@pytest.mark.parametrize(
    "content, told",
    [pytest.param(content, told, marks=fault(f"config: {case}", how)) for content, told, case, how in CONFIGS],
)
def test_a_bad_config(content: bytes, told: str, tmp_path: Path, seen: Seen) -> None:
    file = tmp_path / "config.yaml"
    file.write_bytes(content)
    with pytest.raises(SettingsError) as error:
        from_environment({"WRAPPER": "tango", "TANGO_CONFIG": str(file)})
    assert told in str(error.value) and "config.yaml" in str(error.value) and len(str(error.value)) < 2000
    seen(str(error.value), KEPT)


@pytest.mark.parametrize(
    "environ, told",
    [
        pytest.param({"WRAPPER": "tengo"}, "there is no such method", marks=fault("unknown method", "`WRAPPER=tengo`")),
        pytest.param({"WRAPPER": "tango", "TANGO_ARGS": "expansion=2,expansion=3"}, "sets 'expansion' twice",
                     marks=fault("a setting twice", "`TANGO_ARGS=expansion=2,expansion=3`")),
        pytest.param({"WRAPPER": "tango", "TANGO_ARGS": "retention_ratio=1.5"}, "retention_ratio = 1.5: expected",
                     marks=fault("a setting out of range", "`TANGO_ARGS=retention_ratio=1.5`")),
        pytest.param({"TANGO_ARGS": "retention_ratio=0.1"}, "WRAPPER is not",
                     marks=fault("settings without a method", "`TANGO_ARGS` without `WRAPPER`")),
        pytest.param({"WRAPPER": "tango", "TANGO_CONFIG": "gone.yaml"}, "no such file",
                     marks=fault("config: missing", "`TANGO_CONFIG=gone.yaml`")),
        pytest.param({"WRAPPER": "tango", "TANGO_CONFIG": "~nobody-of-this-name/c.yaml"}, "no such file",
                     marks=fault("config: a home that is not", "`TANGO_CONFIG=~nobody-of-this-name/c.yaml`")),
    ],
)  # fmt: skip
def test_bad_variables(
    environ: dict[str, str], told: str, tmp_path: Path, seen: Seen, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SettingsError) as error:
        from_environment(environ)
    assert told in str(error.value)
    seen(str(error.value), KEPT)


@pytest.mark.parametrize(
    "words, told",
    [
        pytest.param(["ask", "--ratio", "7"], "(0, 1]", marks=fault("option out of range", "`tango ask --ratio 7`")),
        pytest.param(["ask", "--frames", "0"], "--frames", marks=fault("no frames", "`tango ask --frames 0`")),
        pytest.param(["ask", "--device", "tpu"], "tpu", marks=fault("unknown device", "`tango ask --device tpu`")),
        pytest.param(["profile", "--method", "fastv", "--ratio", "0.1"], "FastV",
                     marks=fault("a ratio that a method cannot reach", "FastV at 0.1 on four layers")),
        pytest.param(["sweep", "{}/torn.yaml"], "is not YAML", marks=fault("grid: corrupt YAML", "`ratios: [0.1`")),
        pytest.param(["sweep", "{}/grid.yaml"], "unknown key", marks=fault("grid: unknown key", "`ratio: [0.1]`")),
    ],
)  # fmt: skip
def test_bad_options(
    words: list[str],
    told: str,
    tmp_path: Path,
    seen: Seen,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(ROOT)
    (tmp_path / "torn.yaml").write_text("ratios: [0.1")
    (tmp_path / "grid.yaml").write_text("ratio: [0.1]")
    assert main([word.format(tmp_path) for word in words]) == 2
    said = capsys.readouterr()
    (line,) = [line for line in said.err.splitlines() if line.startswith("tango: ")]
    assert told in line and not said.out
    seen(line, KEPT)


def nan(tensor: torch.Tensor) -> torch.Tensor:
    changed = tensor.clone()
    changed.view(-1)[7] = float("nan")
    return changed


@pytest.mark.parametrize(
    "change, told",
    [
        pytest.param(lambda v: {"features": nan(v["features"])}, "features must be finite",
                     marks=fault("NaN features", "`prune()` with one NaN")),
        pytest.param(lambda v: {"saliency": nan(v["saliency"])}, "saliency must be finite",
                     marks=fault("NaN saliency", "`prune()` with one NaN")),
        pytest.param(lambda v: {"features": v["features"] * 1e30}, "features must lie within 1e+16",
                     marks=fault("features too large", "`prune()` of features of 1e30, whose squares are infinite")),
        pytest.param(lambda v: {"features": v["features"].to(torch.float8_e4m3fn)}, "floating-point tensor of float16",
                     marks=fault("features of another type", "`prune()` of float8")),
        pytest.param(lambda v: {"saliency": v["saliency"][:2]}, "saliency must have shape",
                     marks=fault("saliency of another length", "`prune()` with that of two frames of three")),
        pytest.param(lambda v: {"grid": (9, 9)}, "does not hold the 6 tokens",
                     marks=fault("a grid that does not fit", "`prune()` with 9 x 9 for 6 tokens a frame")),
        pytest.param(lambda v: {"timestamps": ["a", "b", "c"]}, "timestamps must be numbers",
                     marks=fault("times that are no numbers", "`prune()` with letters")),
    ],
)  # fmt: skip
def test_bad_inputs_of_prune(change: Callable[[Any], dict[str, Any]], told: str, seen: Seen) -> None:
    features, saliency, grid, times = made_up(3, (2, 3), 8)
    video = {"features": features, "saliency": saliency, "grid": grid, "timestamps": times}
    with pytest.raises(ValueError, match=r"must|grid") as error:
        Tango().prune(**(video | change(video)))
    assert told in str(error.value)
    seen(f"ValueError: {error.value}", "in an evaluation: the other samples; this one is recorded as failed")


class Unreadable(io.FileIO):
    """A file on a drive that fails."""

    def read(self, size: int = -1) -> bytes:
        raise OSError(errno.EIO, os.strerror(errno.EIO))


@fault("a file that gives errors", "a drive that fails at the first byte")
def test_a_file_that_gives_errors(
    seen: Seen, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def opens(path: Any, mode: str, buffering: int, closefd: bool = True) -> Unreadable:
        return Unreadable(path, mode, closefd)

    monkeypatch.setattr(video, "open", opens, raising=False)
    assert main(["ask", str(ROOT / "data/motionqa/videos/0.mp4"), "What?"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "cannot be read: Input/output error" in line
    seen(line, KEPT)


@fault("a file of the system's, without a size", "`/proc/self/mem` as the video")
def test_a_file_of_no_size_is_not_read(seen: Seen, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ask", "/proc/self/mem", "What?"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "it is empty; pass a video file" in line
    seen(line, KEPT)
