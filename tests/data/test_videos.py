"""Videos: every frame as FFmpeg decodes it, upright, at its time; whatever is wrong is said."""

import itertools
import os
import queue
import shutil
import signal
import struct
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import av
import imageio_ffmpeg
import numpy as np
import pytest
from PIL import Image

from gma_lib.data import videos
from gma_lib.runs.files import BadFile

WIDTH, HEIGHT = 48, 32
BROWSERS = ("chromium", "chromium-browser", "google-chrome")


def make_frames(count, height=HEIGHT, width=WIDTH):
    """Blocks of random colours that move to the right, uint8 (H, W, 3)."""
    rng = np.random.default_rng(0)
    blocks = rng.integers(0, 256, (-(-height // 8), -(-width // 8), 3), np.uint8)
    picture = blocks.repeat(8, axis=0).repeat(8, axis=1)[:height, :width]
    return [np.roll(picture, 3 * number, axis=1) for number in range(count)]


def write(
    path, frames, codec="libx264rgb", pix_fmt="rgb24", *, ticks=None, prepare=None, **options
):
    """Write frames (H, W, 3), or the planes of ``pix_fmt``, as they are: without loss."""
    file_format = "apng" if codec == "apng" else None
    movflags = {"movflags": "+faststart"}
    with av.open(str(path), "w", format=file_format, options=movflags) as container:
        stream = container.add_stream(codec, rate=25, options={"qp": "0", **options})
        stream.pix_fmt = pix_fmt
        for number, frame in enumerate(frames):
            stored = "rgb24" if frame.ndim == 3 else pix_fmt
            picture = av.VideoFrame.from_ndarray(frame, format=stored).reformat(format=pix_fmt)
            if number == 0:
                stream.width, stream.height = picture.width, picture.height
                if prepare:
                    prepare(stream)
            picture.pts = ticks[number] if ticks else number
            picture.time_base = Fraction(1, 1000) if ticks else Fraction(1, 25)
            container.mux(stream.encode(picture))
        container.mux(stream.encode(None))
    return path


def read(path, **options):
    """Frames as uint8 (H, W, 3), and their times."""
    found = list(videos.read_video(path, **options))
    return [frame.transpose(1, 2, 0) for _, frame in found], [time for time, _ in found]


def test_frames_and_times(tmp_path):
    frames, times = read(write(tmp_path / "a.mp4", make_frames(3)))
    np.testing.assert_array_equal(frames, make_frames(3))
    assert times == [0, Fraction(1, 25), Fraction(2, 25)]
    assert videos.count_video_frames(tmp_path / "a.mp4") == 3


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv"])
def test_a_variable_frame_rate(name, tmp_path):
    ticks = [0, 40, 140, 150, 400]
    write(tmp_path / name, make_frames(5), ticks=ticks, prepare=set_milliseconds)
    frames, times = read(tmp_path / name)
    assert times == [Fraction(tick, 1000) for tick in ticks]
    np.testing.assert_array_equal(frames, make_frames(5))


def test_times_below_zero(tmp_path):
    ticks = [0, 250, 260, 440, 800]
    write(source := tmp_path / "a.mkv", make_frames(5), ticks=ticks, prepare=set_milliseconds)
    early = ["-muxdelay", "0", "-output_ts_offset", "-0.4", "-avoid_negative_ts", "disabled"]
    run_ffmpeg("-i", source, "-c", "copy", *early, tmp_path / "a.ts")
    times = read(tmp_path / "a.ts")[1]
    assert times == [Fraction(tick - 400, 1000) for tick in ticks]


def set_milliseconds(stream):
    stream.codec_context.time_base = Fraction(1, 1000)


TURNS = {  # degrees, hflip, vflip -> what a player shows of the stored frame
    "90": ((90, False, False), lambda frame: np.rot90(frame, 1)),
    "180": ((180, False, False), lambda frame: np.rot90(frame, 2)),
    "270": ((270, False, False), lambda frame: np.rot90(frame, 3)),
    "hflip": ((0, True, False), lambda frame: frame[:, ::-1]),
    "vflip": ((0, False, True), lambda frame: frame[::-1]),
}


@pytest.mark.parametrize("turn", TURNS)
def test_turned_and_flipped(turn, tmp_path):
    (degrees, hflip, vflip), shown = TURNS[turn]
    path = write(
        tmp_path / "a.mp4",
        make_frames(2),
        prepare=lambda stream: stream.set_display_rotation(degrees, hflip=hflip, vflip=vflip),
    )
    np.testing.assert_array_equal(read(path)[0], [shown(frame) for frame in make_frames(2)])


def test_a_video_turned_by_half_a_quarter_is_refused_by_its_angle(tmp_path):
    """It has no upright rectangle of pixels."""
    path = write(tmp_path / "a.mp4", make_frames(2), **turn(45))
    with pytest.raises(BadFile, match=r"a\.mp4: .*\b45\b"):
        read(path)


def test_turned_and_stored_as_rgb(tmp_path):
    """Nothing has to be converted then, and rows may be stored from the last one up."""
    path = write(
        tmp_path / "a.mov",
        make_frames(2),
        "png",
        "rgb24",
        prepare=lambda stream: stream.set_display_rotation(0, vflip=True),
    )
    np.testing.assert_array_equal(read(path)[0], [frame[::-1] for frame in make_frames(2)])


@pytest.mark.parametrize("left", [4, 16])
def test_what_a_stream_cuts_off_on_the_left_is_not_shown(left, tmp_path):
    whole, cut = tmp_path / "a.mp4", tmp_path / "cut.mp4"
    write(whole, make_frames(2), "libx264", "yuv420p")
    crop = f"h264_metadata=crop_left={left}:crop_top=2"
    ffmpeg = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-i", whole, "-c", "copy"]
    subprocess.run([*ffmpeg, "-bsf:v", crop, cut], check=True)
    frames = [frame[2:, left:] for frame in read(whole)[0]]
    np.testing.assert_allclose(read(cut)[0], frames, atol=2)  # colours are shared by 2 x 2 pixels


def run_ffmpeg(*arguments):
    subprocess.run([imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", *arguments], check=True)


def add_clap(movie, left, top):
    """Say in a QuickTime file, in front of whose index nothing is inserted, to show the middle."""
    size = (WIDTH - 2 * left, 1, HEIGHT - 2 * top, 1, 0, 1, 0, 1)
    content, start = bytearray(movie.read_bytes()), 0
    end, grown = len(content), []
    for kind in (b"moov", b"trak", b"mdia", b"minf", b"stbl", b"stsd", None):
        while kind and content[start + 4 : start + 8] != kind:
            start += int.from_bytes(content[start : start + 4])
        grown.append(start)
        end = start + int.from_bytes(content[start : start + 4])
        start += 16 if kind == b"stsd" else 8
    content[end:end] = struct.pack(">I4s8I", 40, b"clap", *size)
    for start in grown:
        length = int.from_bytes(content[start : start + 4]) + 40
        content[start : start + 4] = length.to_bytes(4)
    movie.write_bytes(content)


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_what_a_file_cuts_off_is_not_shown(suffix, tmp_path):
    movie = tmp_path / "a.mp4"
    run_ffmpeg("-i", write(tmp_path / "whole.mp4", make_frames(2)), "-c", "copy", movie)
    add_clap(movie, left=9, top=2)
    run_ffmpeg("-i", movie, "-c", "copy", cut := tmp_path / f"cut.{suffix}")
    frames, _ = read(cut)
    np.testing.assert_array_equal(frames, [frame[2:-2, 9:-9] for frame in make_frames(2)])
    assert decode_with_ffmpeg(cut) == b"".join(frame.tobytes() for frame in frames)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_frames_are_turned_as_their_exif_tag_says(orientation, tmp_path):
    exif, pictures = Image.Exif(), tmp_path / "a.mjpeg"
    exif[0x112] = orientation
    for number, frame in enumerate(make_frames(2)):
        Image.fromarray(frame).save(picture := tmp_path / f"{number}.jpg", exif=exif)
        with open(pictures, "ab") as file:
            file.write(picture.read_bytes())
    run_ffmpeg("-i", pictures, "-c", "copy", movie := tmp_path / "a.mov")
    frames, _ = read(movie)
    assert frames[0].shape == ((HEIGHT, WIDTH, 3) if orientation < 5 else (WIDTH, HEIGHT, 3))
    assert decode_with_ffmpeg(movie) == b"".join(frame.tobytes() for frame in frames)


def test_pictures_with_unknown_tags_are_right(tmp_path):
    run_ffmpeg("-i", write(tmp_path / "a.mp4", make_frames(2)), "-c:v", "tiff", tmp_path / "a.mov")
    np.testing.assert_array_equal(read(tmp_path / "a.mov")[0], make_frames(2))


def test_a_clip_cut_where_pictures_refer_to_earlier_ones_is_right(tmp_path):
    groups = "open-gop=1:keyint=12:min-keyint=12:scenecut=0:bframes=3:ref=4:b-pyramid=normal"
    source = ["-f", "lavfi", "-i", "testsrc2=size=192x128:rate=10:duration=6"]
    run_ffmpeg(*source, "-c:v", "libx264", "-x264-params", groups, whole := tmp_path / "a.mp4")
    run_ffmpeg("-ss", "3.6", "-i", whole, "-c", "copy", cut := tmp_path / "cut.mp4")
    check = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-i", cut, "-f", "null", "-"]
    assert b"mmco" in subprocess.run(check, capture_output=True).stderr  # else this shows nothing
    frames, _ = read(cut)
    assert len(frames) == 24
    assert decode_with_ffmpeg(cut) == b"".join(frame.tobytes() for frame in frames)


@pytest.mark.parametrize(("codec", "order"), [("huffyuv", "tff"), ("png", "bff"), ("mjpeg", "bff")])
def test_a_file_says_that_it_is_interlaced(codec, order, tmp_path):
    """Where frames themselves do not."""
    source = write(tmp_path / "a.mp4", make_frames(4))
    flags = ["-vf", f"setfield={order}", "-c:v", codec, "-q:v", "2"]
    run_ffmpeg("-i", source, *flags, movie := tmp_path / "a.mov")
    said = []
    frames, _ = read(movie, say=said.append)
    assert len(said) == 1
    wanted = decode_with_ffmpeg(movie, "-vf", f"setfield={order},bwdif=mode=send_frame")
    wanted = np.frombuffer(wanted, np.uint8).reshape(4, HEIGHT, WIDTH, 3)
    np.testing.assert_array_equal(frames[1:], wanted[1:])  # the first: see below
    run_ffmpeg("-i", source, *flags[2:], movie := tmp_path / "progressive.mov")
    frames, _ = read(movie, say=said.append)
    assert len(said) == 1
    assert decode_with_ffmpeg(movie) == b"".join(frame.tobytes() for frame in frames)


@pytest.mark.parametrize("encoder", [["mjpeg"], ["mpeg4", "-bf", "2"], ["libx264", "-bf", "3"]])
def test_dropped_frames_of_avi_leave_a_gap(encoder, tmp_path):
    source = ["-f", "lavfi", "-i", "testsrc2=size=96x64:rate=10:duration=3"]
    dropped = ["-vf", "select='not(between(n,5,14))'", "-fps_mode", "vfr"]
    run_ffmpeg(*source, "-c:v", *encoder, tmp_path / "a.avi")
    assert read(tmp_path / "a.avi")[1] == [Fraction(number, 10) for number in range(30)]
    run_ffmpeg(*source, *dropped, "-c:v", *encoder, tmp_path / "b.avi")
    times = read(tmp_path / "b.avi")[1]
    steps = [10 * (late - early) for early, late in itertools.pairwise(times)]
    assert sorted(steps) == [1] * 18 + [11]
    # AVI holds times in the order in which frames are decoded
    assert 4 <= steps.index(11) <= (4 if encoder == ["mjpeg"] else 6)


def test_interlaced_frames_are_deinterlaced_and_a_line_says_so(tmp_path):
    first = [draw_bar(4 + 4 * number) for number in range(4)]
    woven = [draw_bar(6 + 4 * number) for number in range(4)]  # the lines above, half a frame later
    for picture, early in zip(woven, first, strict=True):
        picture[1:HEIGHT:2] = early[1:HEIGHT:2]
    said = []
    interlaced = {"x264-params": "bff=1"}
    path = write(tmp_path / "a.mp4", woven, "libx264", "yuv420p", **interlaced)
    frames, times = read(path, say=said.append)
    wanted = [(picture[:HEIGHT].astype(float) - 16) * 255 / 219 for picture in first]
    for frame, picture in zip(frames, wanted, strict=True):
        np.testing.assert_allclose(frame[:, :, 0], picture, atol=1.5)
    assert times == [Fraction(number, 25) for number in range(4)]
    assert len(said) == 1
    assert "deinterlaced" in said[0]
    write(path, woven, "libx264", "yuv420p")  # not flagged: shown as it is stored, and nothing said
    assert np.abs(read(path, say=said.append)[0][0][:, :, 0] - wanted[0]).max() > 100
    assert len(said) == 1


@pytest.mark.parametrize(
    ("name", "value", "word"),
    [
        ("color_trc", 16, "PQ"),
        ("color_trc", 18, "HLG"),
        ("color_trc", 1, None),  # BT.709
        ("sample_aspect_ratio", Fraction(4, 3), "1.33 times as wide"),
        ("sample_aspect_ratio", Fraction(1), None),
        ("sample_aspect_ratio", Fraction(1280, 1281), None),  # 16:9 scaled to 854x480
    ],
)
def test_pixels_that_a_player_shows_otherwise_are_told(tmp_path, name, value, word):
    said = []
    path = write(
        tmp_path / "a.mp4",
        make_frames(2),
        "libx264",
        "yuv420p",
        prepare=lambda stream: setattr(stream.codec_context, name, value),
    )
    assert read(path, say=said.append)[0][0].shape == (HEIGHT, WIDTH, 3)
    assert len(said) == bool(word)
    assert all(word in line for line in said)


def draw_bar(x):
    """A bright bar on grey, yuv420p."""
    planes = np.full((HEIGHT * 3 // 2, WIDTH), 128, np.uint8)
    planes[:HEIGHT] = 40
    planes[:HEIGHT, x : x + 10] = 200
    return planes


@pytest.mark.parametrize(
    ("pix_fmt", "colorspace", "color_range", "stored", "shown"),
    [
        ("yuv420p", 0, 1, (126, 128, 128), (128, 128, 128)),
        ("yuv420p", 0, 2, (126, 128, 128), (126, 126, 126)),
        ("yuv444p", 5, 1, (81, 90, 240), (255, 0, 0)),  # BT.601
        ("yuv444p", 1, 1, (63, 102, 240), (255, 0, 0)),  # BT.709
        ("yuv420p10le", 0, 1, (940, 512, 512), (255, 255, 255)),
        ("yuv420p10le", 0, 1, (502, 512, 512), (128, 128, 128)),
        ("gray", 0, 2, (77,), (77, 77, 77)),
        ("gray16le", 0, 2, (77 * 257,), (77, 77, 77)),
        ("bgra", 0, 2, None, (30, 20, 10)),
    ],
)
@pytest.mark.parametrize("size", [(32, 48), (21, 35)])
def test_colours(pix_fmt, colorspace, color_range, stored, shown, size, tmp_path):
    path = tmp_path / "a.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=25)
        (stream.height, stream.width), stream.pix_fmt = size, pix_fmt
        stream.codec_context.colorspace, stream.codec_context.color_range = colorspace, color_range
        frame = av.VideoFrame(size[1], size[0], pix_fmt)
        for index, plane in enumerate(frame.planes):
            if stored is None:
                one = bytes([10, 20, 30, 99])
            else:
                one = stored[index].to_bytes(1 + (max(stored) > 255), "little")
            plane.update(one * (plane.buffer_size // len(one)))
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    (picture,), _ = read(path)
    assert picture.shape == (*size, 3)
    np.testing.assert_allclose(picture, np.broadcast_to(shown, picture.shape), atol=2)


@pytest.mark.parametrize(
    ("name", "codec", "pix_fmt"),
    [
        ("a.mp4", "libx264rgb", "rgb24"),
        ("a.mkv", "ffv1", "bgr0"),
        ("a.avi", "libx264rgb", "rgb24"),
        ("a.ts", "libx264rgb", "rgb24"),
        ("a.png", "apng", "rgb24"),
        ("a.gif", "gif", "gray"),
        ("a.ogv", "libvpx", "yuv420p"),
        ("a.ivf", "libvpx", "yuv420p"),
    ],
)
def test_a_truncated_clip_is_never_taken_for_a_whole_one(name, codec, pix_fmt, tmp_path):
    path = write(tmp_path / name, make_frames(6), codec, pix_fmt)
    whole = path.read_bytes()
    assert len(read(path)[0]) == 6
    for length in np.linspace(len(whole) // 3, len(whole) - 1, 7).astype(int):
        path.write_bytes(whole[:length])
        if name == "a.avi" and length > whole.index(b"idx1"):
            assert len(read(path)[0]) == 6  # its index is at the end, and every frame is there
            continue
        with pytest.raises(BadFile):
            read(path)


def test_damage_stops_at_the_frame_and_says_so(tmp_path):
    path = write(tmp_path / "a.mkv", make_frames(6), "ffv1", "bgr0")
    whole = bytearray(path.read_bytes())
    whole[len(whole) // 2] ^= 1
    path.write_bytes(whole)
    clip = videos.read_video(path)
    before = list(itertools.islice(clip, 2))
    np.testing.assert_array_equal(before[1][1].transpose(1, 2, 0), make_frames(2)[1])
    with pytest.raises(BadFile, match=r"a\.mkv: damaged after frame [23] .*--end"):
        list(clip)


def test_a_change_of_size_stops(tmp_path):
    small = write(tmp_path / "small.h264", make_frames(3))
    large = write(tmp_path / "large.h264", make_frames(3, width=64))
    path = tmp_path / "both.h264"
    path.write_bytes(small.read_bytes() + large.read_bytes())
    clip = videos.read_video(path)
    assert len(list(itertools.islice(clip, 3))) == 3
    with pytest.raises(BadFile, match="frame 4 has 64x32 px; expected 48x32 px"):
        next(clip)


def test_frames_before_the_first_key_frame_are_left_out_with_a_line(tmp_path):
    path = write(tmp_path / "a.h264", make_frames(8), g="4", bf="0")
    content = path.read_bytes()
    path.write_bytes(content[content.index(b"\0\0\1\x41") :])  # from the second frame on
    said = []
    frames, _ = read(path, say=said.append)
    np.testing.assert_array_equal(frames, make_frames(8)[4:])
    assert len(said) == 1
    assert "3 frames before the first key frame" in said[0]


@pytest.mark.parametrize("codec", ["libx264", "mpeg4", "mpeg2video", "libvpx"])
def test_a_clip_cut_within_a_group_of_frames_says_how_many_are_left_out(tmp_path, codec):
    whole = write(tmp_path / "whole.mkv", make_frames(8), codec, "yuv420p", g="4", bf="0")
    said = []
    assert len(read(whole, say=said.append)[0]) == 8
    assert not said
    with av.open(str(whole)) as source, av.open(str(tmp_path / "cut.mkv"), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        packets = [packet for packet in source.demux(video=0) if packet.size]
        keys = [packet.is_keyframe for packet in packets]
        for packet in packets[1:]:
            packet.stream = stream
            target.mux(packet)
    left_out = keys.index(True, 1) - 1
    assert len(read(tmp_path / "cut.mkv", say=said.append)[0]) == 7 - left_out
    assert len(said) == 1
    assert f"{left_out} frames before the first key frame" in said[0]


def test_two_threads_hear_of_damage(tmp_path):
    """FFmpeg's level of messages is one for the process: who ends first must not make it deaf."""
    path = write(tmp_path / "a.h264", make_frames(12), "libx264", "yuv420p", g="12", bf="0")
    damaged = bytearray(path.read_bytes())
    middle = damaged.index(b"\0\0\1\x41", len(damaged) // 3) + 6
    damaged[middle : middle + 40] = bytes(40)
    (tmp_path / "damaged.h264").write_bytes(damaged)

    def decode(path):
        try:
            return len(list(videos.read_video(path)))
        except BadFile:
            return "refused"

    assert decode(tmp_path / "damaged.h264") == "refused"
    with ThreadPoolExecutor(4) as pool:
        paths = [path, tmp_path / "damaged.h264"] * 20
        assert set(pool.map(decode, paths[::2])) == {12}
        assert [*pool.map(decode, paths)] == [12, "refused"] * 20


TRACKS = {
    "mp4": ["libx264", "aac"],
    "mov": ["libx264", "aac"],
    "mkv": ["libx264", "aac"],
    "ts": ["libx264", "aac"],
    "avi": ["mpeg4", "mp2"],
    "webm": ["libvpx", "libvorbis"],
}


@pytest.mark.parametrize("order", ["01", "10"])
@pytest.mark.parametrize("suffix", TRACKS)
def test_sound_before_or_after_the_video_changes_nothing(tmp_path, suffix, order):
    """The last frames come out when the decoder is emptied, at the end of all tracks."""
    path, (video, sound) = tmp_path / f"a.{suffix}", TRACKS[suffix]
    sources = ["-f", "lavfi", "-i", f"testsrc2=s={WIDTH}x{HEIGHT}:r=10:d=1"]
    sources += ["-f", "lavfi", "-i", "sine=d=1:r=48000"]
    coded = ["-map", order[0], "-map", order[1], "-c:v", video, "-bf", "2", "-c:a", sound]
    ffmpeg = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error"]
    subprocess.run([*ffmpeg, *sources, *coded, "-pix_fmt", "yuv420p", path], check=True)
    said = []
    frames, _ = read(path, say=said.append)
    assert (len(frames), said) == (10, [])


def test_an_animated_webp_is_named(tmp_path):
    pictures = [Image.fromarray(frame) for frame in make_frames(3)]
    pictures[0].save(tmp_path / "a.webp", save_all=True, append_images=pictures[1:])
    with pytest.raises(BadFile, match="WebP"):
        read(tmp_path / "a.webp")


def test_what_is_no_video(tmp_path):
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "text.mp4").write_text("not a video\n" * 100)
    whole = write(tmp_path / "whole.mp4", make_frames(2))
    (tmp_path / "list.mp4").write_text(f"ffconcat version 1.0\nfile {whole}\n")
    os.mkfifo(tmp_path / "pipe.mp4")
    with av.open(str(tmp_path / "sound.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=8000)
        sound = av.AudioFrame.from_ndarray(
            np.zeros((1, 1024), np.float32), format="fltp", layout="mono"
        )
        sound.rate = 8000
        container.mux(stream.encode(sound))
        container.mux(stream.encode(None))
    for name, found in {
        "none.mp4": "no such file",
        ".": "a folder",
        "pipe.mp4": "a pipe",
        "empty.mp4": "cannot read",
        "text.mp4": "cannot read",
        "list.mp4": "cannot read",
        "sound.mp4": "without a video",
    }.items():
        with pytest.raises(BadFile, match=found):
            videos.count_video_frames(tmp_path / name)
        with pytest.raises(BadFile, match=found):
            next(videos.read_video(tmp_path / name))


def test_a_frame_above_the_limit_is_refused_by_the_header(tmp_path, monkeypatch):
    path = write(tmp_path / "a.mp4", make_frames(2))
    monkeypatch.setattr(videos, "MAX_PIXELS", 48 * 32)
    assert len(read(path)[0]) == 2
    monkeypatch.setattr(videos, "MAX_PIXELS", 48 * 32 - 1)
    with pytest.raises(BadFile, match="48x32 px; expected at most 1535 pixels"):
        videos.count_video_frames(path)


def test_a_movie_keeps_its_times_and_colours(tmp_path):
    path = tmp_path / "movie.mp4"
    pictures = [np.full((33, 49, 3), colour, np.uint8) for colour in np.eye(4, 3) * 250]
    times = [Fraction(tick, 1000) for tick in (500, 540, 700, 710, 1500)]
    videos.write_movie(path, iter(pictures), times)
    frames, shown = read(path)
    assert shown == [time - times[0] for time in times[:4]]
    for frame, picture in zip(frames, pictures, strict=True):
        np.testing.assert_allclose(frame, picture[:32, :48], atol=4)
    with av.open(str(path)) as container:
        (stream,) = container.streams
        assert (stream.codec_context.name, stream.pix_fmt) == ("h264", "yuv420p")
        assert stream.duration * stream.time_base == 1
    content = path.read_bytes()
    assert content.index(b"moov") < content.index(b"mdat")  # plays while it is loaded
    with pytest.raises(ValueError, match="no pictures"):
        videos.write_movie(path, iter([]), times)


def test_where_no_encoder_works_nothing_is_begun(monkeypatch):
    assert videos.choose_encoder(33, 49) in videos.ENCODERS
    monkeypatch.setattr(videos, "ENCODERS", ("none",))
    with pytest.raises(OSError, match="no movie of 49x33 px"):
        videos.choose_encoder(33, 49)


class Listener(SimpleHTTPRequestHandler):
    """Serves a folder and notes what a page asks for, and so reports."""

    def do_GET(self):
        self.server.asked.put(self.path)
        super().do_GET()

    def log_message(self, *_):
        pass


@pytest.mark.exhaustive
def test_a_browser_plays_the_movie(tmp_path):
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        pytest.skip("needs Chromium")
    red, blue = (np.full((64, 64, 3), colour, np.uint8) for colour in ((250, 0, 0), (0, 0, 250)))
    times = [Fraction(tick, 10) for tick in (0, 1, 3)]
    videos.write_movie(tmp_path / "movie.mp4", iter([red, blue]), times)
    (tmp_path / "page.html").write_text(
        """<video muted autoplay src="movie.mp4"></video><script>
        const video = document.querySelector("video");
        video.onerror = () => fetch("/error-" + video.error.message);
        video.onended = () => {
          const drawn = document.createElement("canvas").getContext("2d");
          drawn.drawImage(video, 0, 0);
          const [red, , blue] = drawn.getImageData(9, 9, 1, 1).data;
          fetch(`/played-${video.duration}-${video.videoWidth}-${red < 20 && blue > 230}`);
        };</script>"""
    )
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Listener, directory=tmp_path))
    server.asked = queue.Queue()
    Thread(target=server.serve_forever, daemon=True).start()
    arguments = ("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run")
    with subprocess.Popen(
        [
            *(browser, *arguments, f"--user-data-dir={tmp_path / 'profile'}"),
            *("--remote-debugging-port=0", f"http://127.0.0.1:{server.server_port}/page.html"),
        ],
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    ) as process:
        try:
            answers = iter(lambda: server.asked.get(timeout=60), None)
            told = next(path for path in answers if path.startswith(("/played", "/error")))
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            server.shutdown()
            server.server_close()
    assert told == "/played-0.3-64-true"


MEASURE = """
import resource, sys
from pathlib import Path
from gma_lib.data import videos
read = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
before = read()
count = sum(1 for _ in videos.read_video(Path(sys.argv[1])))
print(count, (read() - before) / (2400 * 2400 * 3))
"""


@pytest.mark.slow
def test_memory_holds_a_few_frames_of_an_animation(tmp_path):
    black = np.zeros((2400, 2400, 3), np.uint8)
    path = write(tmp_path / "a.png", [black] * 5, "apng", "rgba")
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, path], capture_output=True, text=True, check=True
    )
    count, frames = done.stdout.split()
    assert int(count) == 5
    assert float(frames) < 6


def turn(degrees=0, **flips):
    return {"prepare": lambda stream: stream.set_display_rotation(degrees, **flips)}


CLIPS = {
    "plain": {"codec": "libx264", "pix_fmt": "yuv420p"},
    "interlaced": {"codec": "libx264", "pix_fmt": "yuv420p", "x264-params": "bff=1"},
    "turned left": turn(90),
    "turned right": turn(270),
    "upside down": turn(180),
    "mirrored": turn(hflip=True),
    "flipped": turn(vflip=True),
    "turned and mirrored": turn(90, hflip=True),
    "variable rate": {"ticks": [0, 40, 140, 150], "prepare": set_milliseconds},
    "10 bits": {"codec": "libx264", "pix_fmt": "yuv420p10le"},
}


def decode_with_ffmpeg(path, *filters):
    """All frames, as bytes, as the ffmpeg command decodes them."""
    output = ["-fps_mode", "passthrough", "-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "quiet", "-i", path, *filters, *output]
    return subprocess.run(command, capture_output=True).stdout


@pytest.mark.parametrize("kind", CLIPS)
def test_frames_are_those_of_the_ffmpeg_command(kind, tmp_path):
    path = write(tmp_path / "a.mp4", make_frames(4), **CLIPS[kind])
    filters = ["-vf", "bwdif=mode=send_frame"] if kind == "interlaced" else []
    frames, _ = read(path, say=lambda line: None)
    wanted = np.frombuffer(decode_with_ffmpeg(path, *filters), np.uint8).reshape(4, -1)
    # FFmpeg 9, as this command is, deinterlaces the edges of the first frame otherwise than 8
    for frame, shown in list(zip(frames, wanted, strict=True))[kind == "interlaced" :]:
        np.testing.assert_array_equal(frame.ravel(), shown)


@pytest.mark.parametrize("kind", ["truncated", "of two sizes"])
def test_frames_before_the_fault_are_those_of_the_ffmpeg_command(kind, tmp_path):
    path = write(tmp_path / "a.h264", make_frames(6), g="3", bf="0")
    content = path.read_bytes()
    if kind == "truncated":
        path = write(tmp_path / "a.mkv", make_frames(6), g="3", bf="0")
        os.truncate(path, int(path.stat().st_size * 0.9))
    else:
        larger = write(tmp_path / "b.h264", make_frames(3, width=64))
        path.write_bytes(content + larger.read_bytes())
    before = []
    with pytest.raises(BadFile):  # what was read before it stays in the list
        before.extend(frame.transpose(1, 2, 0).tobytes() for _, frame in videos.read_video(path))
    assert before
    assert decode_with_ffmpeg(path).startswith(b"".join(before))
