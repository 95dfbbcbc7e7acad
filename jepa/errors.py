"""The one exception that every part of the package may raise and the command line understands."""

from __future__ import annotations


class InputError(ValueError):
    """Something the user gave (a file, a key, a value) breaks a rule.

    The message is one line that names the thing, the rule and the value got. The commands print it
    as ``error: <message>`` and exit with code 2; nobody sees a traceback for it.
    """
