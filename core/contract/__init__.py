"""The laws that plugins must keep, as checks that third parties can run on theirs.

Each `check_*` raises AssertionError with one line that names the broken law.
"""
