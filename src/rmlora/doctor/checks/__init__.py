"""The checks, one small function each: what was seen of a run in, a finding out."""
