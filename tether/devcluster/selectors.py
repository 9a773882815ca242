"""Label and field selectors as Kubernetes writes them, parsed once and matched against objects. Pure."""

from __future__ import annotations

import re
from collections.abc import Callable

import msgspec

from tether.devcluster.contracts import Object, Resource
from tether.devcluster.errors import bad_request
from tether.devcluster.objects import dig, labels_of

_KEY = r"(?:[a-z0-9](?:[-a-z0-9.]*[a-z0-9])?/)?[A-Za-z0-9](?:[-A-Za-z0-9_.]*[A-Za-z0-9])?"
_VALUE = r"(?:[A-Za-z0-9](?:[-A-Za-z0-9_.]*[A-Za-z0-9])?)?"
_REQUIREMENT = re.compile(
    rf"\s*(?:(?P<absent>!)\s*(?P<absent_key>{_KEY})"
    rf"|(?P<set_key>{_KEY})\s+(?P<set_op>in|notin)\s*\((?P<set>[^()]*)\)"
    rf"|(?P<key>{_KEY})\s*(?:(?P<op>==|=|!=|<|>)\s*(?P<value>{_VALUE}))?)\s*(?:,|$)"
)
_LABEL_VALUE = re.compile(_VALUE)

Matcher = Callable[[Object], bool]

_METADATA_FIELDS = ("metadata.name", "metadata.namespace")
_FIELDS: dict[tuple[str, str], tuple[str, ...]] = {
    ("", "namespaces"): ("status.phase",),
    ("", "secrets"): ("type",),
    ("", "nodes"): ("spec.unschedulable",),
    ("", "pods"): (
        "spec.nodeName",
        "spec.restartPolicy",
        "spec.schedulerName",
        "spec.serviceAccountName",
        "spec.hostNetwork",
        "status.phase",
        "status.podIP",
        "status.nominatedNodeName",
    ),
    ("", "events"): (
        "involvedObject.kind",
        "involvedObject.namespace",
        "involvedObject.name",
        "involvedObject.uid",
        "involvedObject.apiVersion",
        "involvedObject.resourceVersion",
        "involvedObject.fieldPath",
        "reason",
        "reportingComponent",
        "source",
        "type",
    ),
    ("", "services"): ("spec.clusterIP", "spec.type"),
    ("apps", "replicasets"): ("status.replicas",),
    ("batch", "jobs"): ("status.successful",),
}


class Requirement(msgspec.Struct, frozen=True):
    """One term of a label selector; operator as in metav1.LabelSelectorRequirement, with Gt and Lt."""

    key: str
    operator: str
    values: tuple[str, ...] = ()

    def holds(self, labels: dict[str, str]) -> bool:
        """Whether an object with these labels fulfils the term."""
        value = labels.get(self.key)
        if self.operator == "Exists":
            return value is not None
        if self.operator == "DoesNotExist":
            return value is None
        if self.operator == "In":
            return value in self.values
        if self.operator == "NotIn":
            return value not in self.values
        if value is None or not re.fullmatch(r"[+-]?\d+", value):
            return False
        bound = int(self.values[0])
        return int(value) > bound if self.operator == "Gt" else int(value) < bound


def parse_labels(text: str) -> tuple[Requirement, ...]:
    """Parse a labelSelector parameter such as ``a=b,c in (d,e),!f``; 400 when it makes no sense."""
    found: list[Requirement] = []
    at = 0
    while at < len(text.rstrip()):
        match = _REQUIREMENT.match(text, at)
        if not match:
            raise bad_request(f"unable to parse requirement: found '{text[at:]}', expected: a label requirement")
        at = match.end()
        found.append(_requirement(match))
    if text.rstrip().endswith(","):
        raise bad_request("unable to parse requirement: found '', expected: identifier after ','")
    return tuple(found)


def _requirement(match: re.Match[str]) -> Requirement:
    if match["absent"]:
        return Requirement(match["absent_key"], "DoesNotExist")
    if match["set_key"]:
        values = tuple(value.strip() for value in match["set"].split(","))
        for value in values:
            if not _LABEL_VALUE.fullmatch(value):
                raise bad_request(f'unable to parse requirement: values: Invalid value: "{value}"')
        return Requirement(match["set_key"], "In" if match["set_op"] == "in" else "NotIn", values)
    if not match["op"]:
        return Requirement(match["key"], "Exists")
    operator = {"=": "In", "==": "In", "!=": "NotIn", ">": "Gt", "<": "Lt"}[match["op"]]
    value = match["value"]
    if operator in {"Gt", "Lt"} and not value.isdigit():
        detail = "for 'Gt', 'Lt' operators, the value must be an integer"
        raise bad_request(f"unable to parse requirement: values[0]: Invalid value: {detail}")
    return Requirement(match["key"], operator, (value,))


def _split_fields(text: str) -> list[tuple[str, bool, str]]:
    terms: list[tuple[str, bool, str]] = []
    for term in re.findall(r"(?:\\.|[^,\\])+", text):
        match = re.fullmatch(r"\s*([^=!]+?)\s*(!=|==|=)((?:\\.|[^\\])*)", term)
        if not match:
            raise bad_request(f"invalid selector: '{text}'; can't understand '{term}'")
        value = re.sub(r"\\([,=\\])", r"\1", match[3])
        terms.append((match[1], match[2] != "!=", value))
    return terms


def field_matcher(resource: Resource, text: str) -> Matcher | None:
    """Return what a fieldSelector parameter asks, None for nothing; 400 for a field the kind does not support."""
    if not text.strip():
        return None
    own = _FIELDS.get((resource.group, resource.plural), ())
    allowed = {*_METADATA_FIELDS, *own}
    terms = _split_fields(text)
    for field, _, _ in terms:
        if field not in allowed:
            if own:
                raise bad_request(f"field label not supported: {field}")
            names = ", ".join(f'"{name}"' for name in _METADATA_FIELDS)
            raise bad_request(f'"{field}" is not a known field selector: only {names}')

    def matches(obj: Object) -> bool:
        return all((_field(obj, field) == value) is equal for field, equal, value in terms)

    return matches


def name_in(text: str) -> str:
    """Return the name that a fieldSelector pins with ``metadata.name=``, or ""; authorization looks at it."""
    for field, equal, value in _split_fields(text):
        if field == "metadata.name" and equal:
            return value
    return ""


def _field(obj: Object, path: str) -> str:
    if path == "source":
        return str(dig(obj, "source", "component") or obj.get("reportingComponent") or "")
    value = dig(obj, *path.split("."))
    if isinstance(value, bool):
        return str(value).lower()
    return "" if value is None else str(value)


def label_matcher(text: str) -> Matcher | None:
    """Return what a labelSelector parameter asks, None for everything."""
    terms = parse_labels(text)
    if not terms:
        return None

    def matches(obj: Object) -> bool:
        labels = labels_of(obj)
        return all(term.holds(labels) for term in terms)

    return matches


def both(first: Matcher | None, second: Matcher | None) -> Matcher | None:
    """Return the conjunction of two matchers, of which each may be None (everything)."""
    if first is None or second is None:
        return first or second
    one, other = first, second
    return lambda obj: one(obj) and other(obj)
