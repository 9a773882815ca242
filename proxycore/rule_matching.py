"""Of which kinds a rule of clusterResources speaks: groups and resources as administrators write them, pure."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from eventcore.grants import ClusterRule
    from proxycore.kinds import ProxiedKind

ANY: Final = "*"


def speaks_of(rule: ClusterRule, kind: ProxiedKind) -> bool:
    """Tell whether a rule names a kind in its version: by plural and group, neither of which may be left out."""
    return (kind.resource in rule.resources or ANY in rule.resources) and any(
        names_group(pattern, kind.group, kind.version) for pattern in rule.groups
    )


def names_group(pattern: str, group: str, version: str) -> bool:
    """Tell whether a pattern names an API group, or with a slash a group in a version.

    ``*`` stands for any characters, alone for every group. "" is the core group, ``/v1`` the core group in that
    version.
    """
    if "/" in pattern:
        groups, _, versions = pattern.partition("/")
        return _is(groups, group) and _is(versions, version)
    return _is(pattern, group)


def _is(pattern: str, text: str) -> bool:
    return _expression(pattern).fullmatch(text) is not None if ANY in pattern else pattern == text


@lru_cache(maxsize=1024)
def _expression(pattern: str) -> re.Pattern[str]:
    return re.compile("[^/]*".join(re.escape(part) for part in re.split(r"\*+", pattern)))
