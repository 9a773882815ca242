"""Paths of single objects whose names come from what somebody else wrote: an annotation, a label, an owner reference.

`eventcore.kube.api_path` makes the path of a collection where it gets no name, so a name that is empty would ask for
all objects of a kind: a request that is refused, and again at each try.
"""

from __future__ import annotations

from typing import Final

from eventcore.errors import NotFoundError
from eventcore.kube import api_path
from eventcore.kube_errors import cut

MAX_NAME: Final = 253
"""Characters that the name of an object may have."""
_NEVER: Final = frozenset("/%")


def object_path(group: str, version: str, plural: str, name: str, *, namespace: str = "", subresource: str = "") -> str:
    """Return the path of one object or of its subresource; NotFoundError for a name that no object can have."""
    if not is_path_segment(name) or (namespace and not is_path_segment(namespace)):
        raise NotFoundError(f"no object has the name {cut(repr(name))}", status=404, reason="NotFound")
    return api_path(group, version, plural, namespace=namespace, name=name, subresource=subresource)


def is_path_segment(name: str) -> bool:
    """Tell whether an object of any kind may have this name: one segment of a path, at most MAX_NAME characters."""
    return 0 < len(name) <= MAX_NAME and name not in {".", ".."} and _NEVER.isdisjoint(name)
