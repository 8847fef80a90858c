"""How a run speaks: whole lines, and times as people say them."""

from rich.console import Console


def say(console: Console, text: str) -> None:
    """Print a line as it is: a terminal may fold it, a file gets it whole, and brackets are no markup."""
    console.print(text, highlight=False, markup=False, soft_wrap=True)


def duration(seconds: float) -> str:
    """Write a time as people say it.

    Example:
        >>> duration(42.4), duration(200), duration(7300)
        ('42 s', '3 min 20 s', '2 h 1 min')
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
