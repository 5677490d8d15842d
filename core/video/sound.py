"""The sound of a video: a part of it, kept in a file of its own, and copied into another video."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
from attrs import define, field

from ..errors import UserError
from ..tools.files import whole_file

IN_MP4 = frozenset({"aac", "mp3", "ac3", "eac3", "alac", "flac", "opus"})


def keep_sound(video: Path, out: Path, begin: float, end: float) -> str:
    """Write the sound of a part of a video as an mp4 of sound alone; return its codec, "": none.

    It is copied; what an mp4 cannot hold is encoded as AAC. The file appears whole or not at all.

    Args:
        video: its first track of sound is taken.
        out: of the sound; its time 0 is `begin`.
        begin: seconds after the video's first frame.
        end: the same.

    Raises:
        UserError: the sound cannot be read, or the disk refuses.
    """
    try:
        with av.open(str(video)) as source:
            if not source.streams.audio:
                return ""
            stream = source.streams.audio[0]
            pictures = source.streams.video[0]
            zero = Fraction(pictures.start_time or 0) * (pictures.time_base or 1)
            codec = str(stream.codec_context.codec.canonical_name)
            copies = codec in IN_MP4
            with whole_file(out) as part, av.open(str(part), "w", format="mp4") as container:
                write = _copy if copies else _encode
                wrote = write(container, source, stream, zero + Fraction(begin), end - begin)
                if not wrote:
                    raise _NoSoundError
            return codec
    except _NoSoundError:
        return ""
    except (av.error.FFmpegError, OSError, ValueError) as error:
        raise UserError(f"the sound of {video} cannot be read: {error}") from None


class _NoSoundError(Exception):
    """Nothing of the sound lies in the part."""


def _copy(container: Any, source: Any, stream: Any, zero: Fraction, seconds: float) -> bool:
    out = container.add_stream_from_template(stream)
    base, wrote = stream.time_base, False
    first = int(zero / base)
    for packet in source.demux(stream):
        if packet.pts is None or packet.pts < first:
            continue
        if (packet.pts - first) * base >= seconds:
            break
        packet.pts = packet.dts = packet.pts - first
        packet.stream = out
        container.mux(packet)
        wrote = True
    return wrote


def _encode(container: Any, source: Any, stream: Any, zero: Fraction, seconds: float) -> bool:
    out = container.add_stream("aac", rate=stream.codec_context.sample_rate)
    wrote = False
    for frame in source.decode(stream):
        if frame.pts is None:
            continue
        at = frame.pts * frame.time_base - zero
        if at < 0:
            continue
        if at >= seconds:
            break
        frame.pts, frame.time_base = round(at * frame.sample_rate), Fraction(1, frame.sample_rate)
        container.mux(out.encode(frame))
        wrote = True
    container.mux(out.encode())
    return wrote


@define
class SoundTrack:
    """The packets of a file of sound, to be copied into a video as its pictures come.

    Attributes:
        path: of the file, as `keep_sound` writes it.
        end: seconds after which the rest of it is left out; None: all of it is copied.
    """

    path: Path
    end: float | None = None
    _waiting: Any = None
    _packets: Iterator[Any] = field(factory=lambda: iter(()))
    _file: Any = None

    def begin(self, container: Any) -> None:
        """Add the stream to a container, before anything is written to it.

        Raises:
            UserError: the file cannot be read.
        """
        try:
            self._file = av.open(str(self.path))
            stream = self._file.streams.audio[0]
        except (av.error.FFmpegError, OSError, IndexError) as error:
            raise UserError(f"{self.path} is no sound that can be read: {error}") from None
        out = container.add_stream_from_template(stream)
        self._packets = self._read(stream, out)
        self._waiting = next(self._packets, None)

    def _read(self, stream: Any, out: Any) -> Iterator[Any]:
        for packet in self._file.demux(stream):
            if packet.dts is None:
                continue
            if self.end is not None and packet.pts * packet.time_base >= self.end:
                return
            packet.stream = out
            yield packet

    def write_until(self, container: Any, seconds: Fraction | None) -> None:
        """Write what lies before a time; None: all that is left."""
        while self._waiting is not None:
            packet = self._waiting
            if seconds is not None and packet.dts * packet.time_base > seconds:
                return
            container.mux(packet)
            self._waiting = next(self._packets, None)

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
