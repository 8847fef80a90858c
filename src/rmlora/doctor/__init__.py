"""`rmlora doctor`: three training steps of a run, and what they show to be wrong."""
