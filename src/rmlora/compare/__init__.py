"""Comparing methods: studies, statistics, verdicts."""
