"""Which representation a client takes, from its Accept header: JSON or YAML, whole, as a Table, or metadata only."""

from __future__ import annotations

from typing import Literal

import msgspec

from tether.devcluster.errors import not_acceptable

JSON = "application/json"
YAML = "application/yaml"
SUPPORTED = (JSON, YAML)
_TRANSFORMS = {"Table", "PartialObjectMetadata", "PartialObjectMetadataList"}
_META_VERSIONS = {"v1", "v1beta1"}

As = Literal["", "Table", "PartialObjectMetadata", "PartialObjectMetadataList"]


class Representation(msgspec.Struct, frozen=True):
    """How an answer is written: media type, and the ``as`` of meta.k8s.io ("" for the object itself)."""

    media_type: str = JSON
    as_kind: As = ""
    as_version: str = "v1"


def negotiate(accept: str, *, streaming: bool = False, transforms: bool = True) -> Representation:
    """Return the first representation of an Accept header that can be given; 406 when there is none.

    ``streaming`` is a watch, which is never YAML. Without ``transforms`` (discovery, reviews) clauses that ask for
    one are passed over.
    """
    clauses = [_clause(text) for text in accept.split(",") if text.strip()]
    for media_type, parameters in sorted(clauses or [(JSON, {})], key=_quality, reverse=True):
        written = _written_as(media_type)
        if not written or (streaming and written != JSON):
            continue
        as_kind = parameters.get("as", "")
        if not as_kind:
            return Representation(written)
        version = parameters.get("v", "")
        known = as_kind in _TRANSFORMS and version in _META_VERSIONS and parameters.get("g") == "meta.k8s.io"
        if known and transforms:
            return Representation(written, _as(as_kind), version)
    raise not_acceptable(SUPPORTED)


def _as(text: str) -> As:
    if text == "Table":
        return "Table"
    return "PartialObjectMetadata" if text == "PartialObjectMetadata" else "PartialObjectMetadataList"


def _clause(text: str) -> tuple[str, dict[str, str]]:
    media_type, *parameters = (part.strip() for part in text.split(";"))
    pairs = (part.partition("=") for part in parameters)
    return media_type.lower(), {key.strip(): value.strip() for key, _, value in pairs}


def _quality(clause: tuple[str, dict[str, str]]) -> float:
    try:
        return float(clause[1].get("q", "1"))
    except ValueError:
        return 0.0


def _written_as(media_type: str) -> str:
    if media_type in {JSON, "*/*", "application/*"}:
        return JSON
    return YAML if media_type in {YAML, "application/x-yaml", "text/yaml"} else ""
