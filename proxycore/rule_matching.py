"""Of which kinds a rule of clusterResources speaks: groups and resources as administrators write them, pure."""

from __future__ import annotations

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
    """Match in one pass, whatever the pattern: each part between stars at the first place where it fits."""
    first, *rest = pattern.split(ANY)
    if not rest:
        return pattern == text
    *middle, last = rest
    at, end = len(first), len(text) - len(last)
    if "/" in text or not (text.startswith(first) and text.endswith(last) and at <= end):
        return False
    for part in middle:
        found = text.find(part, at, end)
        if found < 0:
            return False
        at = found + len(part)
    return True
