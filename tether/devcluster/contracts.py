"""What the rooms of the embedded API agree on: kinds, users, attributes, admission, and the errors a client sees.

The store and the HTTP side (store, http, tables, apply, ...) know nothing of tenants; authentication, RBAC, the
controllers and Capsule's part know nothing of HTTP. Both sides meet in the types of this module.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any, Literal, Protocol

import msgspec

Object = dict[str, Any]
"""One Kubernetes object as JSON: the embedded API is the one place where untyped objects travel."""

Operation = Literal["CREATE", "UPDATE", "DELETE"]


class Resource(msgspec.Struct, frozen=True, kw_only=True):
    """A served kind: one row of the discovery document."""

    group: str  # "" is the core group
    version: str
    plural: str
    kind: str
    singular: str
    namespaced: bool
    short_names: tuple[str, ...] = ()
    categories: tuple[str, ...] = ()
    subresources: tuple[str, ...] = ()  # "status", "token", ...
    verbs: tuple[str, ...] = ("create", "delete", "deletecollection", "get", "list", "patch", "update", "watch")
    columns: tuple[tuple[str, str, str, int], ...] = ()  # additionalPrinterColumns: name, type, jsonPath, priority

    @property
    def api_version(self) -> str:
        return f"{self.group}/{self.version}" if self.group else self.version

    @property
    def group_resource(self) -> str:
        return f"{self.plural}.{self.group}" if self.group else self.plural


class UserInfo(msgspec.Struct, frozen=True, kw_only=True):
    """Who makes the request, as authentication.k8s.io/v1 UserInfo has it."""

    username: str
    uid: str = ""
    groups: tuple[str, ...] = ()
    extra: dict[str, tuple[str, ...]] = {}


class Attributes(msgspec.Struct, frozen=True, kw_only=True):
    """What RBAC decides about: the attributes of authorization.k8s.io, resource or not."""

    user: UserInfo
    verb: str
    group: str = ""
    version: str = ""
    resource: str = ""
    subresource: str = ""
    namespace: str = ""
    name: str = ""
    path: str = ""  # of a non-resource request; then resource is ""


class AdmissionRequest(msgspec.Struct, kw_only=True):
    """A write on its way into the store. ``obj`` may be changed in place by an admission; None on DELETE."""

    operation: Operation
    resource: Resource
    subresource: str
    namespace: str
    name: str
    user: UserInfo
    obj: Object | None
    old: Object | None
    dry_run: bool = False


Admission = Callable[[AdmissionRequest], None]
"""Raises ApiError to deny; changes ``request.obj`` to mutate."""


class ApiError(Exception):
    """An answer that is a ``metav1.Status`` of failure."""

    def __init__(self, code: int, reason: str, message: str, details: Object | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.reason = reason
        self.message = message
        self.details = details
        self.list_meta: Object = {}  # metadata of the Status; a list that expired says here how to go on

    def status(self) -> Object:
        """Return the ``metav1.Status`` object that a client reads."""
        body: Object = {
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": self.list_meta,
            "status": "Failure",
            "message": self.message,
            "code": self.code,
        }
        if self.reason:
            body["reason"] = self.reason
        if self.details:
            body["details"] = self.details
        return body


class Change(msgspec.Struct, frozen=True, kw_only=True):
    """One committed change of the store, in resourceVersion order."""

    type: Literal["ADDED", "MODIFIED", "DELETED"]
    resource: Resource
    obj: Object  # never mutate: shared with every reader
    old: Object | None
    resource_version: int


class StoreApi(Protocol):
    """The store as controllers and admissions see it. Namespace is "" for cluster-scoped objects.

    Every returned object is shared: copy before a change. Writes assign uid, resourceVersion, creationTimestamp and
    generation, honour finalizers, and raise ApiError (404, 409) as kube-apiserver would.
    """

    def resource(self, group: str, plural: str) -> Resource | None:
        """Return the preferred version of a served kind, or None while its CRD is not there."""

    def resources(self) -> list[Resource]:
        """Return every served kind."""

    def get(self, resource: Resource, namespace: str, name: str) -> Object | None:
        """Return the object or None."""

    def list(self, resource: Resource, namespace: str | None = None) -> list[Object]:
        """Return all objects of a kind, of one namespace when one is given, ordered by namespace and name."""

    def create(self, resource: Resource, obj: Object) -> Object:
        """Store a new object; 409 AlreadyExists."""

    def update(self, resource: Resource, obj: Object, *, subresource: str = "") -> Object:
        """Replace an object; a resourceVersion in it must be the current one (409 Conflict)."""

    def delete(
        self,
        resource: Resource,
        namespace: str,
        name: str,
        *,
        uid: str = "",
        resource_version: str = "",
    ) -> Object:
        """Delete, or mark as deleting while finalizers stand; preconditions as in DeleteOptions (409)."""

    def changes(self) -> AsyncIterator[Change]:
        """Follow every change from now on; ends when the store closes."""


class Authorizer(Protocol):
    """RBAC over the roles and bindings in the store."""

    def authorize(self, attributes: Attributes) -> tuple[bool, str]:
        """Return whether it is allowed, and the reason in words."""


class Authenticator(Protocol):
    """From credentials to a user."""

    def authenticate(self, headers: Mapping[str, str], peer_certificate_der: bytes | None) -> UserInfo:
        """Return the user behind a bearer token or client certificate; ``system:anonymous`` without credentials.

        Raises ApiError 401 for credentials that are wrong. Impersonation headers are not looked at here.
        """

    def impersonate(
        self, user: UserInfo, headers: Mapping[str, str], all_values: Callable[[str], list[str]]
    ) -> UserInfo:
        """Return who the request acts as, after RBAC allowed each Impersonate-* header; ApiError 403 otherwise."""


VirtualHandler = Callable[[UserInfo, str, str, Object], Awaitable[Object]]
"""(user, namespace, name, body) -> answer, for kinds that are not stored: reviews and TokenRequest."""
