"""Errors whose message is meant for the person at the keyboard."""


class LongtakeError(Exception):
    """A failure that the program reports as one line, without a traceback (exit code 1)."""

    exit_code = 1


class UserError(LongtakeError):
    """Input that cannot be used: the message says what, where and what would be right (exit 2)."""

    exit_code = 2
