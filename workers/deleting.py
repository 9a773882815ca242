"""How an object that revokes something is deleted, so that nobody holds it back.

Whoever may write an object may put a finalizer on it, and it stays until that is taken off: a RoleBinding that is being
deleted still binds, and a token is good for another minute while the Secret that it is bound to is being deleted.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

import msgspec

from eventcore.errors import ConflictError, NotFoundError

if TYPE_CHECKING:
    from eventcore.kube import KubeClient


class _Meta(msgspec.Struct):
    finalizers: list[str] | None = None


class _Answer(msgspec.Struct):
    """A Status where the object is gone, else the object with what holds it."""

    metadata: _Meta | None = None


async def delete_whole(client: KubeClient, path: str, uid: str) -> bool:
    """Delete the object with this uid and take off what holds it back; False when it is gone or another one.

    While an object is being deleted nobody can add a finalizer, so it is enough to do this once. Raises KubeError.
    """
    options = {
        "apiVersion": "v1",
        "kind": "DeleteOptions",
        "propagationPolicy": "Background",
        "preconditions": {"uid": uid},
    }
    try:
        answer = await client.request("DELETE", path, body=msgspec.json.encode(options))
    except (NotFoundError, ConflictError):
        return False  # another object may stand there now, and its own event brings us back
    found = msgspec.json.decode(answer, type=_Answer).metadata
    if found is not None and found.finalizers:
        with suppress(NotFoundError, ConflictError):
            await client.merge_patch(path, {"metadata": {"uid": uid, "finalizers": None}})
    return True
