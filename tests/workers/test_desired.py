"""What is desired is whole, is read back as it was meant, and is equal to itself."""

from __future__ import annotations

import base64
import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from eventcore.objects import ANNOTATION_ACCOUNT, LABEL_COMPONENT
from eventcore.settings import Settings
from tests.naming import short
from workers.desired import (
    ANNOTATION_MODE,
    Manifest,
    Target,
    Token,
    binding_secret,
    digest,
    flux_config_map,
    home_role_binding,
    impersonator,
    kubeconfig,
    kubeconfig_secret,
    token_audiences,
    token_secret,
)
from workers.existing import Existing, same_content
from workers.ownership import Account
from workers.token import rotation

ACCOUNT = Account("oil-system", "gitops-reconciler")
moments = st.datetimes(datetime(2020, 1, 1), datetime(2029, 1, 1), timezones=st.just(UTC))  # noqa: DTZ001 -- bounds have none
texts = st.text(st.characters(codec="ascii", exclude_categories=["C"]), min_size=1, max_size=80)
tokens = st.builds(
    Token,
    generation=st.integers(1, 10**6),
    binding=st.from_regex(r"\A[a-z0-9]([a-z0-9.-]{0,60}[a-z0-9])?\Z"),
    binding_uid=texts,
    account_uid=texts,
    minted=moments,
    expires=moments,
    written=moments,
    retire=moments,
    digest=texts.map(digest),
    mode=st.sampled_from(["bound", "static"]),
)


@given(texts, st.binary(min_size=1), texts, texts)
def test_a_kubeconfig_is_yaml_that_says_what_it_was_made_of(server: str, ca: bytes, token: str, namespace: str) -> None:
    config = yaml.safe_load(kubeconfig(server=server, ca=ca, token=token, namespace=namespace))

    context = next(one["context"] for one in config["contexts"] if one["name"] == config["current-context"])
    cluster = next(one["cluster"] for one in config["clusters"] if one["name"] == context["cluster"])
    user = next(one["user"] for one in config["users"] if one["name"] == context["user"])
    assert (config["apiVersion"], config["kind"]) == ("v1", "Config")
    assert cluster["server"] == server
    assert base64.b64decode(cluster["certificate-authority-data"]) == ca
    assert user == {"token": token}
    assert context["namespace"] == namespace


@given(tokens)
def test_what_is_known_of_a_token_survives_in_annotations(token: Token) -> None:
    assert Token.of_annotations(token.annotations()) == token


@given(tokens, st.data())
def test_annotations_that_lack_a_part_of_a_token_are_none(token: Token, data: st.DataObject) -> None:
    annotations = token.annotations()
    # Tokens of before there were modes say none, and are bound.
    del annotations[data.draw(st.sampled_from(sorted(set(annotations) - {ANNOTATION_MODE})))]

    assert Token.of_annotations(annotations) is None


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("generation", "9" * 5000),
        ("generation", "9" * 24),
        ("generation", str(2**31)),
        ("generation", "0"),
        ("generation", "-1"),
        ("binding", ".."),
        ("binding", "a/../../x"),
        ("binding", "a" * 254),
        ("binding", ""),
        ("minted", "9" * 100_000),
        ("minted", "0001-01-01T00:00:00+23:59"),
        ("expires", "9999-12-31T23:59:59-23:59"),
        ("retire", "9998-12-31T00:00:00Z"),
        ("written", "2026-01-01T00:00:00"),
    ],
    ids=short,
)
def test_what_an_account_wrote_on_its_token_is_no_token_where_tether_would_not_have_written_it(
    name: str, text: str
) -> None:
    (annotations,) = (one.annotations for one in manifests() if one.target.name == "gitops-reconciler-token")
    assert Token.of_annotations(annotations) is not None

    assert Token.of_annotations(annotations | {f"capsule-tether.io/{name}": text}) is None


def manifests() -> list[Manifest]:
    """Return one of each kind."""
    moment = datetime(2026, 1, 1, tzinfo=UTC)
    token = Token(
        generation=3,
        binding="gitops-reconciler-token-3",
        binding_uid="u3",
        account_uid="u1",
        minted=moment,
        expires=moment,
        written=moment,
        retire=moment,
        digest="d",
    )
    target = Target("Secret", "oil-production", "gitops-reconciler-kubeconfig")
    return [
        home_role_binding(ACCOUNT, "oil", "cluster-admin"),
        *impersonator(ACCOUNT, "oil", "oil-system-gitops-reconciler-impersonator"),
        binding_secret(ACCOUNT, "oil", "u1", 3),
        token_secret(ACCOUNT, "oil", token, "header.payload.signature"),
        kubeconfig_secret(ACCOUNT, "oil", target, config=b"x", generation=3),
        flux_config_map(
            ACCOUNT,
            "oil",
            Target("ConfigMap", "oil-system", "gitops-reconciler-kubeconfig"),
            server="https://proxy:9001",
            trust=b"x",
            audiences=["a", "b"],
        ),
    ]


@pytest.mark.parametrize("manifest", manifests(), ids=lambda manifest: str(manifest.target))
def test_every_object_is_marked_as_ours_and_as_the_accounts(manifest: Manifest) -> None:
    body = manifest.body()

    assert body["metadata"]["labels"][LABEL_COMPONENT] == manifest.component
    assert body["metadata"]["annotations"][ANNOTATION_ACCOUNT] == "oil-system/gitops-reconciler"
    assert Existing(body).belongs_to(ACCOUNT)
    assert not Existing(body).belongs_to(Account("gas-system", "gitops-reconciler"))
    assert same_content(body, manifest.content)
    assert "uid" not in body["metadata"]
    assert manifest.body("u9")["metadata"]["uid"] == "u9"


@pytest.mark.parametrize("manifest", manifests(), ids=lambda manifest: str(manifest.target))
@pytest.mark.parametrize("labelled", [True, False])
def test_a_mark_that_names_who_can_have_no_such_object_is_one_that_was_taken_off(
    manifest: Manifest, *, labelled: bool
) -> None:
    body = manifest.body()
    body["metadata"]["annotations"][ANNOTATION_ACCOUNT] = "x/" + "y" * 300
    if not labelled:
        del body["metadata"]["labels"]

    assert Existing(body).belongs_to(ACCOUNT)

    body["metadata"]["annotations"] = {}
    assert Existing(body).belongs_to(ACCOUNT) == labelled


@given(st.text() | st.binary().map(lambda raw: f"a.{base64.urlsafe_b64encode(raw).decode()}.c"))
def test_a_text_that_is_no_token_names_no_audience(text: str) -> None:
    assert token_audiences(text) == ()


@given(st.lists(st.text()), st.text())
def test_the_audiences_of_a_token_are_read(audiences: list[str], sub: str) -> None:
    def token(claims: dict[str, Any]) -> str:
        return f"e30.{base64.urlsafe_b64encode(json.dumps(claims).encode()).decode().rstrip('=')}.c"

    assert token_audiences(token({"sub": sub, "aud": audiences})) == tuple(audiences)
    assert token_audiences(token({"aud": sub})) == (sub,)
    assert token_audiences(token({"sub": sub})) == ()


def test_no_token_is_outside_the_data_of_a_secret() -> None:
    for manifest in manifests():
        body = manifest.body()
        body.pop("data", None)
        assert "header.payload.signature" not in str(body)


@pytest.mark.parametrize(
    "filled",
    [
        {"subjects": [{"kind": "ServiceAccount", "name": "x", "namespace": "y", "apiGroup": ""}]},
        {"roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "cluster-admin"}},
    ],
)
def test_fields_that_the_server_fills_with_nothing_make_no_difference(filled: dict[str, Any]) -> None:
    content = {
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "cluster-admin"},
        "subjects": [{"kind": "ServiceAccount", "name": "x", "namespace": "y"}],
    }

    assert same_content(content | filled, content)
    assert not same_content(content | {"subjects": []}, content)
    assert not same_content(content | {"roleRef": filled}, content)


@given(tokens, st.floats(600, 10**7), st.floats(0.05, 0.95), st.floats(0, 10**7))
def test_a_token_is_rotated_after_it_was_minted_and_before_it_expires(
    token: Token, life: float, share: float, after: float
) -> None:
    token = Token(**{name: getattr(token, name) for name in token.__struct_fields__} | {"expires": token.minted})
    token = Token(**_fields(token) | {"expires": token.minted + timedelta(seconds=life)})
    settings = Settings(token_rotate_at=share, token_rotate_after=after)

    assert token.minted <= rotation(token, settings) < token.expires


def _fields(token: Token) -> dict[str, Any]:
    return {name: getattr(token, name) for name in token.__struct_fields__}
