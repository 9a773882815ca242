"""JSON patch, merge patch and strategic merge patch, as RFC 6902, RFC 7386 and Kubernetes define them. Pure."""

from __future__ import annotations

from typing import Any

from tether.devcluster import errors
from tether.devcluster.contracts import ApiError, Object
from tether.devcluster.objects import clone

MERGE_KEYS: dict[str, str] = {
    "containers": "name",
    "initContainers": "name",
    "ephemeralContainers": "name",
    "volumes": "name",
    "env": "name",
    "imagePullSecrets": "name",
    "secrets": "name",
    "volumeMounts": "mountPath",
    "volumeDevices": "devicePath",
    "hostAliases": "ip",
    "topologySpreadConstraints": "topologyKey",
    "conditions": "type",
    "taints": "key",
    "ownerReferences": "uid",
}
"""The key by which a list of a built-in kind is merged, by the name of its field; other lists are replaced."""

_PORT_KEYS = ("containerPort", "port")
_UNIONS = frozenset({"finalizers"})


def _unprocessable(message: str) -> ApiError:
    return ApiError(422, "Invalid", f"the server rejected our request due to an error in our request: {message}", {})


def json_patch(obj: Object, operations: Any) -> Object:
    """Return the object after RFC 6902 operations; 400 for a malformed patch, 422 for one that does not apply."""
    if not isinstance(operations, list):
        raise errors.bad_request("a JSON patch must be a list of operations")
    value: Any = clone(obj)
    for operation in operations:
        if not isinstance(operation, dict) or not isinstance(operation.get("path"), str):
            raise errors.bad_request("an operation of a JSON patch must be an object with op and path")
        value = _operate(value, operation)
    if not isinstance(value, dict):
        raise _unprocessable("the patch leaves no object")
    return value


def _operate(root: Any, operation: Object) -> Any:
    op, path = operation.get("op"), _pointer(operation["path"])
    if op in {"add", "replace", "test"} and "value" not in operation:
        raise errors.bad_request(f"operation {op} of a JSON patch needs a value")
    if op == "test":
        if _get(root, path) != operation["value"]:
            raise _unprocessable(f"testing value {operation['path']} failed: test failed")
        return root
    if op in {"move", "copy"}:
        if not isinstance(operation.get("from"), str):
            raise errors.bad_request(f"operation {op} of a JSON patch needs from")
        source = _pointer(operation["from"])
        value = clone(_get(root, source))
        if op == "move":
            root = _remove(root, source)
        return _add(root, path, value)
    if op == "remove":
        return _remove(root, path)
    if op == "replace":
        _get(root, path)
        return _add(_remove(root, path), path, clone(operation["value"])) if path else clone(operation["value"])
    if op == "add":
        return _add(root, path, clone(operation["value"]))
    raise errors.bad_request(f"operation {op!r} of a JSON patch is not known")


def _pointer(text: str) -> list[str]:
    if text and not text.startswith("/"):
        raise errors.bad_request(f"the path {text!r} of a JSON patch must begin with /")
    return [part.replace("~1", "/").replace("~0", "~") for part in text.split("/")[1:]]


def _index(items: list[Any], part: str, *, end: bool = False) -> int:
    if end and part == "-":
        return len(items)
    if not part.isdigit() or int(part) > len(items) - (not end):
        raise _unprocessable(f"index {part} is out of range")
    return int(part)


def _get(root: Any, path: list[str]) -> Any:
    for part in path:
        if isinstance(root, dict) and part in root:
            root = root[part]
        elif isinstance(root, list):
            root = root[_index(root, part)]
        else:
            raise _unprocessable(f"path /{'/'.join(path)} does not exist: missing value")
    return root


def _add(root: Any, path: list[str], value: Any) -> Any:
    if not path:
        return value
    parent = _get(root, path[:-1])
    if isinstance(parent, dict):
        parent[path[-1]] = value
    elif isinstance(parent, list):
        parent.insert(_index(parent, path[-1], end=True), value)
    else:
        raise _unprocessable(f"path /{'/'.join(path)} does not exist: missing value")
    return root


def _remove(root: Any, path: list[str]) -> Any:
    _get(root, path)
    if not path:
        return {}
    parent = _get(root, path[:-1])
    if isinstance(parent, list):
        del parent[_index(parent, path[-1])]
    else:
        del parent[path[-1]]
    return root


def merge_patch(target: Any, patch: Any) -> Any:
    """Return the value after an RFC 7386 merge patch: null removes, an object merges, all else replaces."""
    if not isinstance(patch, dict):
        return clone(patch)
    merged = dict(target) if isinstance(target, dict) else {}
    for key, value in patch.items():
        if value is None:
            merged.pop(key, None)
        else:
            merged[key] = merge_patch(merged.get(key), value)
    return merged


def strategic_merge(target: Any, patch: Any, field: str = "") -> Any:
    """Return the value after Kubernetes' strategic merge patch, with its ``$patch`` and order directives."""
    if isinstance(patch, list):
        return _merge_list(target if isinstance(target, list) else [], patch, field)
    if not isinstance(patch, dict):
        return clone(patch)
    if patch.get("$patch") == "replace":
        return {key: clone(value) for key, value in patch.items() if key != "$patch"}
    if patch.get("$patch") == "delete":
        return {}
    merged = dict(target) if isinstance(target, dict) else {}
    retained = patch.get("$retainKeys")
    if isinstance(retained, list):
        merged = {key: value for key, value in merged.items() if key in retained}
    for key, value in patch.items():
        if key.startswith("$deleteFromPrimitiveList/"):
            name = key.split("/", 1)[1]
            merged[name] = [item for item in merged.get(name) or [] if item not in (value or [])]
        elif key in {"$patch", "$retainKeys"} or key.startswith("$setElementOrder/"):
            continue
        elif value is None:
            merged.pop(key, None)
        else:
            merged[key] = strategic_merge(merged.get(key), value, key)
    return _ordered(merged, patch)


def _merge_list(target: list[Any], patch: list[Any], field: str) -> list[Any]:
    directives = [item.get("$patch") for item in patch if isinstance(item, dict)]
    if "replace" in directives:
        return [clone(item) for item in patch if not (isinstance(item, dict) and set(item) == {"$patch"})]
    if field in _UNIONS:
        return [*target, *(item for item in patch if item not in target)]
    key = _merge_key(field, patch, target)
    if not key:
        return list(clone(patch))
    merged = list(target)
    for item in patch:
        at = next((i for i, old in enumerate(merged) if isinstance(old, dict) and old.get(key) == item.get(key)), None)
        if item.get("$patch") == "delete":
            if at is not None:
                del merged[at]
        elif at is None:
            merged.append(strategic_merge({}, item))
        else:
            merged[at] = strategic_merge(merged[at], item)
    return merged


def _merge_key(field: str, patch: list[Any], target: list[Any]) -> str:
    items = [*patch, *target]
    if not all(isinstance(item, dict) for item in items):
        return ""
    candidates = _PORT_KEYS if field == "ports" else (MERGE_KEYS.get(field, ""),)
    return next((key for key in candidates if key and all(key in item for item in items)), "")


def _ordered(merged: Object, patch: Object) -> Object:
    for key, order in patch.items():
        if not key.startswith("$setElementOrder/") or not isinstance(order, list):
            continue
        name = key.split("/", 1)[1]
        items = merged.get(name)
        if not isinstance(items, list):
            continue
        merge_key = _merge_key(name, order, items)
        wanted = [item.get(merge_key) if merge_key else item for item in order]

        def position(item: Any, *, by: str = merge_key, among: list[Any] = wanted) -> int:
            value = item.get(by) if by else item
            return among.index(value) if value in among else len(among)

        merged[name] = sorted(items, key=position)
    return merged
