"""HTTP for package indexes as pip is configured: certificates, proxy, credentials, file:// URLs."""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from contextlib import AbstractContextManager
from types import TracebackType
from urllib.parse import urlsplit, urlunsplit

import httpx

from apr import __version__
from apr.common.errors import UsageError
from apr.hub.pip_config import PipConfig
from apr.hub.web import Unreachable, file_path, refused, unreachable


class IndexClient:
    """One HTTP session for one pull. Use as a context manager.

    Trusted hosts get a second session without certificate checks, as with pip.
    """

    def __init__(self, config: PipConfig) -> None:
        self._config = config
        self._sessions: dict[bool, httpx.Client] = {}

    def __enter__(self) -> IndexClient:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for session in self._sessions.values():
            session.close()

    def session(self, url: str) -> httpx.Client:
        """The HTTP session to use for a URL. Raises UsageError for a bad certificate setting."""
        parts = urlsplit(url)
        hosts = {parts.hostname, f"{parts.hostname}:{parts.port}"}
        trusted = bool(hosts & set(self._config.trusted_hosts))
        if trusted not in self._sessions:
            self._sessions[trusted] = httpx.Client(
                verify=False if trusted else self._tls(),
                proxy=self._config.proxy,
                timeout=self._config.timeout,
                follow_redirects=True,
                headers={"User-Agent": f"apr/{__version__}"},
            )
        return self._sessions[trusted]

    def stream(
        self, url: str, headers: Mapping[str, str]
    ) -> AbstractContextManager[httpx.Response]:
        """GET, its body to be read as it comes."""
        return self.session(url).stream("GET", self.authorize(url), headers=dict(headers))

    def authorize(self, url: str) -> str:
        """The URL with the credentials configured for its host, as pip adds them."""
        parts = urlsplit(url)
        if parts.username or parts.scheme not in ("http", "https"):
            return url
        for index in self._config.index_urls:
            known = urlsplit(index)
            same = (known.scheme, known.hostname, known.port)
            if known.username and same == (parts.scheme, parts.hostname, parts.port):
                return urlunsplit(parts._replace(netloc=known.netloc))
        return url

    def page(self, url: str, accept: str) -> httpx.Response | None:
        """GET a page of an index; None when it is not there (404, 410 or no such file).

        Raises Unreachable for anything else that goes wrong.
        """
        if url.startswith("file:"):
            return _local_page(url)
        try:
            headers = {"Accept": accept}
            response = self.session(url).get(self.authorize(url), headers=headers)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise unreachable(url, error) from None
        if response.status_code in (404, 410):
            return None
        if response.is_error:
            raise refused(url, response)
        return response

    def _tls(self) -> ssl.SSLContext | bool:
        config = self._config
        if config.cert is None and config.client_cert is None:
            return True
        try:
            context = ssl.create_default_context(cafile=config.cert)
            if config.client_cert is not None:
                context.load_cert_chain(config.client_cert)
        except (OSError, ssl.SSLError) as error:
            raise UsageError(
                f"pip's certificate {config.cert or config.client_cert}: {error}",
                "correct `cert` in pip's configuration or PIP_CERT",
            ) from None
        return context


def _local_page(url: str) -> httpx.Response | None:
    path = file_path(url)
    if path.is_dir():
        path, url = path / "index.html", url.rstrip("/") + "/index.html"
    request = httpx.Request("GET", url)
    try:
        content = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise Unreachable(f"cannot read {path}: {error.strerror}") from None
    headers = {"Content-Type": "text/html; charset=utf-8"}
    return httpx.Response(200, content=content, request=request, headers=headers)
