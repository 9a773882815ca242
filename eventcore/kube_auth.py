"""Where the API server is and how this process logs in: kubeconfig, in-cluster, plugins, tokens that change.

The one module that knows kubernetes_asyncio, and only its configuration part. The library is imported on first use,
since it costs a quarter of a second.
"""

from __future__ import annotations

import asyncio
import binascii
import importlib
import os
import ssl
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from eventcore import logs
from eventcore.errors import StartError, UnauthorizedError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from eventcore.settings import Settings

REFRESH_SECONDS = 60.0
"""A token file or plugin is asked again after this time, or at once when the API server answers 401."""

_DEFAULT_KUBECONFIG = "~/.kube/config"
_ACCOUNT_FOLDER = Path("/var/run/secrets/kubernetes.io/serviceaccount")

_log = logs.get("eventcore.kube")


class KubeAuth:
    """Server, TLS and credentials of one cluster, as kubectl would read them."""

    def __init__(self, configuration: Any, loader: Any, *, origin: str) -> None:
        self._configuration = configuration
        self._loader = loader
        self._read_at = time.monotonic()
        self._lock = asyncio.Lock()
        self.origin = origin
        self.server_url: str = configuration.host.rstrip("/")
        self.tls_server_name: str | None = configuration.tls_server_name
        self.proxy_url: str | None = configuration.proxy
        self.ca_pem: bytes | None = Path(configuration.ssl_ca_cert).read_bytes() if configuration.ssl_ca_cert else None
        self.ssl_context = _ssl_context(configuration, self.ca_pem)

    @classmethod
    async def load(
        cls,
        settings: Settings,
        *,
        environ: Mapping[str, str] | None = None,
        account_folder: Path = _ACCOUNT_FOLDER,
    ) -> KubeAuth:
        """Read the configuration that the settings name; StartError says which file and what is wrong with it."""
        environ = os.environ if environ is None else environ
        in_pod = "KUBERNETES_SERVICE_HOST" in environ and (account_folder / "token").is_file()
        if in_pod and not settings.kubeconfig:
            origin: str = "the pod's ServiceAccount"
            loader: _InCluster | _Kubeconfig = _InCluster(environ, account_folder)
        else:
            paths = settings.kubeconfig or environ.get("KUBECONFIG") or _DEFAULT_KUBECONFIG
            if not _any_file(paths):
                raise StartError(f"there is no kubeconfig at {paths}: set --kubeconfig, or run inside a cluster")
            origin, loader = f"kubeconfig {paths}", _Kubeconfig(paths, settings.kube_context)
        try:
            configuration = _new_configuration()
            await loader.load(configuration)
            return cls(configuration, loader, origin=origin)
        except Exception as error:
            # The library raises what its parsing happens to hit: assertions, type errors, its own class.
            raise StartError(f"cannot use {origin}: {_why(error)}") from error
        finally:
            _module("config.kube_config")._cleanup_temp_files()  # noqa: SLF001 - keys must not stay in /tmp

    @property
    def is_due(self) -> bool:
        """Whether the credentials have to be read again, which `authorization` does."""
        return time.monotonic() - self._read_at >= REFRESH_SECONDS

    async def authorization(self) -> str | None:
        """Return the Authorization header's value, None where a client certificate says it all."""
        async with self._lock:
            if self.is_due:
                self._read_at = time.monotonic()
                try:
                    await self._loader.reload(self._configuration, rejected=False)
                except Exception as error:  # noqa: BLE001 - as in `load`; the credentials in hand may still be good
                    _log.warning("credentials could not be read again", origin=self.origin, why=_why(error))
        return self.header

    async def renew(self, refused: str) -> bool:
        """Read the credentials again after a 401 to ``refused``; return whether there are others now.

        Requests that were refused together renew once. UnauthorizedError when nothing can be read.
        """
        async with self._lock:
            if self.header == refused:
                self._read_at = time.monotonic()
                try:
                    await self._loader.reload(self._configuration, rejected=True)
                except Exception as error:
                    raise UnauthorizedError(
                        f"the API server refused the credentials of {self.origin}, and there are no new ones: "
                        f"{_why(error)}",
                        status=401,
                        reason="Unauthorized",
                    ) from error
            return self.header != refused

    @property
    def header(self) -> str | None:
        """What `authorization` returned last."""
        value: str | None = self._configuration.api_key.get("BearerToken")
        # A token file often ends with a newline, which no header may hold.
        return value.strip() if value else None


class _InCluster:
    """The token and CA that the kubelet mounts; it replaces the token before it expires."""

    def __init__(self, environ: Mapping[str, str], folder: Path) -> None:
        self._environ = environ
        self._folder = folder

    async def load(self, configuration: Any) -> None:
        _module("config").load_incluster_config(
            client_configuration=configuration,
            try_refresh_token=False,  # its hook would hide a reading error; `reload` does the same visibly
            environ=self._environ,
            token_filename=str(self._folder / "token"),
            cert_filename=str(self._folder / "ca.crt"),
        )

    async def reload(self, configuration: Any, *, rejected: bool) -> None:
        del rejected  # the file is read in both cases
        await self.load(configuration)


class _Kubeconfig:
    """One context of a kubeconfig, or of several merged ones."""

    def __init__(self, paths: str, context: str) -> None:
        self._paths = paths
        self._context = context
        self._loader: Any = None

    async def load(self, configuration: Any) -> None:
        self._loader = await _module("config").load_kube_config(
            config_file=self._paths,
            context=self._context or None,
            client_configuration=configuration,
            persist_config=True,  # an OIDC provider may void the old refresh token: kubectl must find the new one
        )

    async def reload(self, configuration: Any, *, rejected: bool) -> None:
        loader = self._loader
        if loader._user and "exec" in loader._user:  # noqa: SLF001 - the library has no public question for it
            if rejected:
                loader.__dict__.pop("exec_plugin_expiry", None)  # makes the plugin run again
            elif "exec_plugin_expiry" not in loader.__dict__:
                return  # a plugin that names no expiry is asked only when its token is refused
        await loader._load_authentication()  # noqa: SLF001 - reads token files, runs plugins; the public way knows two
        if "token" in loader.__dict__:
            configuration.api_key["BearerToken"] = loader.token


def _any_file(paths: str) -> bool:
    return any(Path(path).expanduser().is_file() for path in paths.split(os.pathsep) if path)


def _module(name: str) -> Any:
    return importlib.import_module(f"kubernetes_asyncio.{name}")


def _new_configuration() -> Any:
    return _module("client").Configuration()


def _ssl_context(configuration: Any, ca_pem: bytes | None) -> ssl.SSLContext:
    context = ssl.create_default_context(cadata=ca_pem.decode() if ca_pem else None)
    # As Go's TLS, and so kubectl: many cluster CAs lack the extensions that strict checking asks for.
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    if not configuration.verify_ssl:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    if configuration.cert_file:
        context.load_cert_chain(configuration.cert_file, configuration.key_file)
    return context


def _why(error: Exception) -> str:
    """Return what is wrong in words that cannot hold a credential: the library quotes whole entries in its errors."""
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        return f"it is not valid YAML at line {error.problem_mark.line + 1}"
    if isinstance(error, ssl.SSLError):
        return "its certificates or key are not valid PEM, or do not belong together"
    if isinstance(error, binascii.Error):
        return "a field that ends with -data is not base64"
    if isinstance(error, OSError):
        return f"{error.filename or 'a file'}: {error.strerror or 'cannot be read'}"
    if isinstance(error, _module("config").ConfigException):
        return logs.redact(" ".join(str(error).split("{", 1)[0].split())) or "it is incomplete"
    return f"it does not have the shape of a kubeconfig ({type(error).__name__})"
