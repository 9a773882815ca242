"""The writes of the API: create, update, patch, apply and delete, from the decoded request to the committed object."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from tether.devcluster import apply, crds, errors, patching, shapes, strategy, validation
from tether.devcluster.bodies import decode_json, decode_yaml
from tether.devcluster.contracts import (
    Admission,
    AdmissionRequest,
    Authorizer,
    Object,
    Operation,
    Resource,
    UserInfo,
)
from tether.devcluster.fieldsets import shape_of
from tether.devcluster.objects import clone, metadata, name_of, namespace_of, now
from tether.devcluster.requests import DeleteOptions, RequestInfo, WriteOptions
from tether.devcluster.resources import NAMESPACES, Served

if TYPE_CHECKING:
    from tether.devcluster.selectors import Matcher
    from tether.devcluster.store import Store

JSON_PATCH = "application/json-patch+json"
MERGE_PATCH = "application/merge-patch+json"
STRATEGIC_PATCH = "application/strategic-merge-patch+json"
APPLY_PATCH = "application/apply-patch+yaml"
# Finalizers by which the garbage collector does its part before the object goes.
_HOLDS = {"Foreground": "foregroundDeletion", "Orphan": "orphan"}
PATCH_TYPES = (JSON_PATCH, MERGE_PATCH, APPLY_PATCH, STRATEGIC_PATCH)


class Call(msgspec.Struct, frozen=True, kw_only=True):
    """One write: who, what, on which kind and how; ``warnings`` collects what the answer's headers say."""

    user: UserInfo
    info: RequestInfo
    served: Served
    options: WriteOptions = WriteOptions()
    warnings: list[str] = []

    @property
    def resource(self) -> Resource:
        return self.served.resource


class Writer:
    """Applies writes to the store, through admission and validation; each method is one atomic step."""

    def __init__(self, store: Store, authorizer: Authorizer, admissions: list[Admission]) -> None:
        self._store = store
        self._authorizer = authorizer
        self._admissions = admissions

    def create(self, call: Call, body: Object) -> Object:
        """Create an object (POST)."""
        obj = self._accepted(call, body)
        apply.record_update(
            call.resource,
            shape_of(call.served.schema, call.resource),
            None,
            obj,
            manager=call.options.manager,
            subresource="",
            time=now(),
        )
        return self._create(call, obj)

    def update(self, call: Call, body: Object) -> Object:
        """Replace an object (PUT)."""
        old = self._existing(call)
        obj = self._accepted(call, body, old=old)
        if call.served.custom and not metadata(obj).get("resourceVersion"):
            cause = errors.bad_value("metadata.resourceVersion", 0, "must be specified for an update")
            raise errors.invalid(call.resource, call.info.name, [cause])
        return self._update(call, old, obj)

    def patch(self, call: Call, body: bytes, media_type: str) -> tuple[Object, bool]:
        """Patch an object; returns it, and whether a server-side apply created it."""
        if media_type not in PATCH_TYPES:
            raise errors.unsupported_media_type(PATCH_TYPES)
        if media_type == APPLY_PATCH:
            return self._apply(call, body)
        patch = decode_json(body)
        if media_type == STRATEGIC_PATCH and call.served.custom:
            raise errors.unsupported_media_type(PATCH_TYPES[:3])
        old = self._existing(call)
        seen = self.present(call.resource, old)
        if media_type == JSON_PATCH:
            obj = patching.json_patch(seen, patch)
        elif not isinstance(patch, dict):
            raise errors.bad_request("a merge patch must be an object")
        elif media_type == MERGE_PATCH:
            obj = patching.merge_patch(seen, patch)
        else:
            obj = patching.strategic_merge(seen, patch)
        return self._update(call, old, self._accepted(call, clone(obj), old=old)), False

    def delete(self, call: Call, options: DeleteOptions) -> tuple[Object, bool]:
        """Delete an object; returns it, and whether it is gone (False: it waits for its finalizers)."""
        return self._delete(call, self._existing(call), options)

    def delete_collection(self, call: Call, options: DeleteOptions, matches: Matcher | None) -> list[Object]:
        """Delete every object that matches; returns them."""
        namespace = call.info.in_namespace or None
        found = [obj for obj in self._store.list(call.resource, namespace) if matches is None or matches(obj)]
        deleted = []
        for obj in found:
            current = self._store.get(call.resource, namespace_of(obj), name_of(obj))
            if current is not None:
                deleted.append(self._delete(call, current, options)[0])
        return deleted

    def present(self, resource: Resource, obj: Object) -> Object:
        """Return an object in the version that was asked for; nothing but apiVersion differs between versions."""
        return obj if obj.get("apiVersion") == resource.api_version else obj | {"apiVersion": resource.api_version}

    def _existing(self, call: Call) -> Object:
        obj = self._store.get(call.resource, call.info.in_namespace, call.info.name)
        if obj is None:
            raise errors.not_found(call.resource, call.info.name)
        return obj

    def _accepted(self, call: Call, body: Object, old: Object | None = None) -> Object:
        """Check an object against the request's kind, name and namespace; prune, and fill defaults. May change body."""
        resource, info = call.resource, call.info
        shapes.check(resource, body)
        for field, expected in (("kind", resource.kind), ("apiVersion", resource.api_version)):
            if body.setdefault(field, expected) != expected:
                given = f"{body.get('apiVersion')}, Kind={body.get('kind')}"
                wanted = f"{resource.api_version}, Kind={resource.kind}"
                raise errors.bad_request(f"the object provided is unrecognized (must be of type {wanted}): got {given}")
        meta = metadata(body)
        if resource.namespaced:
            if (meta.get("namespace") or info.in_namespace) != info.in_namespace:
                raise errors.bad_request(
                    f"the namespace of the provided object does not match the namespace sent on the request "
                    f"({meta['namespace']}, {info.in_namespace})"
                )
            meta["namespace"] = info.in_namespace
        else:
            meta.pop("namespace", None)
        if info.verb != "create":
            if meta.setdefault("name", info.name) != info.name:
                message = f"the name of the object ({meta['name']}) does not match the name on the URL ({info.name})"
                raise errors.bad_request(message)
            if old is not None and meta.get("uid") and meta["uid"] != metadata(old)["uid"]:
                if info.verb == "update":
                    raise errors.precondition(resource, info.name, "UID", meta["uid"], metadata(old)["uid"])
                cause = errors.bad_value("metadata.uid", meta["uid"], "field is immutable")
                raise errors.invalid(resource, info.name, [cause])
        if not call.served.custom:
            body = shapes.drop_nulls(body)
        self._conform(call, body)
        return body

    def _conform(self, call: Call, obj: Object) -> None:
        validation.fill_defaults(call.resource, obj)
        unknown = crds.conform(call.served.schema, obj) if call.served.custom else shapes.prune(call.resource, obj)
        words = [f'unknown field "{path}"' for path in unknown]
        if unknown and call.options.strict:
            raise errors.bad_request(f"strict decoding error: {', '.join(words)}")
        call.warnings.extend(words)

    def _admit(self, call: Call, operation: Operation, obj: Object | None, old: Object | None) -> None:
        request = AdmissionRequest(
            operation=operation,
            resource=call.resource,
            subresource=call.info.subresource,
            namespace=namespace_of(obj or old or {}) or call.info.namespace,
            name=name_of(obj or old or {}),
            user=call.user,
            obj=obj,
            old=old,
            dry_run=call.options.dry_run,
        )
        for admission in self._admissions:
            admission(request)

    def _create(self, call: Call, obj: Object) -> Object:
        if call.resource.namespaced:
            self._store.require_namespace(call.resource, obj)
        self._admit(call, "CREATE", obj, None)
        validation.check_new(call.resource, obj, call.served.schema)
        return self._store.create(call.resource, obj, dry_run=call.options.dry_run)

    def _update(self, call: Call, old: Object, obj: Object, *, applied: bool = False) -> Object:
        resource, subresource = call.resource, call.info.subresource
        version = str(metadata(obj).get("resourceVersion") or "")
        if version and version != metadata(old)["resourceVersion"]:
            raise errors.conflict(resource, call.info.name)
        new = strategy.for_update(resource, old, obj, subresource, now())
        self._admit(call, "UPDATE", new, old)
        if not applied:
            apply.record_update(
                resource,
                shape_of(call.served.schema, resource),
                old,
                new,
                manager=call.options.manager,
                subresource=subresource,
                time=now(),
            )
        validation.check_change(resource, old, new, call.served.schema)
        return self._store.update(resource, new, subresource=subresource, dry_run=call.options.dry_run)

    def _apply(self, call: Call, body: bytes) -> tuple[Object, bool]:
        if not call.options.manager_given:
            cause = errors.required("fieldManager", "is required for apply patch")
            raise errors.invalid_kind(
                "PatchOptions.meta.k8s.io", "", [cause], group="meta.k8s.io", short="PatchOptions"
            )
        config = decode_yaml(body)
        if not isinstance(config, dict):
            raise errors.bad_request("an apply patch must be an object")
        if not config.get("apiVersion") or not config.get("kind"):
            raise errors.bad_request("an apply patch must state apiVersion and kind")
        shapes.check(call.resource, config)
        if (config.get("metadata") or {}).get("managedFields"):
            raise errors.bad_request("metadata.managedFields must be nil")
        resource, info = call.resource, call.info
        live = self._store.get(resource, info.in_namespace, info.name)
        if live is None:
            if info.subresource:
                raise errors.not_found(resource, info.name)
            self._may_create(call, config)
        # Defaults are not the applier's: what it owns is what it sent.
        checked = self._accepted(call, clone(config), old=live)
        config.setdefault("metadata", {}).setdefault("name", info.name)
        config["apiVersion"], config["kind"] = checked["apiVersion"], checked["kind"]
        shape = shape_of(call.served.schema, resource)
        merged = apply.apply(
            resource,
            shape,
            self.present(resource, live) if live else None,
            _only_known(config, checked),
            manager=call.options.manager,
            subresource=info.subresource,
            force=call.options.force,
            time=now(),
        )
        if live is None:
            obj = self._accepted(call, merged)
            return self._create(call, obj), True
        obj = self._accepted(call, clone(merged), old=live)
        return self._update(call, live, obj, applied=True), False

    def _may_create(self, call: Call, config: Object) -> None:
        info, resource = call.info, call.resource
        uid = (config.get("metadata") or {}).get("uid")
        if uid:
            why = f"uid mismatch: the provided object specified uid {uid}, and no existing object was found"
            raise errors.conflict(resource, info.name, why)
        attributes = msgspec.structs.replace(info.attributes(call.user), verb="create")
        allowed, reason = self._authorizer.authorize(attributes)
        if not allowed:
            raise errors.denied(attributes, reason)

    def _delete(self, call: Call, old: Object, options: DeleteOptions) -> tuple[Object, bool]:
        resource, namespace, name = call.resource, namespace_of(old), name_of(old)
        self._admit(call, "DELETE", None, old)
        obj = self._store.delete(
            resource,
            namespace,
            name,
            uid=options.uid,
            resource_version=options.resource_version,
            hold=_HOLDS.get(options.propagation, ""),
            dry_run=options.dry_run,
        )
        current = self._store.get(resource, namespace, name)
        gone = current is None or metadata(current)["uid"] != metadata(old)["uid"] or options.dry_run
        return obj, gone


def _only_known(config: Any, checked: Any) -> Any:
    """Return the configuration without what pruning took from the checked copy of it."""
    if isinstance(config, dict) and isinstance(checked, dict):
        return {key: _only_known(value, checked[key]) for key, value in config.items() if key in checked}
    if isinstance(config, list) and isinstance(checked, list) and len(config) == len(checked):
        return [_only_known(one, other) for one, other in zip(config, checked, strict=True)]
    return config


def refuse_protected(request: AdmissionRequest) -> None:
    """Refuse (403) the deletion of the namespaces that a cluster cannot be without, as Kubernetes does."""
    protected = {"default", "kube-system", "kube-public"}
    if request.operation == "DELETE" and request.resource == NAMESPACES and request.name in protected:
        raise errors.forbidden(NAMESPACES, request.name, "this namespace may not be deleted")
