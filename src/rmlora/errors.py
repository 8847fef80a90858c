"""The one family of errors: what went wrong, what was found, where, and what to do instead."""

from difflib import get_close_matches


class RmloraError(ValueError):
    """Base of every error rmlora raises on purpose; its text is one or two lines and names the remedy."""


class MethodError(RmloraError):
    """A method or one of its links was given values that make no sense."""


class AttachError(RmloraError):
    """A method cannot act on this model, optimizer or trainer."""


class StateError(RmloraError):
    """Saved and live state disagree, so going on would train something else than was asked for."""


class ConfigError(RmloraError):
    """A configuration file, flag or override is wrong."""


class DataError(RmloraError):
    """A data file or data set cannot be used as described."""


class AdapterError(RmloraError):
    """An adapter folder is missing, damaged, or does not belong to this model."""


class DivergedError(RmloraError):
    """A loss is no longer a number: the settings, not the machine, ended the run."""


class RmloraWarning(UserWarning):
    """Something is legal but almost certainly not what was meant."""


def nearest(name: str, known: list[str]) -> str:
    """Return ` (did you mean "x"?)` for the known name closest to `name`, or an empty string.

    Example:
        >>> nearest("lora_aplha", ["lora_alpha", "r"])
        ' (did you mean "lora_alpha"?)'
    """
    matches = get_close_matches(name, known, n=1)
    return f' (did you mean "{matches[0]}"?)' if matches else ""
