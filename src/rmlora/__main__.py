"""`python -m rmlora`, which is also what torchrun starts: `torchrun -m rmlora train ...`."""

from rmlora.cli import main

if __name__ == "__main__":
    main()
