"""What is learned and how well: examples, their labels, their encoding and their metrics."""
