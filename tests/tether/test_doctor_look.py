"""What the doctor takes from Secrets and manifests: facts, never a secret."""

from __future__ import annotations

import base64
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from eventcore.objects import Meta
from eventcore.settings import Settings
from tether import manifests
from tether.cli_doctor import json_text, print_lines, summary
from tether.cluster_lists import LEGACY_TYPE, Secret, read_config
from tether.devcluster.pki import ClusterPki
from tether.doctor_look import account_state, authority, config_state, read_certificates
from tether.doctor_rights import needs
from tether.doctor_snapshot import Finding
from workers.desired import Target as DesiredTarget
from workers.desired import (
    Token,
    binding_secret,
    digest,
    kubeconfig,
    kubeconfig_secret,
    token_secret,
)
from workers.ownership import Account

ACCOUNT = Account("oil-system", "gitops-reconciler")
KEYS = ("kubeconfig", "value")
TEXT = "header.payload.signature"


def secret(body: dict[str, Any], uid: str = "u") -> Secret:
    """A Secret as the API server would give it back."""
    return msgspec.convert(body | {"metadata": body["metadata"] | {"uid": uid}}, Secret)


def tokens(tmp_path: Path) -> tuple[list[Secret], bytes]:
    now = datetime.now(UTC)
    token = Token(
        generation=2,
        binding="gitops-reconciler-token-2",
        binding_uid="b",
        account_uid="a",
        minted=now,
        expires=now + timedelta(hours=1),
        written=now,
        retire=now,
        digest=digest(TEXT),
    )
    ca = ClusterPki.load_or_create(tmp_path).ca_pem.encode()
    content = kubeconfig(server="https://proxy:9001", ca=ca, token=TEXT, namespace="oil-system")
    target = DesiredTarget("Secret", "oil-system", "gitops-reconciler-kubeconfig")
    found = [
        secret(token_secret(ACCOUNT, "oil", token, TEXT).body()),
        secret(binding_secret(ACCOUNT, "oil", "a", 2).body(), uid="b"),
        secret(kubeconfig_secret(ACCOUNT, "oil", target, config=content, generation=2).body()),
    ]
    return found, ca


def test_what_tether_makes_is_read_as_whole(tmp_path: Path) -> None:
    secrets, ca = tokens(tmp_path)
    state = account_state(ACCOUNT, secrets, Settings())
    assert state.token is not None
    assert state.token.actual == state.token.digest == digest(TEXT)
    assert state.token.bound
    (config,) = state.configs
    assert config.ours
    assert config.watched
    assert config.server == "https://proxy:9001"
    assert config.token == digest(TEXT)
    assert config.context == "oil-system"
    assert config.certificates == frozenset(read_certificates(ca) or ())
    assert state.static == ()


def test_no_token_and_no_content_is_in_what_the_doctor_keeps(tmp_path: Path) -> None:
    secrets, _ = tokens(tmp_path)
    state = account_state(ACCOUNT, secrets, Settings())
    assert TEXT not in repr(state)
    assert TEXT not in msgspec.json.encode(state).decode()
    config = read_config(secrets[2].text("kubeconfig"))
    assert config is not None
    assert TEXT not in repr(config)


def test_a_token_whose_binding_was_made_anew_is_revoked(tmp_path: Path) -> None:
    secrets, _ = tokens(tmp_path)
    renewed = [s if s.metadata.uid != "b" else secret(binding_secret(ACCOUNT, "oil", "a", 2).body()) for s in secrets]
    state = account_state(ACCOUNT, renewed, Settings())
    assert state.token is not None
    assert not state.token.bound


def test_other_static_tokens_of_an_account_are_listed() -> None:
    def static(name: str, account: str) -> Secret:
        annotations = {"kubernetes.io/service-account.name": account}
        return Secret(metadata=Meta(name=name, namespace="oil-system", annotations=annotations), type=LEGACY_TYPE)

    found = [static("a", ACCOUNT.name), static("b", "somebody"), static("gitops-reconciler-token", ACCOUNT.name)]
    assert account_state(ACCOUNT, found, Settings()).static == ("oil-system/a",)


@given(st.text() | st.binary().map(lambda data: data.decode("latin-1")))
def test_any_text_is_a_kubeconfig_or_it_is_not(text: str) -> None:
    data = {"kubeconfig": base64.b64encode(text.encode()).decode()}
    state = config_state(Secret(metadata=Meta(name="a", namespace="b"), data=data), KEYS)
    assert not state.readable
    assert state.token == ""


def test_two_keys_that_differ_are_seen() -> None:
    data = {"kubeconfig": base64.b64encode(b"a").decode(), "value": base64.b64encode(b"b").decode()}
    assert not config_state(Secret(metadata=Meta(name="a", namespace="b"), data=data), KEYS).same_in_all_keys


def test_the_authority_is_read_from_the_first_key_that_is_there(tmp_path: Path) -> None:
    pem = ClusterPki.load_or_create(tmp_path).ca_pem
    settings = Settings()
    assert "does not exist" in authority(settings, None).problem
    assert "ca.crt, ca" in authority(settings, {}).problem
    assert "key ca is" in authority(settings, {"ca": "nonsense"}).problem
    good = authority(settings, {"ca": pem})
    assert not good.problem
    assert good.certificates
    assert good.expires is not None


def test_the_authority_may_lie_in_a_config_map() -> None:
    assert authority(Settings(proxy_ca_configmap="ca"), None).source == "ConfigMap/capsule-system/ca"


def test_a_static_token_of_tethers_own_is_not_another_one() -> None:
    own = secret(binding_secret(ACCOUNT, "oil", "a", 2, "static").body())
    assert account_state(ACCOUNT, [own], Settings()).static == ()


def test_the_rights_that_are_asked_for_are_those_of_the_manifests() -> None:
    rules = yaml.safe_load(
        """
        - apiGroups: ["", apps]
          resources: [things, things/scale]
          verbs: [get]
        - apiGroups: [g]
          resources: [roles]
          resourceNames: [one, two]
          verbs: [bind]
        """
    )
    subject = {"kind": "ServiceAccount", "name": "tether-x", "namespace": "capsule-system"}
    ref = {"kind": "ClusterRole", "name": "r"}
    objects = [
        {"kind": "ClusterRole", "metadata": {"name": "r"}, "rules": rules},
        {"kind": "ClusterRole", "metadata": {"name": "unbound"}, "rules": rules},
        {"kind": "ClusterRoleBinding", "metadata": {"name": "b"}, "roleRef": ref, "subjects": [subject]},
    ]
    found = needs(objects, "elsewhere")
    assert {str(need.account) for need in found} == {"elsewhere/tether-x"}
    assert [str(need) for need in found] == [
        "bind roles.g one",
        "bind roles.g two",
        "get things",
        "get things/scale",
        "get things.apps",
        "get things/scale.apps",
    ]


def test_each_account_that_ships_with_rights_is_asked_about() -> None:
    shipped = manifests.read(manifests.shipped("deploy/rbac"))
    bound = {
        subject["name"]
        for obj in shipped
        if obj["kind"].endswith("RoleBinding")
        for subject in obj["subjects"]
        if subject["kind"] == "ServiceAccount"
    }
    assert bound
    assert {need.account.name for need in needs(shipped, "capsule-system")} == bound


def test_a_problem_shows_how_to_mend_it_below_it_and_the_end_counts(capsys: pytest.CaptureFixture[str]) -> None:
    found = [
        Finding(severity="ok", check="c", object="A", message="is fine"),
        Finding(severity="error", check="c", object="B", message="is not", remedy="mend it"),
    ]
    print_lines(found)
    text = capsys.readouterr().out
    assert "A: is fine" in text
    assert text.endswith("B: is not\n         -> mend it\n")
    assert summary(found) == "1 error, 0 warnings, 0 notes, 1 ok"
    decoded = msgspec.json.decode(json_text(found, "error"))
    assert decoded["severity"] == "error"
    assert decoded["findings"][1]["remedy"] == "mend it"
