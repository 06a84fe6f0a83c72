"""read_video() beside ffmpeg's program: the same frames in the same order, of the same size and in the same colours.

The files are made by the program, too; what it shows of them is the right answer, to a mean error of 1 a frame.
"""

import logging
import shutil
import subprocess
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from tango.inference import video
from tango.inference.video import read_video, uniform_indices

pytestmark = pytest.mark.skipif(not shutil.which("ffmpeg"), reason="ffmpeg's program is not installed")

SOURCE = "-f lavfi -i testsrc2=s=64x48:r=10:d=3 "  # 30 frames
OTHER = "-f lavfi -i testsrc2=s=80x64:r=10:d=3 "
X264 = "-c:v libx264 -preset ultrafast -pix_fmt yuv420p -g 10 -bf 2 "
H264 = SOURCE + X264
TURNED = "-i {h264} -c copy -bsf:v h264_metadata=display_orientation=insert:"
COLOURS = (
    SOURCE + "-vf scale=out_color_matrix=bt709:out_range={},format=yuv420p " + X264 + "-colorspace {} -color_range {} "
)

# The name of a file, by which its format is chosen, and how ffmpeg makes it. {h264} is a plain MP4.
MADE = {
    "plain.mp4": H264,
    "turned_90.mp4": "-i {h264} -c copy -metadata:s:v rotate=90 ",
    "turned_180.mp4": "-i {h264} -c copy -metadata:s:v rotate=180 ",
    "turned_270.mp4": "-i {h264} -c copy -metadata:s:v rotate=270 ",
    "turned_30.mp4": "-i {h264} -c copy -metadata:s:v rotate=30 ",
    "turned_in_stream.mkv": TURNED + "rotate=90 ",
    "mirrored.mp4": TURNED + "flip=horizontal ",
    "upside_down.mp4": TURNED + "flip=vertical ",
    "turned_and_mirrored.mp4": TURNED + "rotate=90:flip=horizontal ",
    "turned_and_upside_down.mp4": TURNED + "rotate=270:flip=vertical ",
    "bt601.mp4": COLOURS.format("tv", "smpte170m", "tv"),
    "bt601_full.mp4": COLOURS.format("pc", "smpte170m", "pc"),
    "bt709.mkv": COLOURS.format("tv", "bt709", "tv"),
    "bt709_full.mp4": COLOURS.format("pc", "bt709", "pc"),
    "bt2020.mp4": COLOURS.format("tv", "bt2020nc", "tv"),
    "bt2020_full.mp4": COLOURS.format("pc", "bt2020nc", "pc"),
    "bt2020_constant.mp4": COLOURS.format("tv", "bt2020c", "tv"),
    "ycgco.mp4": COLOURS.format("tv", "ycgco", "tv"),  # swscale does not know it, and takes BT.601
    "rgb.mp4": SOURCE + "-c:v libx264rgb -g 10 ",
    "gray.mp4": SOURCE + "-c:v libx264 -pix_fmt gray ",
    "palette.avi": SOURCE + "-c:v rawvideo -pix_fmt pal8 ",
    "full_chroma.mp4": SOURCE + "-c:v libx264 -pix_fmt yuv444p ",
    "ten_bit.mp4": SOURCE + "-c:v libx264 -pix_fmt yuv420p10le ",
    "hdr.mp4": SOURCE + "-c:v libx264 -pix_fmt yuv420p10le -colorspace bt2020nc -color_trc smpte2084 ",
    "alpha.mov": SOURCE + "-vf format=rgba,geq=r=X:g=Y:b=9:a=3*X -c:v png ",
    "alpha.mkv": SOURCE + "-vf format=yuva420p,geq=lum=X:a=3*X -c:v ffv1 ",
    "odd_size.mkv": SOURCE + "-vf crop=61:45:0:0:exact=1,format=yuv444p,format=yuv420p -c:v ffv1 ",
    "interlaced.mp4": SOURCE + "-vf tinterlace=interleave_top " + X264 + "-x264-params tff=1 -flags +ildct+ilme ",
    "interlaced.mpg": SOURCE + "-vf tinterlace=interleave_top -c:v mpeg2video -flags +ildct+ilme ",
    "begins_later.mp4": "-ss 0.75 -i {h264} -c copy ",
    "ends_earlier.mp4": "-i {h264} -t 1.3 -c copy ",
    "both_cut.mov": "-ss 0.75 -i {h264} -t 1.3 -c copy ",
    "both_cut.mkv": "-ss 0.75 -i {h264} -t 1.3 -c copy ",
    "reordered.avi": H264,
    "reordered_xvid.avi": SOURCE + "-c:v mpeg4 -bf 2 -vtag XVID ",
    "no_order.avi": SOURCE + "-c:v libx264 -bf 0 -g 10 ",
    "late.mkv": H264 + "-output_ts_offset 100 ",
    "late.ts": H264 + "-output_ts_offset 5000 ",
    "gap.mp4": SOURCE + "-vf setpts=PTS+gt(N\\,15)*20/TB -fps_mode passthrough " + X264,
    "variable.mp4": SOURCE + "-vf select=not(mod(n\\,3))+not(mod(n\\,7)) -fps_mode vfr " + X264,
    "fragments.mp4": H264 + "-movflags frag_keyframe+empty_moov ",
    "raw.h264": H264,
    "raw.m2v": SOURCE + "-c:v mpeg2video -r 25 ",
    "refreshed.mp4": SOURCE + "-c:v libx264 -x264-params intra-refresh=1:keyint=10 ",  # keys that need what is before
    "open_gop.mp4": SOURCE + "-c:v libx264 -x264-params open-gop=1:keyint=10:bframes=3 ",
    "open_gop_hevc.mp4": SOURCE + "-c:v libx265 -x265-params open-gop=1:keyint=10:bframes=3:log-level=none ",
    "no_key.mp4": "-i {h264} -c copy -bsf:v noise=drop=lt(n\\,4) ",
    "no_key.mkv": "-i {h264} -c copy -bsf:v noise=drop=lt(n\\,4) ",
    "no_key.ts": "-i {h264} -c copy -bsf:v noise=drop=lt(n\\,4) ",
    "vp8.webm": SOURCE + "-c:v libvpx -g 10 -auto-alt-ref 1 -lag-in-frames 10 ",
    "vp9.webm": SOURCE + "-c:v libvpx-vp9 -g 10 -auto-alt-ref 1 -lag-in-frames 10 ",
    "motion.mkv": SOURCE + "-c:v mjpeg ",
    "moving.gif": SOURCE,
    "one.mp4": SOURCE + "-frames:v 1 " + X264,
    "one.png": SOURCE + "-frames:v 1 ",
    "larger_second.mkv": SOURCE + OTHER + "-map 0 -map 1 -disposition:v 0 " + X264,
    "default_second.mkv": OTHER + SOURCE + "-map 0 -map 1 -disposition:v:0 0 -disposition:v:1 default " + X264,
    "two.ts": SOURCE + OTHER + "-map 0 -map 1 " + X264,
    "cover_first.mp4": "-f lavfi -i testsrc2=s=320x240:r=1:d=1 -i {h264} -map 0 -map 1 -c:v:0 mjpeg -c:v:1 copy "
    "-disposition:v:0 attached_pic -disposition:v:1 0 ",
}  # fmt: skip
# Files after each other in one: a clock that is set back or on, other sizes, colours and turns.
JOINED = {
    "twice.ts": [H264, H264],
    "clock_set_on.ts": [H264, H264 + "-output_ts_offset 1000 "],
    "clock_set_back.ts": [H264 + "-output_ts_offset 1000 ", H264],
    "larger.ts": [H264, OTHER + X264],
    "smaller.h264": [OTHER + X264, H264],
    "other_colours.ts": [COLOURS.format("tv", "bt709", "tv"), COLOURS.format("pc", "smpte170m", "pc")],
    "other_turn.h264": [H264, TURNED + "rotate=90 "],
}


def ffmpeg(arguments: str, *files: Path) -> bytes:
    command = ["ffmpeg", "-v", "error", "-nostdin", "-y", *arguments.split(), *map(str, files)]
    return subprocess.run(command, check=True, capture_output=True, timeout=60).stdout


def shown_by_ffmpeg(path: Path) -> list[np.ndarray]:
    """All frames that the program shows, through PPM, which says the size of each."""
    written = ffmpeg(f"-i {path} -fps_mode passthrough -pix_fmt rgb24 -c:v ppm -f image2pipe -")
    frames, at = [], 0
    while at < len(written):
        _, width, height, _ = (int(number) for number in written[at + 1 : at + 40].split(maxsplit=4)[:4])
        begin = written.index(b"\n255\n", at) + 5
        at = begin + 3 * width * height
        frames.append(np.frombuffer(written[begin:at], np.uint8).reshape(height, width, 3))
    return frames


@pytest.fixture(scope="module")
def h264(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("h264") / "h264.mp4"
    ffmpeg(H264, path)
    return path


@pytest.mark.parametrize("name", [*MADE, *JOINED])
def test_frames_are_those_of_the_program(
    name: str, h264: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / name
    for i, arguments in enumerate(JOINED.get(name, [MADE.get(name, "")])):
        ffmpeg(arguments.format(h264=h264), part := tmp_path / f"{i}{path.suffix}")
        with path.open("ab") as whole:
            whole.write(part.read_bytes())
    expected = shown_by_ffmpeg(path)
    with caplog.at_level(logging.WARNING):
        clip = read_video(path, 1000)
    assert clip.total_frames == len(clip.frames) == len(expected) > 0
    assert clip.frames.shape[1:] == expected[0].shape
    errors = [np.abs(got.astype(int) - right).mean() for got, right in zip(clip.frames, expected, strict=True)]
    assert max(errors) <= 1
    assert clip.timestamps[0] == 0 and all(a < b for a, b in pairwise(clip.timestamps))
    assert caplog.records == []
    for count in (1, 2, 5):  # found by seeking, where a file can be sought in
        few = read_video(path, count)
        assert np.array_equal(few.frames, clip.frames[uniform_indices(len(expected), count)])
        assert few.timestamps == tuple(clip.timestamps[i] for i in uniform_indices(len(expected), count))


@pytest.mark.parametrize("name", ["twice.ts", "clock_set_on.ts", "clock_set_back.ts"])
def test_a_clock_that_is_set_anew_goes_on(name: str, h264: Path, tmp_path: Path) -> None:
    parts = []
    for i, arguments in enumerate(JOINED[name]):
        ffmpeg(arguments, part := tmp_path / f"{i}.ts")
        parts.append(part.read_bytes())
    (path := tmp_path / name).write_bytes(b"".join(parts))
    assert read_video(path, 1000).timestamps == pytest.approx([i / 10 for i in range(60)], abs=0.02)
    assert read_video(path, 1000, start=2.95, end=3.25).timestamps == pytest.approx([3.0, 3.1, 3.2], abs=0.02)


def test_damage_is_passed_over_as_the_program_does(
    h264: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "holes.mp4"
    ffmpeg(f"-i {h264} -c copy -bsf:v noise=amount=150", path)
    counts = {len(read_video(path, 1000).frames), len(read_video(path, 1000).frames), len(shown_by_ffmpeg(path))}
    assert len(counts) == 1
    (warning,) = {record.getMessage() for record in caplog.records}
    assert "holes.mp4 is damaged: " in warning and len(caplog.records) == 1


@pytest.mark.parametrize("encoder", ["libx264", "libx265 -x265-params log-level=none"])
def test_damage_looks_alike_whatever_the_number_of_threads(
    encoder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each thread decodes a frame of an intact file, and none of them decides what a damaged one shows."""
    ffmpeg(SOURCE + f"-c:v {encoder} -pix_fmt yuv420p -g 10 ", path := tmp_path / "whole.mp4")
    whole, real = path.read_bytes(), video.shown_stream
    rng = np.random.default_rng(0)
    for number in range(9):  # the first is intact
        content = np.frombuffer(whole, np.uint8).copy()
        at = rng.integers(len(content) // 10, 3 * len(content) // 4, 3 if number else 0)
        content[at] ^= 1 << rng.integers(0, 8, len(at)).astype(np.uint8)
        path.write_bytes(content.tobytes())
        clips = []
        for threads in (1, 2, 5, 5):

            def stream(*of: object, threads: int = threads) -> object:
                found = real(*of)
                found.thread_count = threads
                return found

            monkeypatch.setattr(video, "shown_stream", stream)
            clips.append(read_video(path, 7))
        for clip in clips[1:]:
            assert np.array_equal(clip.frames, clips[0].frames) and clip.timestamps == clips[0].timestamps


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("list.m3u8", "#EXTM3U\n#EXT-X-TARGETDURATION:3\n#EXTINF:3,\n{video}\n#EXT-X-ENDLIST\n"),
        ("list.ffconcat", "ffconcat version 1.0\nfile {video}\n"),
        ("clip.mp4", "ffconcat version 1.0\nfile {video}\n"),
        ("notes.txt", "What is shown?\n" * 99),
        ("notes.mp4", ";FFMETADATA1\ntitle=notes\n"),
        ("drawing.svg", "<svg xmlns='http://www.w3.org/2000/svg' width='8' height='8'/>"),
        ("stream.sdp", "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nm=video 5000 RTP/AVP 96\n"),
    ],
)
def test_what_names_other_files_or_is_text_is_refused(name: str, content: str, tmp_path: Path) -> None:
    ffmpeg(H264, tmp_path / "video.ts")
    (path := tmp_path / name).write_text(content.format(video="video.ts"))
    with pytest.raises(ValueError, match=r"is not a video, but a playlist, text|cannot be read: Invalid data"):
        read_video(path, 2)


def test_a_pattern_of_names_is_a_name(tmp_path: Path) -> None:
    for name, colour in (("1.png", "red"), ("2.png", "red"), ("%d.png", "blue"), ("*.png", "blue")):
        ffmpeg(f"-f lavfi -i color={colour}:s=16x16 -frames:v 1 -update 1", tmp_path / "new.png")
        (tmp_path / "new.png").rename(tmp_path / name)
    for name in ("%d.png", "*.png"):
        clip = read_video(tmp_path / name, 9)
        assert len(clip.frames) == 1 and clip.frames[0, 8, 8].argmax() == 2
    with pytest.raises(FileNotFoundError):
        read_video(tmp_path / "%02d.png", 9)
