"""Who is at fault: an exception that was raised inside a plugin, as one line that names it.

Nothing is caught where plugins are called. The traceback of an exception says which plugin's code
ran last, so one look at the end of the program does for every call there is and will be.
"""

from __future__ import annotations

import os
import sys
import traceback
from types import FrameType

from .errors import PLUGIN_NAMES, LongtakeError, PluginError, UserError, printable
from .registry import registry

DEBUG = "LONGTAKE_DEBUG"  # in the environment: also print tracebacks


def plugin_error(error: BaseException) -> PluginError | None:
    """Return the one line for an exception raised inside a plugin; None where none was running.

    The plugin is the innermost one; the place is the last line of its own files that ran.
    """
    frames = list(traceback.walk_tb(error.__traceback__))
    for index in reversed(range(len(frames))):
        frame, line = frames[index]
        name = _plugin_of(frame)
        if not name:
            continue
        around = (f for f, _ in reversed(frames[: index + 1]) if _package(f) == _package(frame))
        called = next((n for f in around if (n := _class_name(f))), name)
        last, at = _last_own_line(frames[index:], frame, line)
        place = f"{last.f_code.co_filename}:{at}, in {last.f_code.co_name}"
        return PluginError(f"{called} failed ({place}): {one_line(error)}")
    return None


def one_line(error: BaseException) -> str:
    """Return an exception's class and the first line of what it says."""
    text = str(error).strip() or "no message"
    return f"{type(error).__name__}: {text.splitlines()[0]}"


def exit_code(error: Exception, program: str) -> int:
    """Print an error for a person, as one line, and return the code that the program exits with.

    With LONGTAKE_DEBUG set, the traceback stands above it.

    Raises:
        Exception: `error`, where it is neither a message for people nor a plugin's: a fault here.
    """
    known = _known(error)
    if known is None:
        raise error
    if os.environ.get(DEBUG, "") not in ("", "0"):
        traceback.print_exception(error)
        hint = ""
    elif isinstance(error, LongtakeError | PermissionError):
        hint = ""
    else:
        hint = f"; {DEBUG}=1 or --debug shows the traceback"
    print(f"{program}: {known}{hint}", file=sys.stderr)
    return known.exit_code


def _known(error: Exception) -> LongtakeError | None:
    """Return what people can read of an error, None where it is a fault here."""
    if isinstance(error, LongtakeError):
        return error
    if isinstance(error, PermissionError):
        place = printable(os.fsdecode(error.filename)) if error.filename else "a file"
        return UserError(f"{place}: {error.strerror}")
    return plugin_error(error)


def _plugin_of(frame: FrameType) -> str:
    """Return what plugin the code of a frame is of, by its object or else its module; "": none."""
    return _class_name(frame) or _module_name(_module(frame))


def _module(frame: FrameType) -> str:
    return str(frame.f_globals.get("__name__"))


def _package(frame: FrameType) -> str:
    return _module(frame).partition(".")[0]


def _class_name(frame: FrameType) -> str:
    """Return the plugin that a frame is a method of, "" where it is of none."""
    names = frame.f_code.co_varnames[: frame.f_code.co_argcount]
    owner = frame.f_locals.get(names[0]) if names[:1] in (("self",), ("cls",)) else None
    cls = owner if isinstance(owner, type) else type(owner)
    return next((PLUGIN_NAMES[base] for base in cls.__mro__ if base in PLUGIN_NAMES), "")


def _module_name(module: str) -> str:
    """Return whose module it is, where it is a third party's: a plugin, or several of one origin.

    Modules of the same package count, too; those of longtake itself do not.
    """
    known = registry()
    found: dict[str, str] = {}
    for key, plugin in known.plugins.items():
        origin = known.origins[key]
        homes = (plugin.target.partition(":")[0], plugin.spec.__module__)
        if origin != "longtake" and any(_alike(module, home) for home in homes):
            found[f"{plugin.kind} {plugin.name!r}"] = origin
    if len(found) == 1:
        return f"{next(iter(found))} of {next(iter(found.values()))}"
    return f"a plugin of {next(iter(found.values()))}" if found else ""


def _alike(module: str, home: str) -> bool:
    top = home.partition(".")[0]
    return top not in ("longtake", "__main__") and module.partition(".")[0] == top


def _last_own_line(
    frames: list[tuple[FrameType, int]], own: FrameType, line: int
) -> tuple[FrameType, int]:
    """Return the last frame, and its line, that is in the file of the frame `own`."""
    file = own.f_code.co_filename
    same = [(frame, at) for frame, at in frames if frame.f_code.co_filename == file]
    return same[-1] if same else (own, line)
