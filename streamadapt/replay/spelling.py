"""What somebody may have meant."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches


def suggest(word: str, known: Sequence[str]) -> str:
    """The end of an error message: the nearest known word, if there is one, and all of them."""
    close = get_close_matches(word, known, n=1)
    return (f" Did you mean `{close[0]}`?" if close else "") + f" Known: {', '.join(known)}."
