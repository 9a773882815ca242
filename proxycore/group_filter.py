"""Which of the groups that a client asks for count: by regular expressions with the semantics of RE2, pure.

A group that is dropped is dropped for good: it is not reviewed, it decides nothing, and it does not go upstream.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
import re2  # type: ignore[import-untyped]  # ships no types

from eventcore.errors import SettingsError

if TYPE_CHECKING:
    from eventcore.settings import Settings


class GroupFilter(msgspec.Struct, frozen=True):
    """``keep`` finds those that may stay (None: all), ``drop`` those that go all the same (None: none)."""

    keep: Any = None
    drop: Any = None

    @classmethod
    def of(cls, settings: Settings) -> GroupFilter:
        """Read the settings; SettingsError for an expression that RE2 does not know."""
        for text in settings.words("ignored_impersonation_group"):
            _compiled("--ignored-impersonation-group", text)  # one by one, so that none breaks out of the alternatives
        ignored = "|".join(f"(?:{text})" for text in settings.words("ignored_impersonation_group"))
        return cls(
            keep=_compiled("--impersonation-group-regexp", settings.impersonation_group_regexp),
            drop=_compiled("--ignored-impersonation-group", ignored),
        )

    def kept(self, groups: tuple[str, ...]) -> tuple[str, ...]:
        """Return the groups that count, in their order."""
        if self.keep is None and self.drop is None:
            return groups
        return tuple(
            group
            for group in groups
            if (self.keep is None or self.keep.search(group))
            and not (self.drop is not None and self.drop.search(group))
        )


def _compiled(flag: str, text: str) -> Any:
    if not text:
        return None
    options = re2.Options()
    options.log_errors = False
    try:
        return re2.compile(text, options=options)
    except re2.error as error:
        raise SettingsError(f"{flag} {text!r} is not a regular expression of RE2: {error}") from None
