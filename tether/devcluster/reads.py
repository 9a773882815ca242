"""Lists as Kubernetes answers them: selectors, consistent pages, resourceVersion semantics."""

from __future__ import annotations

import base64
import binascii
from typing import TYPE_CHECKING

import msgspec

from tether.devcluster import errors
from tether.devcluster.contracts import ApiError, Object, Resource
from tether.devcluster.objects import name_of, namespace_of
from tether.devcluster.selectors import Matcher, both, field_matcher, label_matcher

if TYPE_CHECKING:
    from tether.devcluster.requests import ListOptions
    from tether.devcluster.store import Store

_GONE = 410


class _Page(msgspec.Struct, frozen=True):
    """What a continue token holds: the resourceVersion of the first page (-1: of now), and the last key given."""

    version: int
    namespace: str
    name: str


def matcher_of(resource: Resource, options: ListOptions) -> Matcher | None:
    """Return what the selectors of a request let through; None for everything."""
    fields = field_matcher(resource, options.field_selector)
    return both(fields, label_matcher(options.label_selector))


def list_objects(store: Store, resource: Resource, namespace: str, options: ListOptions) -> tuple[list[Object], Object]:
    """Return the objects of a list and its metadata (resourceVersion, continue, remainingItemCount)."""
    matches = matcher_of(resource, options)
    page = _decoded(options.continue_token) if options.continue_token else None
    version = _version(store, options, page)
    try:
        items = store.list(resource, namespace) if version is None else store.list_at(resource, namespace, version)
    except ApiError as error:
        if error.code != _GONE:
            raise
        if page is None:
            raise ApiError(_GONE, "Expired", "The resourceVersion for the provided list is too old.") from error
        raise errors.expired_continue(_encoded(_Page(-1, page.namespace, page.name))) from error
    if page is not None:
        items = [obj for obj in items if (namespace_of(obj), name_of(obj)) > (page.namespace, page.name)]
    if matches is not None:
        items = [obj for obj in items if matches(obj)]
    meta: Object = {"resourceVersion": str(store.version if version is None else version)}
    if options.limit and len(items) > options.limit:
        rest = len(items) - options.limit
        items = items[: options.limit]
        at = store.version if version is None else version
        meta["continue"] = _encoded(_Page(at, namespace_of(items[-1]), name_of(items[-1])))
        if matches is None:
            meta["remainingItemCount"] = rest
    return items, meta


def _version(store: Store, options: ListOptions, page: _Page | None) -> int | None:
    """Return the resourceVersion whose state is asked for; None for the state of now."""
    if page is not None:
        return None if page.version < 0 else page.version
    wanted = int(options.resource_version or 0)
    if wanted > store.version:
        raise errors.too_new(wanted, store.version)
    exact = options.resource_version_match == "Exact" or (not options.resource_version_match and options.limit)
    return wanted if wanted and exact else None


def _encoded(page: _Page) -> str:
    return base64.urlsafe_b64encode(msgspec.json.encode(page)).decode().rstrip("=")


def _decoded(token: str) -> _Page:
    try:
        return msgspec.json.decode(base64.urlsafe_b64decode(token + "=" * (-len(token) % 4)), type=_Page)
    except (binascii.Error, ValueError, msgspec.MsgspecError) as error:
        raise errors.bad_request(f"continue key is not valid: {token}") from error
