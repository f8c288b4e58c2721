from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from .server import FakeHub, LocalServer, running_server, sha256
from .wheels import make_wheel


@pytest.fixture
def server() -> Iterator[LocalServer]:
    with running_server() as running:
        yield running


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, quick retries, and no configuration of this machine's."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("APR_CACHE", str(folder))
    monkeypatch.setattr("apr.hub.download.PAUSE", 0.0)
    for name in ("PIP_CONFIG_FILE", "PIP_EXTRA_INDEX_URL", "PIP_FIND_LINKS", "PIP_CERT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_RETRIES", "0")
    return folder


class Index:
    """A package index (PEP 691 JSON, or PEP 503 HTML) on a local server."""

    def __init__(self, server: LocalServer, html: bool = False) -> None:
        self.server = server
        self.html = html
        self.files: dict[str, list[dict[str, object]]] = {}

    def add(
        self,
        name: str,
        version: str,
        files: dict[str, bytes],
        requires: list[str] | None = None,
        *,
        checksum: str | None = None,
        yanked: bool = False,
        record: dict[str, str] | None = None,
    ) -> str:
        """Publish a wheel; returns the path it is served at."""
        filename, content = make_wheel(name, version, files, requires, record=record)
        self.server.add(f"/files/{filename}", content)
        entry = {
            "filename": filename,
            "url": f"../../files/{filename}",
            "hashes": {"sha256": checksum or sha256(content)},
            "yanked": yanked,
            "size": len(content),
        }
        self.files.setdefault(name, []).append(entry)
        self._publish(name)
        return f"/files/{filename}"

    def _publish(self, name: str) -> None:
        entries = self.files[name]
        if not self.html:
            value = {"meta": {"api-version": "1.1"}, "name": name, "files": entries}
            kind = "application/vnd.pypi.simple.v1+json"
            self.server.add_json(f"/simple/{name}/", value, content_type=kind)
            return
        links = []
        for entry in entries:
            checksum = entry["hashes"]["sha256"]  # type: ignore[index]
            yanked = ' data-yanked=""' if entry["yanked"] else ""
            href = f"{entry['url']}#sha256={checksum}"
            links.append(f'<a href="{href}"{yanked}>{entry["filename"]}</a><br/>')
        page = f"<!DOCTYPE html><html><body>{''.join(links)}</body></html>"
        self.server.add(f"/simple/{name}/", page, content_type="text/html")


@pytest.fixture
def index(server: LocalServer, cache: Path, monkeypatch: pytest.MonkeyPatch) -> Index:
    monkeypatch.setenv("PIP_INDEX_URL", f"{server.url}/simple")
    return Index(server)


@pytest.fixture
def hub(
    server: LocalServer, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> FakeHub:
    from huggingface_hub import constants

    monkeypatch.setenv("HF_ENDPOINT", server.url)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf" / "hub"))
    monkeypatch.setenv("HF_HUB_DISABLE_TELEMETRY", "1")
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    return FakeHub(server)
