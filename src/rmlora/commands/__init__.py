"""Commands of the program, each in its own file with a function `add`."""
