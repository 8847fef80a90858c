"""Around one training run: its plan, its folder, what it records, shows and writes."""
