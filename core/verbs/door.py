"""The group of all verbs: Ctrl-C ends any of them in one line."""

from __future__ import annotations

import sys
from typing import Any, NoReturn

from typer.core import TyperGroup


class Door(TyperGroup):
    """The verbs; Ctrl-C is met here, since what click makes of it differs by version."""

    def invoke(self, ctx: Any) -> Any:
        """Run the verb that was named."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            stopped()


def stopped() -> NoReturn:
    """Say that the program was stopped, and exit 130 as programs do after Ctrl-C."""
    print("longtake: stopped", file=sys.stderr)
    sys.exit(130)
