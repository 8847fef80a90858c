"""Running a run again from its folder alone, and saying whether the same bits come out."""

from rmlora.replay.running import replay

__all__ = ["replay"]
