"""What an HTTP request asks of the API: its path and query read as Kubernetes reads them. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from tether.devcluster.contracts import Attributes, Object, UserInfo
from tether.devcluster.errors import bad_request, forbidden_field, invalid_kind, unsupported
from tether.devcluster.selectors import name_in

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tether.devcluster.errors import Cause

_TRUE = frozenset({"1", "t", "T", "TRUE", "true", "True"})
_FALSE = frozenset({"0", "f", "F", "FALSE", "false", "False"})
_NAMESPACE_SUBRESOURCES = frozenset({"status", "finalize"})
_VERBS = {"POST": "create", "PUT": "update", "PATCH": "patch", "GET": "get", "HEAD": "get", "DELETE": "delete"}
_NON_RESOURCE_VERBS = _VERBS | {"POST": "post", "PUT": "put", "PATCH": "patch", "HEAD": "head", "OPTIONS": "options"}


class RequestInfo(msgspec.Struct, frozen=True, kw_only=True):
    """What is asked, in the words of authorization; ``resource`` is "" when the path is no resource's.

    ``namespace`` of a request for one Namespace is its name, as in Kubernetes; ``in_namespace`` is then "".
    """

    verb: str
    path: str
    group: str = ""
    version: str = ""
    resource: str = ""
    subresource: str = ""
    namespace: str = ""
    in_namespace: str = ""
    name: str = ""

    def attributes(self, user: UserInfo) -> Attributes:
        """Return what the authorizer decides about."""
        return Attributes(
            user=user,
            verb=self.verb,
            group=self.group,
            version=self.version,
            resource=self.resource,
            subresource=self.subresource,
            namespace=self.namespace,
            name=self.name,
            path=self.path,
        )


def parse_bool(text: str) -> bool:
    """Read a boolean query parameter as Go's ParseBool does; 400 for anything else."""
    if text in _TRUE:
        return True
    if text in _FALSE or not text:
        return False
    raise bad_request(f'strconv.ParseBool: parsing "{text}": invalid syntax')


def parse_request(method: str, path: str, query: Mapping[str, str]) -> RequestInfo:
    """Return what a request asks: the verb list or watch for a GET of a collection, and so on."""
    parts = [part for part in path.split("/") if part]
    if parts[:1] == ["api"] and len(parts) > 2:  # noqa: PLR2004 -- /api/<version>/<resource>
        group, version, rest = "", parts[1], parts[2:]
    elif parts[:1] == ["apis"] and len(parts) > 3:  # noqa: PLR2004 -- /apis/<group>/<version>/<resource>
        group, version, rest = parts[1], parts[2], parts[3:]
    else:
        return RequestInfo(verb=_NON_RESOURCE_VERBS.get(method, method.lower()), path=path)
    namespace = in_namespace = ""
    if rest[0] == "namespaces" and len(rest) > 1:
        namespace = rest[1]
        if len(rest) > 2 and rest[2] not in _NAMESPACE_SUBRESOURCES:  # noqa: PLR2004 -- namespaces/<ns>/<resource>
            in_namespace, rest = namespace, rest[2:]
    name = rest[1] if len(rest) > 1 else ""
    verb = _VERBS.get(method, method.lower())
    if not name and verb == "delete":
        verb = "deletecollection"
    if not name and verb == "get":
        verb = "watch" if parse_bool(query.get("watch", "")) else "list"
    if verb in {"list", "watch", "deletecollection"}:
        name = name_in(query.get("fieldSelector", ""))
    return RequestInfo(
        verb=verb,
        path=path,
        group=group,
        version=version,
        resource=rest[0],
        subresource="/".join(rest[2:]),
        namespace=namespace,
        in_namespace=in_namespace,
        name=name,
    )


class ListOptions(msgspec.Struct, frozen=True, kw_only=True):
    """The query of a list or watch; ``resource_version`` is "" when not given; times are seconds."""

    label_selector: str = ""
    field_selector: str = ""
    resource_version: str = ""
    resource_version_match: str = ""
    limit: int = 0
    continue_token: str = ""
    bookmarks: bool = False
    initial_events: bool | None = None
    timeout: int | None = None


def list_options(query: Mapping[str, str]) -> ListOptions:
    """Read the ListOptions of a request; 400 when they contradict one another."""
    initial = query.get("sendInitialEvents", "")
    options = ListOptions(
        label_selector=query.get("labelSelector", ""),
        field_selector=query.get("fieldSelector", ""),
        resource_version=query.get("resourceVersion", ""),
        resource_version_match=query.get("resourceVersionMatch", ""),
        limit=_integer(query, "limit") or 0,
        continue_token=query.get("continue", ""),
        bookmarks=parse_bool(query.get("allowWatchBookmarks", "")),
        initial_events=parse_bool(initial) if initial else None,
        timeout=_integer(query, "timeoutSeconds"),
    )
    _check_version(options.resource_version)
    if options.continue_token and options.resource_version not in {"", "0"}:
        raise bad_request("specifying resource version is not allowed when using continue")
    if causes := _problems(options):
        raise invalid_kind("ListOptions.meta.k8s.io", "", causes, group="meta.k8s.io", short="ListOptions")
    return options


def _check_version(text: str) -> None:
    if not text:
        return
    why = f'invalid resource version: resourceVersion: Invalid value: "{text}": strconv.ParseUint: parsing "{text}"'
    if not (text.isascii() and text.isdecimal()):
        raise bad_request(f"{why}: invalid syntax")
    if not _fits(text, 2**64 - 1):
        raise bad_request(f"{why}: value out of range")


def _problems(options: ListOptions) -> list[Cause]:
    field, match, initial = "resourceVersionMatch", options.resource_version_match, options.initial_events is not None
    found = []
    if match and not options.resource_version and not initial:
        found.append(forbidden_field(field, f"{field} is forbidden unless resourceVersion is provided"))
    if initial and match != "NotOlderThan":
        found.append(forbidden_field(field, f"sendInitialEvents requires setting {field} to NotOlderThan"))
    if match == "Exact" and options.resource_version == "0":
        found.append(forbidden_field(field, f'{field} "exact" is forbidden for resourceVersion "0"'))
    if match not in {"", "Exact", "NotOlderThan"}:
        found.append(unsupported(field, match, ["Exact", "NotOlderThan", ""]))
    return found


def _integer(query: Mapping[str, str], key: str) -> int | None:
    text = query.get(key, "")
    if key not in query:
        return None
    digits = text.removeprefix("-") if text.startswith("-") else text.removeprefix("+")
    if not (digits.isascii() and digits.isdecimal()):
        raise bad_request(f'strconv.ParseInt: parsing "{text}": invalid syntax')
    if not _fits(digits, 2**63 - 1):
        raise bad_request(f'strconv.ParseInt: parsing "{text}": value out of range')
    return int(text)


def _fits(digits: str, most: int) -> bool:
    """Tell whether a number is no more than ``most``; Python refuses to read one of thousands of digits."""
    digits = digits.lstrip("0")
    return len(digits) <= len(str(most)) and int(digits or "0") <= most


class WriteOptions(msgspec.Struct, frozen=True, kw_only=True):
    """The query of a create, update or patch; ``manager`` is what managedFields call the writer."""

    dry_run: bool = False
    manager: str = ""
    manager_given: bool = False
    force: bool = False
    strict: bool = False


def write_options(query: Mapping[str, str], user_agent: str) -> WriteOptions:
    """Read CreateOptions, UpdateOptions or PatchOptions.

    Without a fieldManager the first word of the user agent names the writer.
    """
    given = query.get("fieldManager", "")
    validation = query.get("fieldValidation", "")
    if validation not in {"", "Ignore", "Warn", "Strict"}:
        raise bad_request(f'fieldValidation "{validation}" is not Ignore, Warn or Strict')
    return WriteOptions(
        dry_run=_dry_run(query.get("dryRun", "")),
        manager=given or user_agent.split("/", maxsplit=1)[0][:128] or "unknown",
        manager_given=bool(given),
        force=parse_bool(query.get("force", "")),
        strict=validation == "Strict",
    )


class DeleteOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What a delete asks beyond the name."""

    dry_run: bool = False
    uid: str = ""
    resource_version: str = ""
    propagation: str = ""  # Background, Foreground or Orphan; "" is Background


def delete_options(query: Mapping[str, str], body: Object) -> DeleteOptions:
    """Read DeleteOptions from the body, and what it leaves open from the query."""
    preconditions = body.get("preconditions") or {}
    if not isinstance(preconditions, dict):
        raise bad_request("preconditions must be an object")
    dry_run = body.get("dryRun") or ([query["dryRun"]] if query.get("dryRun") else [])
    if not isinstance(dry_run, list):
        raise bad_request("dryRun must be a list")
    propagation = str(body.get("propagationPolicy") or query.get("propagationPolicy") or "")
    if body.get("orphanDependents"):
        propagation = "Orphan"
    if propagation not in {"", "Background", "Foreground", "Orphan"}:
        raise bad_request(f'propagationPolicy "{propagation}" is not Background, Foreground or Orphan')
    return DeleteOptions(
        dry_run=any(_dry_run(str(item)) for item in dry_run),
        uid=str(preconditions.get("uid") or query.get("preconditions.uid") or ""),
        resource_version=str(preconditions.get("resourceVersion") or ""),
        propagation=propagation,
    )


def _dry_run(text: str) -> bool:
    if text not in {"", "All"}:
        raise bad_request(f'dryRun: Unsupported value: "{text}": supported values: "All"')
    return text == "All"
