"""JSON to and from an OpenAI-compatible server, patiently."""

from __future__ import annotations

import os
import random
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from threading import Event
from typing import Any
from urllib.parse import urlsplit

import httpx

from apr import __version__
from apr.common.errors import AprError, UsageError

TRIES = 6
FIRST_DELAY = 1.0  # seconds; doubled after each failure
LONGEST_WAIT = 300.0  # a server that asks for more is not waited for
CONNECT_TIMEOUT = 15.0
_LONGEST_MESSAGE = 300


class Refused(AprError):
    """The server understood and said no. code: its own name for why, where it gives one."""

    def __init__(self, message: str, hint: str, status: int, code: str) -> None:
        super().__init__(message, hint)
        self.status, self.code = status, code


class _Passing(AprError):
    """A failure that may pass. wait: seconds the server asks for. cost: tries it counts as."""

    def __init__(self, message: str, hint: str, wait: float | None = None, cost: int = 1) -> None:
        super().__init__(message, hint)
        self.wait, self.cost = wait, cost


def normal_url(endpoint: str) -> str:
    """The URL below which the server has /models and /completions: with /v1 if it has no path.

    Raises UsageError for what is not a plain http or https URL; a user name, a password or a query
    could be a secret, and the URL is stored with the results.
    """
    try:
        parts = urlsplit(endpoint)
        fine = parts.scheme in ("http", "https") and parts.hostname and (parts.port or 1)
    except ValueError:
        fine = None
    if not fine:
        raise UsageError("--endpoint is not an http or https URL", "as http://localhost:8000/v1")
    if "@" in parts.netloc or parts.query or parts.fragment:
        raise UsageError(
            "--endpoint holds more than host and path",
            "give its key in the environment variable APR_API_KEY",
        )
    path = re.sub(r"(/chat)?/completions$", "", parts.path.rstrip("/"))
    return f"{parts.scheme}://{parts.netloc}{path or '/v1'}"


def api_key(url: str) -> str:
    """APR_API_KEY; for OpenAI's own hosts also OPENAI_API_KEY, which nobody else is to see.

    Raises UsageError for one that no header can hold.
    """
    host = urlsplit(url).hostname or ""
    own = host == "openai.com" or host.endswith(".openai.com")
    for name in ("APR_API_KEY", "OPENAI_API_KEY")[: 1 + own]:
        key = os.environ.get(name, "").strip()
        if not (key.isascii() and (key.isprintable() or not key)):
            raise UsageError(f"{name} holds characters that no key has", "copy it again")
        if key:
            return key
    return ""


class Client:
    """One server. url: as `normal_url` gives it. timeout: seconds until an answer is there."""

    def __init__(self, url: str, timeout: float) -> None:
        self.url = url
        self._timeout = timeout
        self._key = api_key(url)
        headers = {"User-Agent": f"apr/{__version__}"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        self._http = httpx.Client(
            headers=headers,
            timeout=httpx.Timeout(timeout, connect=min(timeout, CONNECT_TIMEOUT)),
            limits=httpx.Limits(max_connections=None),  # what is asked at a time decides
        )

    def get(self, path: str) -> dict[str, Any]:
        """One try. Raises AprError (Refused where the server answered with no)."""
        return self._once("GET", path, None)

    def post(self, path: str, body: Mapping[str, Any], stop: Event) -> dict[str, Any]:
        """The answer, after so many tries as it takes: again on 408, 429, 5xx, lost connections,
        timeouts and what is not JSON, after growing pauses or those the server asks for.

        stop: set when nobody waits for the answer any more; then the next failure is the last.
        Raises AprError (Refused where the server answered with no).
        """
        left, delay = TRIES, FIRST_DELAY
        while True:
            try:
                return self._once("POST", path, body)
            except _Passing as failure:
                left -= failure.cost
                wait = delay * random.uniform(0.5, 1) if failure.wait is None else failure.wait
                if wait > LONGEST_WAIT:
                    hint = f"it asks to be left alone for {wait:.0f} s"
                    raise AprError(failure.message, f"{hint}; the same command goes on") from None
                if left <= 0 or stop.wait(wait):
                    raise
                delay *= 2

    def _once(self, method: str, path: str, body: Mapping[str, Any] | None) -> dict[str, Any]:
        url = f"{self.url}{path}"
        try:
            response = self._http.request(method, url, json=body)
        except httpx.ReadTimeout:
            raise _Passing(
                f"{url} gave no answer within {self._timeout:g} s",
                "--request-timeout gives it longer, a lower --max-concurrency less to do",
                cost=TRIES // 2,
            ) from None
        except httpx.HTTPError as error:
            reason = str(error) or type(error).__name__
            raise _Passing(
                f"cannot reach {url}: {reason}", "check that the server runs, and --endpoint"
            ) from None
        status = response.status_code
        if not response.is_success:
            self._fail(url, response)
        try:
            found = response.json()
        except (ValueError, RecursionError):
            found = None
        if not isinstance(found, dict):
            raise _Passing(f"{url} answered {status} without a JSON object", "check --endpoint")
        return found

    def _fail(self, url: str, response: httpx.Response) -> None:
        """Raise what an answer other than success means."""
        status = response.status_code
        message, code = _told(response)
        if self._key:
            message = message.replace(self._key, "(key)")
        said = f"{url} answered {status}" + (f": {message}" if message else "")
        if status in (401, 403):  # what it says may hold a part of the key
            hint = "set APR_API_KEY to its key" if not self._key else "its key is not accepted"
            raise Refused(f"{url} answered {status}", hint, status, code)
        passing = status in (408, 429) or status >= 500
        if passing and code != "insufficient_quota":
            raise _Passing(said, "try again later; what is done is stored", _wait(response))
        hint = "those are its words" if message else "check --endpoint"
        raise Refused(said, hint, status, code)


def _told(response: httpx.Response) -> tuple[str, str]:
    """Message and code of an error, in the forms servers use."""
    try:
        found = response.json()
    except (ValueError, RecursionError):
        return "", ""
    if not isinstance(found, dict):
        return "", ""
    error = found.get("error", found)
    if not isinstance(error, dict):
        return str(error)[:_LONGEST_MESSAGE], ""
    message = error.get("message") or error.get("detail") or ""
    return str(message)[:_LONGEST_MESSAGE], str(error.get("code") or error.get("type") or "")


def _wait(response: httpx.Response) -> float | None:
    """Seconds of Retry-After, which holds a number or a date (RFC 9110, 10.2.3)."""
    text = response.headers.get("Retry-After", "")
    try:
        return max(0.0, float(text))
    except ValueError:
        pass
    try:
        date = parsedate_to_datetime(text)
    except ValueError:
        return None
    return max(0.0, (date.replace(tzinfo=date.tzinfo or UTC) - datetime.now(UTC)).total_seconds())
