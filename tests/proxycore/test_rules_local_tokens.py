"""Which tokens are believed without a review: those whose account, Secret, key, issuer, audience and time all fit."""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING, Any

import jwt
import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from eventcore.errors import KubeError, KubeUnreachableError
from eventcore.grants import AccountGrant, BoundSecret, Grant
from eventcore.kube import api_path
from proxycore.local_tokens import ISSUER_PATH, KEYS_FLOOR, KEYS_PATH, KEYS_TTL, ClusterKeys, LocalTokens

if TYPE_CHECKING:
    from collections.abc import Callable

    from eventcore.keys import Key

NOW = 1_000_000.0
ISSUER = "https://issuer.example"
GRANT = AccountGrant(
    namespace="oil-system", name="sa", uid="u1", secrets=(BoundSecret(name="s1", uid="secret-1", generation=1),)
)
RSA = rsa.generate_private_key(public_exponent=65537, key_size=2048)
OTHER = rsa.generate_private_key(public_exponent=65537, key_size=2048)
CURVE = ec.generate_private_key(ec.SECP256R1())


def jwk(key: Any, kid: str, **more: str) -> dict[str, Any]:
    algorithm: Any = jwt.algorithms.RSAAlgorithm if isinstance(key, rsa.RSAPrivateKey) else jwt.algorithms.ECAlgorithm
    return {**algorithm.to_jwk(key.public_key(), as_dict=True), "kid": kid, "use": "sig", **more}


class Server:
    """The API server's two documents."""

    def __init__(self) -> None:
        self.keys = [jwk(RSA, "k1"), jwk(CURVE, "k2")]
        self.asked: list[str] = []
        self.away = False
        self.issuer = ISSUER
        self.meanwhile: Callable[[], object] = lambda: None

    async def get(self, path: str, /, *, accept: str = "application/json") -> bytes:
        self.asked.append(path)
        if path == KEYS_PATH and accept != "application/jwk-set+json":  # as kube-apiserver does
            raise KubeError("406: Not Acceptable")
        if self.away:
            raise KubeUnreachableError("away")
        self.meanwhile()
        return msgspec.json.encode({ISSUER_PATH: {"issuer": self.issuer}, KEYS_PATH: {"keys": self.keys}}[path])


class Parts:
    """Local tokens with everything that decides in reach of a test."""

    def __init__(self) -> None:
        self.server = Server()
        self.now = NOW
        self.fresh = True
        self.grants: dict[Key, Grant] = {GRANT.key(): GRANT}
        self.keys = ClusterKeys(self.server, clock=lambda: self.now)
        self.tokens = LocalTokens(self.keys, lambda: self, lambda: self.fresh, clock=lambda: self.now)
        self.tokens.learn(frozenset({"api"}))

    def get(self, target: Key, /) -> Grant | None:
        return self.grants.get(target)


@pytest.fixture
def parts() -> Parts:
    return Parts()


def claims(**changes: Any) -> dict[str, Any]:
    about = {
        "namespace": "oil-system",
        "serviceaccount": {"name": "sa", "uid": "u1"},
        "secret": {"name": "s1", "uid": "secret-1"},
    }
    found = {
        "iss": ISSUER,
        "sub": "system:serviceaccount:oil-system:sa",
        "aud": ["api"],
        "exp": NOW + 600,
        "nbf": NOW - 1,
        "jti": "j",
        "kubernetes.io": about | changes.pop("about", {}),
    }
    return found | changes


def signed(key: Any = RSA, kid: str = "k1", algorithm: str = "RS256", headers: Any = None, **changes: Any) -> str:
    return jwt.encode(claims(**changes), key, algorithm=algorithm, headers={"kid": kid} | (headers or {}))


@pytest.mark.parametrize("token", [signed(), signed(CURVE, "k2", "ES256")], ids=["RS256", "ES256"])
async def test_a_token_of_a_live_account_record_is_believed_without_a_review(parts: Parts, token: str) -> None:
    found = await parts.tokens.verify(token)

    assert found is not None
    assert (found.identity.user, found.identity.uid) == ("system:serviceaccount:oil-system:sa", "u1")
    assert found.identity.groups == (
        "system:serviceaccounts",
        "system:serviceaccounts:oil-system",
        "system:authenticated",
    )
    assert found.identity.extra == {"authentication.kubernetes.io/credential-id": ("JTI=j",)}
    assert (found.secret_uid, found.expiry) == ("secret-1", NOW + 600)
    assert parts.server.asked == ["/.well-known/openid-configuration", "/openid/v1/jwks"]


async def test_a_token_without_an_id_has_no_credential_id(parts: Parts) -> None:
    found = await parts.tokens.verify(signed(jti=""))

    assert found is not None
    assert found.identity.extra == {}


async def test_the_time_of_a_token_is_judged_by_the_api_servers_clock_alone(parts: Parts) -> None:
    parts.now = 10_000_000_000.0  # long after the clock of this machine

    assert await parts.tokens.verify(signed(nbf=parts.now, iat=parts.now, exp=parts.now + 0.1)) is not None


def segment(text: str) -> str:
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


@pytest.mark.parametrize(
    "exp",
    ["9" * 400, "9" * 5000, "1e400", "-1e400", "NaN", "Infinity", "[" * 40_000 + "]" * 40_000, '{"a":' * 40_000, '""'],
    ids=lambda text: text[:4],
)
@pytest.mark.parametrize("claim", ["exp", "nbf", "other"])
async def test_numbers_and_depths_that_no_token_has_prove_nothing_and_break_nothing(
    parts: Parts, claim: str, exp: str
) -> None:
    # given claims that fit, but for one that is no number of ours
    fitting = msgspec.json.encode({key: value for key, value in claims().items() if key != claim}).decode()
    payload = segment(f'{fitting[:-1]},"{claim}":{exp}}}')
    head = segment('{"alg":"RS256","kid":"k1"}')

    # when it is shown without a signature by the cluster, in the payload or in the head
    for token in (f"{head}.{payload}.AAAA", f"{payload}.{payload}.AAAA"):
        assert await parts.tokens.verify(token) is None


def unsigned(**changes: Any) -> str:
    parts = [{"alg": "none", "kid": "k1"}, claims(**changes)]
    return ".".join(base64.urlsafe_b64encode(msgspec.json.encode(one)).decode().rstrip("=") for one in parts) + "."


def public_key_as_secret() -> str:
    """Return the classic: HMAC with the public key as its secret."""
    numbers = base64.urlsafe_b64encode(jwk(RSA, "k1")["n"].encode()).decode()
    return jwt.encode(claims(), numbers, algorithm="HS256", headers={"kid": "k1"})


@pytest.mark.parametrize(
    "token",
    [
        pytest.param(signed(OTHER), id="signed with another key"),
        pytest.param(signed(kid="k9"), id="unknown key id"),
        pytest.param(signed(kid="k2"), id="key of another algorithm"),
        pytest.param(signed(algorithm="RS512"), id="another algorithm"),
        pytest.param(unsigned(), id="no signature"),
        pytest.param(public_key_as_secret(), id="HMAC with the public key"),
        pytest.param(signed(headers={"crit": ["x"], "x": 1}), id="critical header"),
        pytest.param(signed(iss="https://other.example"), id="another issuer"),
        pytest.param(signed(aud=["other"]), id="another audience"),
        pytest.param(signed(exp=NOW), id="expired"),
        pytest.param(signed(nbf=NOW + 5), id="not yet valid"),
        pytest.param(signed(sub="system:serviceaccount:oil-system:other"), id="subject is another"),
        pytest.param(signed(about={"namespace": "gas-system"}), id="another namespace"),
        pytest.param(signed(about={"serviceaccount": {"name": "sa", "uid": "u0"}}), id="the account before"),
        pytest.param(signed(about={"secret": {"name": "s1", "uid": "secret-0"}}), id="a rotated Secret"),
        pytest.param(signed(about={"secret": {"name": "s2", "uid": "secret-1"}}), id="another Secret's name"),
        pytest.param(signed(about={"secret": None}), id="bound to nothing"),
        pytest.param("not.a.token", id="no token"),
        pytest.param(signed()[:-8] + "AAAAAAAA", id="signature changed"),
    ],
)
async def test_any_other_token_is_left_to_a_review(parts: Parts, token: str) -> None:
    assert await parts.tokens.verify(token) is None
    assert await parts.tokens.verify(signed()) is not None


async def test_the_token_of_every_generation_of_the_grant_is_believed(parts: Parts) -> None:
    second = BoundSecret(name="s2", uid="secret-2", generation=2)
    parts.grants[GRANT.key()] = msgspec.structs.replace(GRANT, secrets=(*GRANT.secrets, second))

    for about in ({"name": "s1", "uid": "secret-1"}, {"name": "s2", "uid": "secret-2"}):
        assert await parts.tokens.verify(signed(about={"secret": about})) is not None


ODD_KEYS = {
    "of another algorithm": (jwk(OTHER, "odd", alg="RS512"), signed(OTHER, "odd", "RS512")),
    "for encryption": (jwk(OTHER, "odd", use="enc"), signed(OTHER, "odd")),
    "without an id": (jwk(OTHER, ""), signed(OTHER, "")),
    "of no kind": ({"kty": "none", "kid": "odd"}, signed(OTHER, "odd")),
}


@pytest.mark.parametrize(("odd", "token"), ODD_KEYS.values(), ids=ODD_KEYS)
async def test_an_odd_key_of_the_cluster_proves_nothing_and_keeps_no_other_from_it(
    parts: Parts, odd: dict[str, Any], token: str
) -> None:
    parts.server.keys.insert(0, odd)

    assert await parts.tokens.verify(token) is None
    assert await parts.tokens.verify(signed()) is not None


async def test_a_key_that_does_not_say_what_it_is_for_signs(parts: Parts) -> None:
    parts.server.keys = [{name: value for name, value in jwk(RSA, "k1").items() if name != "use"}]

    assert await parts.tokens.verify(signed()) is not None


async def test_of_a_cluster_that_names_no_issuer_nothing_is_believed(parts: Parts) -> None:
    parts.server.issuer = ""

    assert await parts.tokens.verify(signed(iss="")) is None


async def test_a_grant_that_names_no_uid_is_nobodys(parts: Parts) -> None:
    parts.grants[GRANT.key()] = msgspec.structs.replace(GRANT, uid="")

    assert await parts.tokens.verify(signed(about={"serviceaccount": {"name": "sa", "uid": ""}})) is None


async def test_without_current_grants_or_a_grant_nothing_is_believed_here(parts: Parts) -> None:
    parts.fresh = False
    assert await parts.tokens.verify(signed()) is None
    parts.fresh = True
    parts.grants.clear()

    assert await parts.tokens.verify(signed()) is None
    assert parts.server.asked == []


@pytest.mark.parametrize("lost", ["grants", "freshness"])
async def test_a_grant_that_ends_while_the_keys_are_read_gives_nothing(parts: Parts, lost: str) -> None:
    parts.server.meanwhile = parts.grants.clear if lost == "grants" else lambda: setattr(parts, "fresh", False)

    assert await parts.tokens.verify(signed()) is None
    assert parts.server.asked == [ISSUER_PATH, KEYS_PATH]


async def test_no_audience_is_believed_that_the_api_server_did_not_take(parts: Parts) -> None:
    tokens = LocalTokens(parts.keys, lambda: parts, lambda: True, clock=lambda: NOW)

    before = await tokens.verify(signed())
    tokens.learn(frozenset({"api"}))

    assert before is None
    assert await tokens.verify(signed()) is not None

    tokens.learn(frozenset({"another"}))

    assert await tokens.verify(signed()) is not None
    assert await tokens.verify(signed(aud=["yet another"])) is None


async def test_a_new_key_is_read_at_once_but_not_more_often_than_the_floor(parts: Parts) -> None:
    assert await parts.tokens.verify(signed()) is not None
    for attempt in range(5):
        assert await parts.tokens.verify(signed(kid=f"invented-{attempt}")) is None
    assert len(parts.server.asked) == 2

    parts.server.keys.append(jwk(OTHER, "k3"))
    parts.now += KEYS_FLOOR

    assert await parts.tokens.verify(signed(OTHER, "k3")) is not None
    assert len(parts.server.asked) == 4


async def test_the_keys_are_read_again_when_their_time_is_over_and_not_before(parts: Parts) -> None:
    token = signed(exp=NOW + 10 * KEYS_TTL)
    asked = []

    for seconds in (0, KEYS_TTL - 1, 1):
        parts.now += seconds
        assert await parts.tokens.verify(token) is not None
        asked.append(len(parts.server.asked))

    assert asked == [2, 2, 4]


async def test_without_the_api_server_nothing_is_believed_and_nothing_fails(parts: Parts) -> None:
    parts.server.away = True

    assert await parts.tokens.verify(signed()) is None


async def test_a_withdrawn_key_is_not_believed_past_its_time_and_neither_is_an_absent_server(parts: Parts) -> None:
    token = signed(exp=NOW + 10 * KEYS_TTL)
    assert await parts.tokens.verify(token) is not None
    parts.server.away = True
    parts.now += KEYS_TTL
    assert await parts.tokens.verify(token) is None

    parts.server.away = False
    parts.server.keys = [jwk(OTHER, "k1")]
    parts.now += KEYS_FLOOR

    assert await parts.tokens.verify(token) is None


def value(world: Any, result: str) -> float:
    return float(world.role.metrics.registry.get_sample_value("tether_proxy_identity_total", {"result": result}) or 0)


async def test_a_rotated_token_costs_no_review_and_a_revoked_one_ends_at_once(generations: Generations) -> None:
    world = generations.world
    first = await generations.generation(1)
    assert (await world.client(first).get("/api/v1/namespaces")).status == 200
    assert (value(world, "reviewed"), value(world, "local")) == (1, 0)  # the audience is learned from it

    second = await generations.generation(2)
    reply = await world.client(second).get("/api/v1/namespaces")

    assert reply.names == ["oil-1"]
    assert (value(world, "reviewed"), value(world, "local")) == (1, 1)

    await generations.withdraw_generation(2)

    assert (await world.client(second).get("/api/v1/namespaces")).status == 401
    assert (await world.client(first).get("/api/v1/namespaces")).status == 200


class Generations:
    """Binding Secrets of one account, and its grant."""

    def __init__(self, world: Any, uid: str) -> None:
        self.world = world
        self._uid = uid
        self._secrets: dict[int, BoundSecret] = {}

    async def generation(self, number: int) -> str:
        """Return a token of a new generation, with the grant that names it."""
        path = api_path("", "v1", "secrets", namespace="oil-system")
        made = msgspec.json.decode(await self.world.admin.create(path, {"metadata": {"name": f"sa-{number}"}}))
        uid = made["metadata"]["uid"]
        self._secrets[number] = BoundSecret(name=f"sa-{number}", uid=uid, generation=number)
        await self._write()
        spec = {"boundObjectRef": {"apiVersion": "v1", "kind": "Secret", "name": f"sa-{number}", "uid": uid}}
        path = api_path("", "v1", "serviceaccounts", namespace="oil-system", name="sa") + "/token"
        return str(msgspec.json.decode(await self.world.admin.create(path, {"spec": spec}))["status"]["token"])

    async def withdraw_generation(self, number: int) -> None:
        """Take a generation out of the grant; its Secret still stands, so the API server goes on believing it."""
        del self._secrets[number]
        await self._write()

    async def _write(self) -> None:
        secrets = tuple(self._secrets[number] for number in sorted(self._secrets))
        await self.world.grant(AccountGrant(namespace="oil-system", name="sa", uid=self._uid, secrets=secrets))
        await self.world.settle()


@pytest.fixture
async def generations(world: Any) -> Generations:
    user, _ = await world.account("oil-system", "sa")
    account = msgspec.json.decode(
        await world.admin.get(api_path("", "v1", "serviceaccounts", namespace="oil-system", name="sa"))
    )
    await world.capsule_users(("Group", "system:serviceaccounts"))
    await world.tenant("oil", "oil-1")
    await world.owns("ServiceAccount", user, "oil")
    await world.settle()
    return Generations(world, account["metadata"]["uid"])
