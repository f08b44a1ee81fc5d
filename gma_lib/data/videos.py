"""Video files, decoded and encoded by FFmpeg's libraries, through PyAV."""

import gc
import io
import logging
import math
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from fractions import Fraction
from itertools import chain, count, pairwise
from pathlib import Path
from typing import Literal, TypeVar, cast

import av
import av.error
import numpy as np
from av.codec.context import Flags
from av.container import InputContainer
from av.filter import Graph
from av.packet import Packet
from av.stream import Disposition, Stream
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from gma_lib.flow.images import MAX_PIXELS
from gma_lib.runs.files import BadFile, reading, write_atomically
from gma_lib.runs.for_all_threads import WhileAnyInside

Encoder = Literal["libx264", "libvpx-vp9"]
ENCODERS: tuple[Encoder, ...] = ("libx264", "libvpx-vp9")  # both play in browsers
EXPECTED = "a whole video, or a folder of images"
REMEDY = (
    "Copy the file again, use only the part before (`gma video --end`), or repair it "
    "(`ffmpeg -i IN -c:v libx264 -crf 10 OUT.mp4`)"
)
# codecs of which each packet holds a frame; a field, where a video is interlaced
ONE_FRAME_A_PACKET = ("h264", "hevc", "vp9", "av1", "libdav1d")
# codecs that do not say of a frame whether it is interlaced: the file says it of all
FLAGGED_BY_FILE = ("ffvhuff", "huffyuv", "jpeg2000", "mjpeg", "png", "tiff")
FIELDS = {2: "tff", 3: "bff", 4: "tff", 5: "bff"}  # AVFieldOrder, as FFmpeg's raw decoder reads it
# codecs of which FFmpeg refuses what is right, where it is to stop at errors; it logs them, too
STRICT_IS_WRONG = ("h264", "tiff")
# side data of frames, by AVFrameSideDataType: after the last that PyAV 18 knows, Exif among them
UNKNOWN_TO_PYAV = [f"sidedata=mode=delete:type={number}" for number in range(28, 40)]
# what FFmpeg logs as an error of a file that is right
HARMLESS = ("Unknown or unsupported tag",)  # of a TIFF picture
# until the second key frame: H.264 that was cut refers to pictures before
HARMLESS_AT_START = (*HARMLESS, "mmco: unref short failure")

HDR = {16: "PQ", 18: "HLG"}  # transfer characteristics of ITU-T H.273

Result = TypeVar("Result")
logger = logging.getLogger(__name__)


def count_video_frames(path: Path) -> int | None:
    """Number of frames by a video's header; None where that does not say.

    Raises
    ------
    BadFile
        The file is no video, or its frames have more than 67 million pixels.
    """
    with _open(path) as (_, stream):
        if stream.duration and stream.time_base and stream.average_rate:
            return round(stream.duration * stream.time_base * stream.average_rate)
        return stream.frames or None


def read_video(
    path: Path,
    *,
    say: Callable[[str], None] = logger.warning,
) -> Iterator[tuple[Fraction, np.ndarray]]:
    """Yield the time, in seconds, and the pixels, uint8 (3, H, W), RGB, of one frame after another.

    Frames are turned upright as the file says, and deinterlaced where they are flagged interlaced.
    The conversion to RGB is FFmpeg's own.

    Parameters
    ----------
    path
        A video, or an animated GIF or PNG.
    say
        Callback for what a user should know about the conversion.

    Raises
    ------
    BadFile
        The file is no video, damaged, truncated, of more than 67 million pixels a frame, or changes
        its size.
    """
    path = Path(path)
    with _open(path) as (container, stream):
        for sentence in _describe_pixels(stream):
            say(f"{path}: {sentence}")
        step = 1 / Fraction(stream.guessed_rate or 25)
        time = None
        for frame in _convert(_decode(container, stream, path, say), stream, path, say):
            stored = None  # in raw streams
            if frame.pts is not None and frame.time_base:
                stored = frame.pts * frame.time_base
            if time is None:
                time = stored or Fraction(0)
            else:
                time = stored if stored is not None and stored > time else time + step
            plane = frame.planes[0]
            shape, strides = (3, frame.height, frame.width), (1, plane.line_size, 3)
            del frame  # large frames, of which few should be there at once
            # FFmpeg's own memory, which the array keeps
            yield time, np.ndarray(shape, np.uint8, cast(bytes, plane), strides=strides)
            del plane


def _describe_pixels(stream: VideoStream) -> Iterator[str]:
    """What a player would show otherwise than the frames are."""
    if kind := HDR.get(stream.codec_context.color_trc):
        yield f"HDR ({kind}); values are taken as stored, without tone mapping"
    if abs((shape := float(stream.sample_aspect_ratio or 1)) - 1) > 0.01:  # less is rounding
        yield f"pixels are {shape:.3g} times as wide as high; flow counts them as stored"


def choose_encoder(height: int, width: int) -> Encoder:
    """Open each encoder for pictures of this size, and return the name of the first that works.

    Raises
    ------
    OSError
        None works.
    """
    complaints = []
    for name in ENCODERS:
        try:
            encoder = av.CodecContext.create(name, "w")
            encoder.width, encoder.height, encoder.pix_fmt = width, height, "yuv420p"
            encoder.time_base = Fraction(1, 25)
            encoder.open()
            return name
        except (av.error.FFmpegError, ValueError) as error:
            complaints.append(f"{name}: {error}")
    raise OSError(f"no movie of {width}x{height} px can be written here: {'; '.join(complaints)}")


def write_movie(path: Path, pictures: Iterable[np.ndarray], times: Sequence[Fraction]) -> None:
    """Write an mp4 file that browsers play.

    Parameters
    ----------
    path
        The file, written whole or not at all.
    pictures
        uint8 (H, W, 3), RGB, of one size; sides are cut to even numbers, as the codec requires.
    times
        When each picture is shown, in seconds, and then when the last ends: one more than pictures.
    """
    pictures = iter(pictures)
    first = next(pictures, None)
    if first is None:
        raise ValueError(f"{path}: there are no pictures to write")
    height, width = (side - side % 2 for side in first.shape[:2])
    base = Fraction(1, min(math.lcm(*(time.denominator for time in times)), 10**6))
    ticks = [round((time - times[0]) / base) for time in times]
    with (
        write_atomically(path.absolute()) as partial,
        av.open(str(partial), "w", options={"movflags": "+faststart"}) as container,
    ):
        stream = container.add_stream(choose_encoder(height, width), options={"crf": "16"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.codec_context.time_base = base
        stream.codec_context.flags |= Flags.frame_duration
        stream.codec_context.colorspace = 1  # BT.709, limited range
        stream.codec_context.color_range = 1
        for picture, (start, end) in zip(chain([first], pictures), pairwise(ticks), strict=True):
            frame = VideoFrame.from_ndarray(np.ascontiguousarray(picture[:height, :width]))
            frame = frame.reformat(
                format="yuv420p", dst_colorspace="ITU709", dst_color_range="MPEG"
            )
            frame.pts, frame.duration, frame.time_base = start, end - start, base
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


@contextmanager
def _open(path: Path) -> Iterator[tuple[InputContainer, VideoStream]]:
    # FFmpeg opens no other file that this one names, as playlists do
    options = {
        "protocol_whitelist": "none",
        "max_pixels": str(2 * MAX_PIXELS + 2**16),  # of the picture as it is padded
        "err_detect": "crccheck+explode",
    }
    with reading(path, EXPECTED, REMEDY) as path, open(path, "rb") as file:
        if file.read(12)[8:] == b"WEBP":
            raise BadFile(
                path, "WebP", f"{EXPECTED}; FFmpeg decodes no animated WebP", "Convert it"
            )
        file.seek(0)
        try:
            container = av.open(file, "r", options=options)
        except (av.error.FFmpegError, OSError) as error:
            found = f"FFmpeg cannot read it ({error.strerror})"
            raise BadFile(path, found, EXPECTED, "Name another file") from error
        with container:
            stream = container.streams.best("video")
            if not isinstance(stream, VideoStream) or stream.disposition & Disposition.attached_pic:
                found = f"{container.format.long_name} without a video stream"
                raise BadFile(path, found, EXPECTED, "Name another file")
            if stream.codec_context is None:
                raise BadFile(path, "FFmpeg does not know its codec", EXPECTED, "Convert it first")
            if stream.width * stream.height > MAX_PIXELS:
                found = f"frames of {stream.width}x{stream.height} px"
                raise BadFile(path, found, f"at most {MAX_PIXELS} pixels", "Scale the video first")
            if stream.codec_context.name in STRICT_IS_WRONG:
                options["err_detect"] = "crccheck"
            stream.codec_context.options = options
            # else FFmpeg leaves columns in that the stream says to cut off on the left
            stream.codec_context.flags |= Flags.unaligned
            stream.codec_context.thread_count = 1  # one thread, whose messages can be told apart
            yield container, stream


def _decode(
    container: InputContainer, stream: VideoStream, path: Path, say: Callable[[str], None]
) -> Iterator[VideoFrame]:
    """Decode to the end, and compare it with what the file's header says."""
    packets = container.demux()
    stored = early = hidden = decoded = keys = 0
    end = Fraction(0)
    shown: deque[int | None] = deque()  # AVI holds times in the order of its packets only
    try:
        while (packet := _read_packet(packets)) is not None:
            if packet.pts is not None:
                end = max(end, (packet.pts + (packet.duration or 0)) * packet.time_base)
            if packet.stream.index != stream.index:  # its own stream_index is 0 at the end
                continue
            stored, hidden = stored + (packet.size > 0), hidden + packet.is_discard
            if packet.size and not packet.is_keyframe and stored == early + 1:
                early += 1  # FFmpeg would decode grey, or nothing
                continue
            keys += packet.is_keyframe
            if packet.size and container.format.name == "avi":
                shown.append(packet.dts)
            harmless = HARMLESS_AT_START if keys < 2 else HARMLESS
            frames = _attempt(stream.decode, packet, harmless=harmless)
            decoded += len(frames)
            for index in range(len(frames) if shown else 0):
                frames[index].pts = shown.popleft()
            yield from map(
                frames.pop, [0] * len(frames)
            )  # large frames, kept no longer than needed
    except ValueError as error:
        raise ValueError(f"damaged after frame {decoded} ({error})") from error
    if _ends_early(container, stream, path, stored, end):
        raise ValueError(f"truncated after frame {decoded}")
    for sentence in _describe_lost(stream, early, decoded, stored - early - hidden):
        say(f"{path}: {sentence}")


def _describe_lost(stream: VideoStream, early: int, decoded: int, shown: int) -> Iterator[str]:
    """How many frames need one that is not there, and how many of the others were not decoded."""
    if early:
        are = "s before the first key frame are" if early > 1 else " before the first key frame is"
        yield f"{early} frame{are} left out"
    if decoded < shown and stream.codec_context.name in ONE_FRAME_A_PACKET:
        yield f"{decoded} of {shown} frames could be decoded"


def _read_packet(packets: "Iterator[Packet[Stream]]") -> "Packet[Stream] | None":
    packet: Packet[Stream] | None = _attempt(next, packets, None)
    if packet is not None and packet.is_corrupt:
        raise ValueError("a packet is incomplete, as where two files were joined")
    return packet


def _attempt(
    step: Callable[..., Result], *arguments: object, harmless: tuple[str, ...] = ()
) -> Result:
    """Let FFmpeg do something; raise ValueError for what it raises and for what it only logs."""
    try:
        with hear_ffmpeg, av.logging.Capture() as logs:
            result = step(*arguments)
    except av.error.FFmpegError as error:
        raise ValueError(logs[-1][2].strip().rstrip(".") if logs else error.strerror) from error
    for level, _, message in sorted(logs):  # errors first
        is_error = level <= av.logging.ERROR and not message.startswith(harmless)
        if is_error or message.startswith("concealing"):
            raise ValueError(message.strip().rstrip("."))
    return result


def _hear() -> None:
    """Have FFmpeg hand over what it logs."""
    av.logging.set_level(av.logging.INFO)
    av.logging.set_skip_repeated(False)


hear_ffmpeg = WhileAnyInside(_hear, av.logging.set_level)  # with None


def _ends_early(
    container: InputContainer, stream: VideoStream, path: Path, stored: int, end: Fraction
) -> bool:
    """Whether a file was cut between two frames, by its header or by what should be its end."""
    kind = container.format.name
    with open(path, "rb") as file:
        file.seek(max(0, path.stat().st_size - 2**17))
        tail = file.read()
    declared = Fraction(container.duration or 0, 10**6)
    too_short = end + 2 / Fraction(stream.guessed_rate or 25) < declared
    page = tail[max(0, tail.rfind(b"OggS")) :]  # the last one: a table of lengths, then the packets
    page_bytes = 27 + sum(page[26:27]) + sum(page[27 : 27 + sum(page[26:27])])
    signs = {
        "gif": not tail.rstrip(b"\0").endswith(b";"),
        "apng": not tail.endswith(b"IEND\xaeB`\x82"),
        "ogg": page[5:6] < b"\4" or len(page) < page_bytes,  # it says that it is the last
        "mpegts": all(path.stat().st_size % size for size in (188, 192, 204)),
        "mov,mp4,m4a,3gp,3g2,mj2": stored < len(stream.index_entries),
        "avi": (stream.duration or 0) < stream.frames,
        "ivf": stored < stream.frames,
        "flv": too_short,
        "matroska,webm": too_short,
    }
    return signs.get(kind, False)


def _convert(
    frames: Iterator[VideoFrame], stream: VideoStream, path: Path, say: Callable[[str], None]
) -> Iterator[VideoFrame]:
    """Deinterlace, cut, turn upright and convert to RGB, with the filters of the ffmpeg command."""
    graph, wanted, size, interlaced = Graph(), None, None, False
    crop = _find_crop(stream)
    turn: list[str] = []
    fields = None
    if stream.codec_context.name in FLAGGED_BY_FILE:
        fields = FIELDS.get(stream.codec_context.field_order)
    numbers = count(1)
    for frame in frames:  # enumerate() would keep it while the next is decoded
        number = next(numbers)
        size = size or (frame.width, frame.height)
        if (frame.width, frame.height) != size:
            found = f"frame {number} has {frame.width}x{frame.height} px"
            expected = f"{size[0]}x{size[1]} px as before"
            raise BadFile(path, found, expected, f"Use the part before (`--end {number - 1}`)")
        if (frame.interlaced_frame or fields) and not interlaced:
            interlaced = True
            say(f"{path}: interlaced; frames are deinterlaced (bwdif)")
        which = f"all:parity={fields}" if fields else "interlaced"
        filters = [f"bwdif=mode=send_frame:deint={which}"] * interlaced + crop
        turn = _find_turn(frame, path) if number == 1 else turn
        filters += [*turn, "format=rgb24"]
        # vflip alone leaves the rows where they are, from the last one up
        filters += [*["copy"] * ("vflip" in turn), "buffersink"]
        settings = filters, frame.format.name, frame.colorspace, frame.color_range
        if settings != wanted:
            graph.vpush(None)
            yield from _pull(graph)
            graph, wanted = _build_graph(frame, filters), settings
        graph.vpush(frame)
        del frame
        if number == 1:  # a frame and its side data refer to each other
            gc.collect(1)
        yield from _pull(graph)
    graph.vpush(None)
    yield from _pull(graph)


def _find_crop(stream: VideoStream) -> list[str]:
    """Filter that cuts off the borders that the file says to leave out: ``clap`` of QuickTime,
    ``PixelCrop`` of Matroska.

    PyAV does not tell them, but FFmpeg writes them into a Matroska file (RFC 9559, section
    5.1.4.1.28).
    """
    if stream.container.format.name not in ("matroska,webm", "mov,mp4,m4a,3gp,3g2,mj2"):
        return []
    header = io.BytesIO()
    try:
        with av.open(header, "w", format="matroska", options={"fflags": "+bitexact"}) as copy:
            copy.add_stream_from_template(stream)
            copy.start_encoding()
    except (av.error.FFmpegError, ValueError):  # a codec that Matroska does not hold
        return []
    private = stream.codec_context.extradata or b""  # in which the same bytes may be by chance
    content = header.getvalue().replace(private, b"") if private else header.getvalue()
    found = re.findall(rb"\x54([\xaa\xbb\xcc\xdd])(?:\x81(.)|\x82(..))", content, re.DOTALL)
    cut = {side: int.from_bytes(one or two) for side, one, two in found}
    bottom, top, left, right = (cut.get(side, 0) for side in (b"\xaa", b"\xbb", b"\xcc", b"\xdd"))
    return [f"crop=w=iw-{left + right}:h=ih-{top + bottom}:x={left}:y={top}"] if cut else []


def _find_turn(frame: VideoFrame, path: Path) -> list[str]:
    """Filters that turn a frame as its display matrix says."""
    try:
        side_data = frame.side_data
    except ValueError:  # a kind that PyAV does not know
        graph = _build_graph(frame, [*UNKNOWN_TO_PYAV, "buffersink"])
        graph.vpush(frame)
        side_data = graph.vpull().side_data
    matrix = cast(Mapping[str, bytes], side_data).get("DISPLAYMATRIX")
    if matrix is None:
        return []
    (a, b, _), (c, d, _), _ = np.frombuffer(matrix, "<i4").reshape(3, 3).tolist()
    if min(abs(a), abs(b)) > 0.02 * max(abs(a), abs(b)):
        found = f"turned by {math.degrees(math.atan2(b, a)):.0f} degrees"
        raise BadFile(path, found, "quarter turns", "Turn the video with ffmpeg first")
    if abs(b) > abs(a):
        return ["transpose"] + ["hflip"] * (c < 0) + ["vflip"] * (b < 0)
    return ["hflip"] * (a < 0) + ["vflip"] * (d < 0)


def _build_graph(frame: VideoFrame, filters: list[str]) -> Graph:
    graph = Graph()
    source = graph.add(
        "buffer",
        f"video_size={frame.width}x{frame.height}:pix_fmt={frame.format.name}:"
        f"time_base={frame.time_base}:colorspace={frame.colorspace}:range={frame.color_range}",
    )
    steps = [
        graph.add(name, settings or None)
        for name, _, settings in (step.partition("=") for step in filters)
    ]
    graph.link_nodes(source, *steps).configure()
    return graph


def _pull(graph: Graph) -> Iterator[VideoFrame]:
    """Yield what comes out of the filters now; after None was pushed, also what they held back."""
    with suppress(BlockingIOError, EOFError):
        while graph.configured:
            yield graph.vpull()
