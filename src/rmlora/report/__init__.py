"""What a study shows, for people: tables, figures, verdicts; from its files alone."""
