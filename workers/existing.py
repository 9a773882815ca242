"""An object as it was found, and how it differs from what it should be. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, cast

import msgspec

from eventcore.foreign import is_object_name
from eventcore.objects import ANNOTATION_ACCOUNT, ANNOTATION_TENANT, COMPONENT_CA, LABEL_COMPONENT, Meta
from workers.desired import ANNOTATION_DIGEST
from workers.own_objects import own_account

if TYPE_CHECKING:
    from workers.desired import Manifest
    from workers.ownership import Account


class Existing(msgspec.Struct, frozen=True):
    """An object as a GET returned it."""

    body: dict[str, Any]

    @property
    def metadata(self) -> dict[str, Any]:
        return cast("dict[str, Any]", self.body.get("metadata") or {})

    @property
    def uid(self) -> str:
        return str(self.metadata.get("uid", ""))

    @property
    def labels(self) -> dict[str, str]:
        return self.metadata.get("labels") or {}

    @property
    def annotations(self) -> dict[str, str]:
        return self.metadata.get("annotations") or {}

    @property
    def tenant(self) -> str:
        """The tenant that it says it was made for, "" where no tenant can have that name: for records, no decision."""
        name = self.annotations.get(ANNOTATION_TENANT, "")
        return name if is_object_name(name) else ""

    @property
    def marked(self) -> bool:
        """Tell whether Tether made it: either mark will do, since a tenant can strip one."""
        return LABEL_COMPONENT in self.labels or ANNOTATION_ACCOUNT in self.annotations

    def belongs_to(self, account: Account | None) -> bool:
        """Tell whether Tether made it for this account; for None, as a copy of the CA.

        A mark that names an account which can have no object of this name and place counts as one that was taken off.
        """
        if account is None:
            return self.labels.get(LABEL_COMPONENT) == COMPONENT_CA and ANNOTATION_ACCOUNT not in self.annotations
        named = self.annotations.get(ANNOTATION_ACCOUNT, str(account))
        return self.marked and (named == str(account) or own_account(msgspec.convert(self.metadata, Meta)) is None)


_DEFAULTS: Final[tuple[Any, ...]] = ("", [], {}, None)


def same_content(body: dict[str, Any], content: dict[str, Any]) -> bool:
    """Tell whether an object says what it should, fields that the API server fills with nothing aside."""
    return all(bool(_plain(name, body.get(name)) == _plain(name, wanted)) for name, wanted in content.items())


def _plain(name: str, value: Any) -> Any:
    if isinstance(value, dict):
        return {key: plain for key, inner in value.items() if (plain := _plain(key, inner)) not in _DEFAULTS}
    if isinstance(value, list):
        return [_plain(name, inner) for inner in value] if name != "apiGroups" else list(value)
    return value


def same_marks(existing: Existing, manifest: Manifest) -> bool:
    """Tell whether an object bears the labels and annotations that it should."""
    wanted = manifest.body()["metadata"]
    return _within(wanted["labels"], existing.labels) and _within(wanted["annotations"], existing.annotations)


def renews(existing: Existing, manifest: Manifest) -> bool:
    """Tell whether an object gets another token than the one that its annotation names."""
    wanted = manifest.annotations.get(ANNOTATION_DIGEST)
    return wanted is not None and existing.annotations.get(ANNOTATION_DIGEST) != wanted


def _within(wanted: dict[str, str], found: dict[str, str]) -> bool:
    return all(found.get(name) == value for name, value in wanted.items())


def fixed_differs(body: dict[str, Any], content: dict[str, Any]) -> bool:
    """Tell whether a field differs that Kubernetes does not let anybody change."""
    fixed: dict[str, Any] = {name: content[name] for name in ("roleRef", "type") if name in content}
    return body.get("immutable") is True or not same_content(body, fixed)
