"""What the text encoder does not read of a take's prompts."""

from __future__ import annotations

from ..interfaces.spec import TextEncoderSpec
from ..interfaces.text_encoder import TextEncoder, unread_of
from ..tools.words import counted
from .order import Order, spans

SHOWN = 60  # characters of what is cut
MOST = 20  # lines


def unread_lines(order: Order, encoder: TextEncoder[TextEncoderSpec]) -> list[str]:
    """Return a line for each prompt that is to be made and is longer than the encoder reads.

    Args:
        order: of the take; only what is not made yet counts.
        encoder: of the take; of one that cannot say there are no lines.

    Raises:
        UserError: what it needs to say so is missing or damaged.
    """
    sections: dict[tuple[str, str], list[int]] = {}
    for entry in order.entries:
        if entry.id is None and not entry.source:
            number = 1 + (entry.section or 0)
            for kind, text in (("prompt", entry.prompt), ("negative prompt", entry.negative)):
                numbers = sections.setdefault((kind, text), [])
                numbers += [number] if numbers[-1:] != [number] else []
    unread = unread_of(encoder, [text for _, text in sections])
    lines = [
        f"section{'s' if len(numbers) > 1 else ''} {spans(numbers)}: the text encoder does not "
        f"read the last {counted(len(unread[text]), 'character')} of the {kind}: "
        f"{_short(unread[text])}"
        for (kind, text), numbers in sections.items()
        if text in unread
    ]
    more = len(lines) - MOST
    return lines[:MOST] + ([f"and of {counted(more, 'more prompt')}"] if more > 0 else [])


def _short(text: str) -> str:
    words = " ".join(text.split())
    return repr(words if len(words) <= SHOWN else words[:SHOWN] + "…")
