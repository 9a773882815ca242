"""What `tether kubeconfig generate` decides, without a cluster: tokens, CA, whose Secret it is, what differs."""

from __future__ import annotations

import base64
import random
from datetime import UTC, datetime, timedelta
from typing import Any

import jwt
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eventcore.errors import StartError
from tether.devcluster.pki import ClusterPki
from tether.generate_plan import (
    ANNOTATION_ACCOUNT_NAME,
    ANNOTATION_ACCOUNT_UID,
    ANNOTATION_GENERATED,
    EXTENDED_LIFE,
    LABEL_INVALID,
    STATIC_TYPE,
    Options,
    ca_of,
    check,
    differences,
    good_token,
    parse,
    pick_static,
    secret_body,
    verdict,
    wanted_data,
)
from workers.desired import kubeconfig
from workers.existing import Existing

Object = dict[str, Any]
UID = "6f1c2f7e-52c7-4a52-9a1c-0d1f8f6f7a11"
OPTIONS = Options(
    serviceaccount="gitops-reconciler",
    namespace="oil-system",
    server="https://capsule-proxy.capsule-system.svc:9001",
    tls_secret_name="capsule-proxy",
    tls_secret_namespace="capsule-system",
)
NOW = datetime(2030, 1, 1, tzinfo=UTC)


def but(**changes: Any) -> Options:
    return msgspec.structs.replace(OPTIONS, **changes)


def encoded(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def config(text: str = "t", server: str = OPTIONS.server, ca: bytes = b"ca") -> bytes:
    return kubeconfig(server=server, ca=ca, token=text, namespace=OPTIONS.namespace)


def stored(data: dict[str, str], **metadata: Any) -> Existing:
    """Return the Secret as an earlier run left it."""
    body = secret_body(OPTIONS, data)
    body["metadata"] |= {"uid": "secret-uid", "resourceVersion": "7"} | metadata
    return Existing(body)


def token_secret(name: str, *, text: str = "t", created: str = "2026-01-01T00:00:00Z", **annotations: str) -> Object:
    known = {ANNOTATION_ACCOUNT_NAME: "gitops-reconciler", ANNOTATION_ACCOUNT_UID: UID} | annotations
    metadata = {"name": name, "creationTimestamp": created, "annotations": known}
    return {"type": STATIC_TYPE, "metadata": metadata, "data": {"token": encoded(text)} if text else {}}


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"serviceaccount": ""}, "--serviceaccount is missing"),
        ({"server": ""}, "--server is missing"),
        ({"tls_secret_name": ""}, "--server-tls-secret-name is missing"),
        ({"secret_key": ""}, "--kubeconfig-secret-key is missing"),
        ({"server": "http://proxy:9001"}, "the token would travel unprotected"),
        ({"server": "proxy:9001"}, "is not an https:// URL"),
        ({"server": "https://:9001"}, "is not an https:// URL"),
        ({"server": "https://proxy:port"}, "is not an https:// URL"),
        ({"token_life": 599.0}, "at least 10m"),
        ({"token_life": 700.5}, "whole seconds"),
        ({"token_life": float(EXTENDED_LIFE)}, "stretch just this life"),
    ],
)
def test_options_that_cannot_be_are_refused_in_one_line(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(StartError, match=says) as caught:
        check(but(**changes))

    assert "\n" not in str(caught.value)


def test_the_options_of_the_guide_are_taken() -> None:
    check(OPTIONS)
    check(but(token_life=3600.0))


@given(st.permutations(["gitops-reconciler-token", "a-token", "b-token"]))
def test_the_token_secret_of_the_usual_name_is_used_whatever_the_order(names: list[str]) -> None:
    found = pick_static([token_secret(name) for name in names], OPTIONS.account, UID)

    assert found
    assert found["metadata"]["name"] == "gitops-reconciler-token"


def test_a_filled_token_secret_beats_one_that_is_empty_and_an_older_one_a_younger() -> None:
    secrets = [
        token_secret("gitops-reconciler-token", text=""),
        token_secret("young", created="2026-05-01T00:00:00Z"),
        token_secret("old", created="2026-02-01T00:00:00Z"),
    ]
    random.Random(4).shuffle(secrets)  # noqa: S311 -- an order, no secret

    found = pick_static(secrets, OPTIONS.account, UID)

    assert found
    assert found["metadata"]["name"] == "old"


@pytest.mark.parametrize(
    "other",
    [
        token_secret("x", **{ANNOTATION_ACCOUNT_NAME: "another"}),
        token_secret("x", **{ANNOTATION_ACCOUNT_UID: "of the account that was there before"}),
        token_secret("x") | {"type": "Opaque"},
        {**token_secret("x"), "metadata": {**token_secret("x")["metadata"], "labels": {LABEL_INVALID: "2026-01-01"}}},
        {**token_secret("x"), "metadata": {**token_secret("x")["metadata"], "deletionTimestamp": "2026-01-01"}},
    ],
    ids=["another account", "another uid", "another type", "no longer accepted", "being deleted"],
)
def test_a_secret_that_is_no_good_token_of_this_account_is_not_used(other: Object) -> None:
    assert pick_static([other], OPTIONS.account, UID) is None


def test_the_ca_lies_under_ca_then_under_that_of_cert_manager_or_under_the_key_that_is_named() -> None:
    one, two = (ClusterPki.load_or_create(None).ca_pem for _ in range(2))

    assert ca_of({"data": {"ca": encoded(one), "ca.crt": encoded(two)}}, OPTIONS) == one.encode()
    assert ca_of({"data": {"ca.crt": encoded(two)}}, OPTIONS) == two.encode()
    assert ca_of({"data": {"ca": encoded(one), "x": encoded(two)}}, but(ca_key="x")) == two.encode()


@pytest.mark.parametrize(
    ("data", "key", "says"),
    [
        ({}, "", "has no key ca or ca.crt"),
        (None, "", "has no key ca or ca.crt"),
        ({"ca": "eA=="}, "ca.crt", "has no key ca.crt"),
        ({"ca": encoded("words")}, "", "is not a PEM certificate"),
        ({"ca": "?"}, "", "is not a PEM certificate"),
        ({"ca": "/w=="}, "", "is not a PEM certificate"),
    ],
)
def test_a_secret_without_a_ca_is_refused_by_name(data: Object | None, key: str, says: str) -> None:
    with pytest.raises(StartError, match=says) as caught:
        ca_of({"data": data}, but(ca_key=key))

    assert "Secret/capsule-system/capsule-proxy" in str(caught.value)


def test_the_kubeconfig_stands_under_the_key_asked_for_and_under_that_of_flux() -> None:
    assert set(wanted_data(OPTIONS, config())) == {"kubeconfig", "value"}
    assert set(wanted_data(but(secret_key="k"), config())) == {"k", "value"}
    assert set(wanted_data(but(secret_key="value"), config())) == {"value"}


def test_nothing_is_created_equal_is_the_same_and_ours_is_updated() -> None:
    data = wanted_data(OPTIONS, config())

    assert verdict(None, OPTIONS, data) == "create"
    assert verdict(stored(data), OPTIONS, data) == "same"
    assert verdict(stored(wanted_data(OPTIONS, config("old"))), OPTIONS, data) == "update"
    assert verdict(stored(data, labels={}), OPTIONS, data) == "update"


def test_a_foreign_secret_is_refused_unless_it_is_equal_or_adopted() -> None:
    data = wanted_data(OPTIONS, config())
    foreign = stored({"kubeconfig": encoded("theirs")}, annotations={})

    with pytest.raises(StartError, match=r"was not made by this command: .* --adopt"):
        verdict(foreign, OPTIONS, data)

    assert verdict(foreign, but(adopt=True), data) == "update"
    assert verdict(stored(data, annotations={}, labels={}), OPTIONS, data) == "same"
    body = secret_body(OPTIONS, data, foreign)
    assert body["metadata"]["annotations"] == {ANNOTATION_GENERATED: "oil-system/gitops-reconciler"}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"immutable": True}, "is immutable"),
        ({"type": "example.com/other"}, "is of type example.com/other"),
    ],
)
def test_a_secret_that_nobody_can_change_is_said(change: Object, says: str) -> None:
    existing = stored(wanted_data(OPTIONS, config("old")))

    with pytest.raises(StartError, match=says):
        verdict(Existing(existing.body | change), OPTIONS, wanted_data(OPTIONS, config()))


@pytest.mark.parametrize("mark", ["labels", "annotations"])
def test_a_secret_of_the_workers_is_refused_even_when_it_is_to_be_adopted(mark: str) -> None:
    marks = {
        "labels": {"capsule-tether.io/component": "kubeconfig"},
        "annotations": {"capsule-tether.io/account": "a/b"},
    }
    existing = stored({"kubeconfig": "eA=="}, **{mark: marks[mark]})

    with pytest.raises(StartError, match="is kept by Tether's workers"):
        verdict(existing, but(adopt=True), wanted_data(OPTIONS, config()))


def test_an_update_keeps_what_others_wrote_beside_it_and_the_version_that_was_read() -> None:
    existing = stored({}, labels={"team": "oil"}, ownerReferences=[{"name": "x"}])

    metadata = secret_body(OPTIONS, wanted_data(OPTIONS, config()), existing)["metadata"]

    assert metadata["labels"] == {"team": "oil", "reconcile.fluxcd.io/watch": "Enabled"}
    assert metadata["ownerReferences"] == [{"name": "x"}]
    assert (metadata["uid"], metadata["resourceVersion"]) == ("secret-uid", "7")


@pytest.mark.parametrize(
    ("new", "words"),
    [
        (config(server="https://other:9001"), ["server"]),
        (config(ca=b"other"), ["CA"]),
        (config("hush-hush"), ["token"]),
        (config("hush-hush", ca=b"other"), ["CA", "token"]),
    ],
)
def test_an_update_says_what_it_changes_and_no_value(new: bytes, words: list[str]) -> None:
    said = differences(wanted_data(OPTIONS, config()), wanted_data(OPTIONS, new), "kubeconfig")

    assert said == words
    assert "hush" not in repr(parse(wanted_data(OPTIONS, new), "kubeconfig"))


@given(
    st.dictionaries(st.sampled_from(["kubeconfig", "value"]), st.binary().map(lambda b: base64.b64encode(b).decode()))
)
def test_whatever_stands_in_a_secret_can_be_told_from_a_kubeconfig(data: dict[str, str]) -> None:
    assert differences(data, wanted_data(OPTIONS, config()), "kubeconfig")


def minted(*, life: float = 3600.0, uid: str = UID, holder: str = "secret-uid", begun: datetime = NOW) -> str:
    bound = {"serviceaccount": {"uid": uid}, "secret": {"uid": holder}}
    claims = {"iat": begun, "exp": begun + timedelta(seconds=life), "kubernetes.io": bound}
    return jwt.encode(claims, "k" * 32)


@pytest.mark.parametrize(
    ("token", "after", "kept"),
    [
        (minted(), 0, True),
        (minted(), 2399, True),
        (minted(), 2401, False),
        (minted(life=7200), 0, False),
        (minted(uid="of another account"), 0, False),
        (minted(holder="of a Secret that is gone"), 0, False),
        ("no token at all", 0, False),
        (jwt.encode({"iat": NOW, "exp": NOW}, "k" * 32), 0, False),
    ],
    ids=["new", "before its time", "past two thirds", "too long", "account", "secret", "none", "unbound"],
)
def test_a_token_that_expires_is_kept_while_it_serves(token: str, after: int, kept: bool) -> None:
    existing = stored(wanted_data(OPTIONS, config(token)))

    found = good_token(existing, but(token_life=3600.0), UID, NOW + timedelta(seconds=after))

    assert found == (token if kept else "")


def test_a_token_in_a_foreign_secret_is_never_kept() -> None:
    existing = stored(wanted_data(OPTIONS, config(minted())), annotations={})

    assert good_token(existing, but(token_life=3600.0), UID, NOW) == ""
