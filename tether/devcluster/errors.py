"""The answers of failure, with kube-apiserver's codes, reasons and wording: one function for each."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from tether.devcluster.contracts import ApiError, Attributes, Object, Resource

if TYPE_CHECKING:
    from collections.abc import Sequence

STALE = "the object has been modified; please apply your changes to the latest version and try again"


class Cause(msgspec.Struct, frozen=True):
    """One field that made an object invalid: ``reason`` as in metav1.CauseType."""

    field: str
    message: str
    reason: str = "FieldValueInvalid"

    def as_object(self) -> Object:
        return {"reason": self.reason, "message": self.message, "field": self.field}


def required(field: str, detail: str = "") -> Cause:
    """Return the cause for a field that is missing."""
    return Cause(field, f"Required value: {detail}" if detail else "Required value", "FieldValueRequired")


def bad_value(field: str, value: Any, detail: str) -> Cause:
    """Return the cause for a field whose value cannot be taken."""
    return Cause(field, f"Invalid value: {_shown(value)}: {detail}")


def forbidden_field(field: str, detail: str) -> Cause:
    """Return the cause for a field that may not be set or changed now."""
    return Cause(field, f"Forbidden: {detail}", "FieldValueForbidden")


def unsupported(field: str, value: Any, supported: Sequence[Any]) -> Cause:
    """Return the cause for a value outside its enumeration."""
    allowed = ", ".join(_shown(item) for item in supported)
    return Cause(field, f"Unsupported value: {_shown(value)}: supported values: {allowed}", "FieldValueNotSupported")


def _shown(value: Any) -> str:
    if isinstance(value, str):
        return f'"{value}"'
    return msgspec.json.encode(value).decode()


def _details(resource: Resource, name: str, **more: Any) -> Object:
    details: Object = {"kind": resource.plural}
    if name:
        details["name"] = name
    if resource.group:
        details["group"] = resource.group
    return details | more


def not_found(resource: Resource, name: str) -> ApiError:
    """404: no such object."""
    message = f'{resource.group_resource} "{name}" not found'
    return ApiError(404, "NotFound", message, _details(resource, name))


def no_such_path() -> ApiError:
    """404: no such kind or path."""
    return ApiError(404, "NotFound", "the server could not find the requested resource", {})


def already_exists(resource: Resource, name: str) -> ApiError:
    """409: create of what is there."""
    message = f'{resource.group_resource} "{name}" already exists'
    return ApiError(409, "AlreadyExists", message, _details(resource, name))


def conflict(resource: Resource, name: str, why: str = STALE) -> ApiError:
    """409: the object changed meanwhile, or a precondition does not hold."""
    message = f'Operation cannot be fulfilled on {resource.group_resource} "{name}": {why}'
    return ApiError(409, "Conflict", message, _details(resource, name))


def precondition(resource: Resource, name: str, what: str, wanted: str, found: str) -> ApiError:
    """409: ``what`` (UID or ResourceVersion) is another than asked for."""
    why = f"Precondition failed: {what} in precondition: {wanted}, {what} in object meta: {found}"
    return conflict(resource, name, why)


def invalid(resource: Resource, name: str, causes: Sequence[Cause]) -> ApiError:
    """422: the object breaks a rule of its kind."""
    kind = f"{resource.kind}.{resource.group}" if resource.group else resource.kind
    return invalid_kind(kind, name, causes, group=resource.group, short=resource.kind)


def invalid_kind(kind: str, name: str, causes: Sequence[Cause], *, group: str = "", short: str = "") -> ApiError:
    """422 for a kind that is not a resource, such as PatchOptions."""
    words = [f"{cause.field}: {cause.message}" if cause.field else cause.message for cause in causes]
    text = words[0] if len(words) == 1 else f"[{', '.join(words)}]"
    details: Object = {"name": name, "kind": short or kind, "causes": [cause.as_object() for cause in causes]}
    if group:
        details["group"] = group
    return ApiError(422, "Invalid", f'{kind} "{name}" is invalid: {text}', details)


def bad_request(message: str) -> ApiError:
    """400: the request itself makes no sense."""
    return ApiError(400, "BadRequest", message)


def forbidden(resource: Resource, name: str, why: str, causes: Sequence[Cause] = ()) -> ApiError:
    """403: an admission says no."""
    named = f' "{name}"' if name else ""
    more = {"causes": [cause.as_object() for cause in causes]} if causes else {}
    return ApiError(
        403, "Forbidden", f"{resource.group_resource}{named} is forbidden: {why}", _details(resource, name, **more)
    )


def denied(attributes: Attributes, reason: str) -> ApiError:
    """403: the authorizer says no."""
    user, verb = attributes.user.username, attributes.verb
    because = f": {reason}" if reason else ""
    if not attributes.resource:
        return ApiError(
            403, "Forbidden", f'forbidden: User "{user}" cannot {verb} path "{attributes.path}"{because}', {}
        )
    sub = f"/{attributes.subresource}" if attributes.subresource else ""
    where = f'in the namespace "{attributes.namespace}"' if attributes.namespace else "at the cluster scope"
    qualified = f"{attributes.resource}.{attributes.group}" if attributes.group else attributes.resource
    named = f' "{attributes.name}"' if attributes.name else ""
    message = (
        f'{qualified}{named} is forbidden: User "{user}" cannot {verb} resource "{attributes.resource}{sub}" '
        f'in API group "{attributes.group}" {where}{because}'
    )
    details: Object = {"kind": attributes.resource}
    if attributes.name:
        details["name"] = attributes.name
    if attributes.group:
        details["group"] = attributes.group
    return ApiError(403, "Forbidden", message, details)


def terminating(resource: Resource, name: str, namespace: str) -> ApiError:
    """403: nothing new enters a namespace that is going away."""
    why = f"unable to create new content in namespace {namespace} because it is being terminated"
    cause = Cause("metadata.namespace", f"namespace {namespace} is being terminated", "NamespaceTerminating")
    return forbidden(resource, name, why, [cause])


def expired(wanted: int, oldest: int) -> ApiError:
    """410: the history no longer reaches back to that resourceVersion."""
    return ApiError(410, "Expired", f"too old resource version: {wanted} ({oldest})")


def expired_continue(token: str) -> ApiError:
    """410: the rest of a paged list can no longer be told as it was; ``token`` goes on with what is there now."""
    error = ApiError(
        410,
        "Expired",
        "The provided continue parameter is too old to display a consistent list result. You can start a new list "
        "without the continue parameter, or use the continue token in this response to retrieve the remainder of "
        "the results. Continuing with the provided token results in an inconsistent list - objects that were "
        "created, modified, or deleted between the time the first chunk was returned and now may show up in the "
        "list.",
    )
    error.list_meta = {"continue": token}
    return error


def too_new(wanted: int, current: int) -> ApiError:
    """504: a resourceVersion from the future."""
    cause = {"reason": "ResourceVersionTooLarge", "message": "Too large resource version"}
    message = f"Too large resource version: {wanted}, current: {current}"
    return ApiError(504, "Timeout", message, {"causes": [cause], "retryAfterSeconds": 1})


def method_not_allowed() -> ApiError:
    """405: the kind has no such verb."""
    return ApiError(405, "MethodNotAllowed", "the server does not allow this method on the requested resource", {})


def not_acceptable(supported: Sequence[str]) -> ApiError:
    """406: no representation that the client takes."""
    message = f"only the following media types are accepted: {', '.join(supported)}"
    return ApiError(406, "NotAcceptable", message)


def unsupported_media_type(supported: Sequence[str]) -> ApiError:
    """415: a body in a format that is not read here."""
    kinds = ", ".join(supported)
    message = f"the body of the request was in an unknown format - accepted media types include: {kinds}"
    return ApiError(415, "UnsupportedMediaType", message)


def too_large(limit: int) -> ApiError:
    """413: the body is over the limit, in bytes."""
    return ApiError(413, "RequestEntityTooLarge", f"Request entity too large: limit is {limit}")


def internal() -> ApiError:
    """500: a fault of the embedded API itself; its log has the rest."""
    return ApiError(500, "InternalError", "Internal error occurred: see the log of the embedded API")
