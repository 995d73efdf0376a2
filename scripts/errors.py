"""What a user can mend: one message that names the file and the cure."""

from __future__ import annotations


class InputError(ValueError):
    """Input that cannot be worked with; the message names the file (or the option) and the cure."""
