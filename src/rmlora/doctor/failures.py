"""What may stop a step, and how it is told: here it is a finding, not the end of the program."""

from __future__ import annotations

FAILURES = (
    RuntimeError,
    ValueError,
    IndexError,
    KeyError,
    TypeError,
    AttributeError,
    NotImplementedError,
    OSError,
)
"""What data can do to a model, a model to a device, or a file to whoever reads it; rmlora's own errors among them."""


def wording(error: Exception) -> str:
    """Name an error in one line.

    Example:
        >>> wording(IndexError("index out of range in self"))
        'IndexError: index out of range in self'
    """
    told = " ".join(str(error).split())[:200]
    return f"{type(error).__name__}: {told}" if told else type(error).__name__
