"""CustomResourceDefinitions: what they serve, and what their structural schemas default, prune and refuse."""

from __future__ import annotations

import re
from typing import Any

from tether.devcluster.contracts import Object, Resource
from tether.devcluster.errors import Cause, bad_value, required, unsupported
from tether.devcluster.objects import clone, dig, metadata
from tether.devcluster.resources import Served

_VERSION = re.compile(r"v(\d+)(?:(alpha|beta)(\d+))?")
_STAGES = {"alpha": 0, "beta": 1, None: 2}
_JSON_TYPES: dict[str, tuple[type, ...]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "boolean": (bool,),
    "integer": (int,),
    "number": (int, float),
}
_APPROVED = "api-approved.kubernetes.io"
CLEANUP = "customresourcecleanup.apiextensions.k8s.io"


def establish(crd: Object, time: str) -> None:
    """Fill a definition's defaults and its status: accepted names, stored versions, the two conditions."""
    spec = crd.get("spec")
    names = dig(crd, "spec", "names")
    if not isinstance(spec, dict) or not isinstance(names, dict):
        return
    kind = str(names.get("kind") or "")
    names.setdefault("singular", kind.lower())
    names.setdefault("listKind", f"{kind}List")
    spec.setdefault("conversion", {"strategy": "None"})
    status = crd.setdefault("status", {})
    before = {item.get("type"): item for item in status.get("conditions") or []}
    wanted = (
        ("NamesAccepted", "NoConflicts", "no conflicts found"),
        ("Established", "InitialNamesAccepted", "the initial names have been accepted"),
    )
    status["conditions"] = [
        before.get(type_)
        or {"type": type_, "status": "True", "reason": reason, "message": message, "lastTransitionTime": time}
        for type_, reason, message in wanted
    ]
    status["acceptedNames"] = clone(names)
    stored = status.setdefault("storedVersions", [])
    for version in _versions(crd):
        if version.get("storage") and version.get("name") not in stored:
            stored.append(version["name"])


def problems(crd: Object) -> list[Cause]:
    """Return what is wrong with a definition; empty when it can be served."""
    spec = crd.get("spec")
    if not isinstance(spec, dict):
        return [required("spec")]
    found = [required(f"spec.{field}") for field in ("group", "scope", "names", "versions") if not spec.get(field)]
    if found:
        return found
    if spec["scope"] not in {"Namespaced", "Cluster"}:
        found.append(unsupported("spec.scope", spec["scope"], ["Cluster", "Namespaced"]))
    if not isinstance(spec["names"], dict):
        return [*found, bad_value("spec.names", spec["names"], "must be an object")]
    found += [required(f"spec.names.{field}") for field in ("plural", "kind") if not spec["names"].get(field)]
    expected = f"{spec['names'].get('plural')}.{spec['group']}"
    if metadata(crd).get("name") != expected:
        found.append(bad_value("metadata.name", metadata(crd).get("name"), 'must be spec.names.plural+"."+spec.group'))
    found += _group_problems(crd, str(spec["group"]))
    versions = _versions(crd)
    if sum(bool(version.get("storage")) for version in versions) != 1:
        found.append(
            bad_value("spec.versions", len(versions), "must have exactly one version marked as storage version")
        )
    for at, version in enumerate(versions):
        if not isinstance(dig(version, "schema", "openAPIV3Schema"), dict):
            found.append(required(f"spec.versions[{at}].schema.openAPIV3Schema", "schemas are required"))
    return found


def _group_problems(crd: Object, group: str) -> list[Cause]:
    if "." not in group:
        return [bad_value("spec.group", group, "should be a domain with at least one dot")]
    approved = dig(crd, "metadata", "annotations", _APPROVED)
    if (group.endswith((".k8s.io", ".kubernetes.io"))) and not approved:
        detail = "protected groups must have approval annotation"
        return [required(f"metadata.annotations[{_APPROVED}]", detail)]
    return []


def served(crd: Object) -> tuple[Served, ...]:
    """Return the versions that a definition serves, in Kubernetes' order of preference (v2, v1, v1beta1, ...)."""
    spec = crd["spec"]
    names = spec["names"]
    found = [
        Served(
            resource=Resource(
                group=spec["group"],
                version=version["name"],
                plural=names["plural"],
                kind=names["kind"],
                singular=names.get("singular") or names["kind"].lower(),
                namespaced=spec["scope"] == "Namespaced",
                short_names=tuple(names.get("shortNames") or ()),
                categories=tuple(names.get("categories") or ()),
                subresources=tuple(sub for sub in ("status",) if sub in (version.get("subresources") or {})),
                columns=tuple(
                    (item["name"], item["type"], item["jsonPath"], int(item.get("priority") or 0))
                    for item in version.get("additionalPrinterColumns") or ()
                ),
            ),
            schema=version["schema"]["openAPIV3Schema"],
            custom=True,
            storage=bool(version.get("storage")),
        )
        for version in _versions(crd)
        if version.get("served")
    ]
    return tuple(sorted(found, key=lambda item: version_rank(item.resource.version), reverse=True))


def version_rank(version: str) -> tuple[int, int, int]:
    """Return the sort key of an API version: stable before beta before alpha, then by number."""
    match = _VERSION.fullmatch(version)
    if not match:
        return (-1, 0, 0)
    return (_STAGES[match[2]], int(match[1]), int(match[3] or 0))


def _versions(crd: Object) -> list[Object]:
    return [version for version in dig(crd, "spec", "versions") or [] if isinstance(version, dict)]


def conform(schema: Object, obj: Object) -> list[str]:
    """Prune unknown fields of a custom object and fill its defaults, in place; metadata is not touched.

    Returns the paths of what was pruned.
    """
    pruned: list[str] = []
    _prune(schema, obj, "", pruned, root=True)
    _default(schema, obj)
    return pruned


def _prune(schema: Object, value: Any, path: str, pruned: list[str], *, root: bool = False) -> None:
    if isinstance(value, list):
        items = schema.get("items")
        for at, item in enumerate(value if isinstance(items, dict) else ()):
            _prune(items or {}, item, f"{path}[{at}]", pruned)
        return
    if not isinstance(value, dict):
        return
    if schema.get("x-kubernetes-embedded-resource"):
        root = True
    properties = schema.get("properties") or {}
    extra = schema.get("additionalProperties")
    keep = bool(schema.get("x-kubernetes-preserve-unknown-fields"))
    for key in list(value):
        if root and key in {"apiVersion", "kind", "metadata"}:
            continue
        at_key = f"{path}.{key}" if path else key
        if key in properties:
            _prune(properties[key], value[key], at_key, pruned)
        elif isinstance(extra, dict):
            _prune(extra, value[key], at_key, pruned)
        elif not keep and not extra:
            del value[key]
            pruned.append(at_key)


def _default(schema: Object, value: Any) -> None:
    if isinstance(value, list):
        for item in value:
            _default(schema.get("items") or {}, item)
        return
    if not isinstance(value, dict):
        return
    properties = schema.get("properties") or {}
    for key, child in properties.items():
        if "default" in child and (key not in value or (value[key] is None and not child.get("nullable"))):
            value[key] = clone(child["default"])
        if key in value:
            _default(child, value[key])
    extra = schema.get("additionalProperties")
    if isinstance(extra, dict):
        for key in value.keys() - properties.keys():
            _default(extra, value[key])


def violations(schema: Object, value: Any, path: str = "") -> list[Cause]:
    """Return where a custom object breaks its schema: types, required fields, enumerations, bounds."""
    if value is None and schema.get("nullable"):
        return []
    wrong = _wrong_type(schema, value, path)
    if wrong:
        return [wrong]
    found: list[Cause] = []
    if "enum" in schema and value not in schema["enum"]:
        found.append(unsupported(path, value, schema["enum"]))
    if isinstance(value, dict):
        found += _violations_of_object(schema, value, path)
    elif isinstance(value, list):
        items = schema.get("items") or {}
        for at, item in enumerate(value):
            found += violations(items, item, f"{path}[{at}]")
        found += _bounds(schema, len(value), path, ("minItems", "maxItems"), "items")
    elif isinstance(value, str):
        found += _bounds(schema, len(value), path, ("minLength", "maxLength"), "chars long")
        if not _fits(str(schema.get("pattern") or ""), value):
            found.append(bad_value(path, value, f"{path} in body should match '{schema['pattern']}'"))
    elif isinstance(value, int | float) and not isinstance(value, bool):
        found += _bounds(schema, value, path, ("minimum", "maximum"), "")
    return found


def _fits(pattern: str, value: str) -> bool:
    try:
        return re.search(pattern, value) is not None
    except re.error:  # Go's expressions are not quite Python's: what only Go understands refuses nothing here
        return True


def _violations_of_object(schema: Object, value: Object, path: str) -> list[Cause]:
    found = [required(f"{path}.{key}" if path else key) for key in schema.get("required") or () if key not in value]
    properties = schema.get("properties") or {}
    extra = schema.get("additionalProperties")
    for key, item in value.items():
        at = f"{path}.{key}" if path else key
        if not path and key in {"apiVersion", "kind", "metadata"}:
            continue
        if key in properties:
            found += violations(properties[key], item, at)
        elif isinstance(extra, dict):
            found += violations(extra, item, at)
    return found


def _wrong_type(schema: Object, value: Any, path: str) -> Cause | None:
    wanted = schema.get("type")
    if schema.get("x-kubernetes-int-or-string"):
        fits, wanted = isinstance(value, int | str) and not isinstance(value, bool), "integer or string"
    elif wanted not in _JSON_TYPES:
        return None
    else:
        fits = isinstance(value, _JSON_TYPES[wanted]) and (wanted == "boolean" or not isinstance(value, bool))
    if fits:
        return None
    found = next((name for name, types in _JSON_TYPES.items() if isinstance(value, types)), "null")
    if isinstance(value, bool):
        found = "boolean"
    detail = f'Invalid value: "{found}": {path} in body must be of type {wanted}: "{found}"'
    return Cause(path, detail, "FieldValueTypeInvalid")


def _bounds(schema: Object, size: float, path: str, limits: tuple[str, str], unit: str) -> list[Cause]:
    low, high = (schema.get(limit) for limit in limits)
    unit = f" {unit}" if unit else ""
    if low is not None and size < low:
        return [bad_value(path, size, f"{path} in body should be at least {low}{unit}")]
    if high is not None and size > high:
        return [bad_value(path, size, f"{path} in body should be at most {high}{unit}")]
    return []
