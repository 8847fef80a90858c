"""The fast path: the numbers of the reference path with fewer passes over activations; nothing here knows a method."""
