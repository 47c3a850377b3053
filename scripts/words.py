"""Options as words of a command line."""

from __future__ import annotations

from collections.abc import Mapping


def option_words(options: Mapping[str, object]) -> list[str]:
    """Each option as --NAME=VALUE, lists with commas; None is left out."""
    words = []
    for name, value in options.items():
        if value is not None:
            text = ",".join(map(str, value)) if isinstance(value, list) else str(value)
            words.append(f"--{name}={text}")
    return words
