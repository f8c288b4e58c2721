"""Finding a package's wheel on the configured indexes (PEP 503 HTML, PEP 691 JSON)."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

import httpx
from packaging.specifiers import SpecifierSet
from packaging.tags import Tag, sys_tags
from packaging.utils import InvalidWheelFilename, canonicalize_name, parse_wheel_filename
from packaging.version import Version

from apr.common.errors import AprError, UsageError
from apr.hub.index_client import IndexClient
from apr.hub.pip_config import PipConfig
from apr.hub.web import Unreachable, absolute, file_path, redacted

log = logging.getLogger(__name__)

_JSON = "application/vnd.pypi.simple.v1+json"
_ACCEPT = f"{_JSON}, application/vnd.pypi.simple.v1+html;q=0.2, text/html;q=0.1"


@dataclass(frozen=True)
class Link:
    """A file an index offers. sha256: hexadecimal, None where the index states none."""

    filename: str
    url: str
    sha256: str | None = None
    size: int | None = None
    yanked: bool = False


@dataclass(frozen=True)
class Wheel:
    version: Version
    link: Link
    rank: int  # position of its best tag among this machine's, 0 is the closest


def find_wheel(
    client: IndexClient, config: PipConfig, name: str, specifier: SpecifierSet | None = None
) -> Wheel:
    """The newest wheel of a package on all configured indexes, within `specifier` if given.

    As pip chooses: pre-releases and yanked files only where a version is pinned (==), all indexes
    weighed together. Requires-Python and dependencies are ignored: nothing of the package is run.
    Raises UsageError when there is no such package or version, AprError when no index answers.
    """
    links, failures = _all_links(client, config, name)
    if not links:
        if failures:
            raise failures[0]
        places = ", ".join(map(redacted, (*config.index_urls, *config.find_links)))
        raise UsageError(
            f"pypi://{name}: no such package on {places or 'any index: none is configured'}",
            "check the name, and `pip config list` for the indexes",
        )
    for failure in failures:
        log.warning("apr: %s; using the other indexes", failure.message)
    wheels = list(_wheels(links, name))
    allowed = _allowed(wheels, specifier or SpecifierSet())
    if not allowed:
        raise _no_wheel(wheels, name, specifier)
    newest = max(wheel.version for wheel in allowed)
    return min((w for w in allowed if w.version == newest), key=lambda wheel: wheel.rank)


def _allowed(wheels: list[Wheel], specifier: SpecifierSet) -> list[Wheel]:
    allowed = [w for w in wheels if specifier.contains(w.version, prereleases=True)]
    if any(clause.operator in ("==", "===") for clause in specifier):
        return allowed
    current = [wheel for wheel in allowed if not wheel.link.yanked]
    return [wheel for wheel in current if not wheel.version.is_prerelease] or current


def _all_links(
    client: IndexClient, config: PipConfig, name: str
) -> tuple[list[Link], list[Unreachable]]:
    links: list[Link] = []
    failures = []
    for source in (*config.index_urls, *config.find_links):
        is_index = source in config.index_urls
        try:
            if is_index:
                links += _index_links(client, f"{source}/{name}/")
            else:
                found = _find_links(client, source)
                links += [link for link in found if _belongs_to(link.filename, name)]
        except Unreachable as failure:
            failures.append(failure)
    return links, failures


def _index_links(client: IndexClient, url: str) -> list[Link]:
    response = client.page(url, _ACCEPT)
    if response is None:
        return []
    base = str(response.url)
    if response.headers.get("Content-Type", "").split(";")[0].strip() == _JSON:
        return list(_json_links(response, base))
    return list(_html_links(response.text, base))


def _find_links(client: IndexClient, place: str) -> list[Link]:
    """Links of pip's `find-links`: a folder of files, or a page."""
    if "://" not in place:
        place = Path(place).expanduser().absolute().as_uri()
    if place.startswith("file:") and file_path(place).is_dir():
        files = sorted(file_path(place).glob("*.whl"))
        return [Link(file.name, file.as_uri(), size=file.stat().st_size) for file in files]
    response = client.page(place, "text/html")
    return [] if response is None else list(_html_links(response.text, str(response.url)))


def _json_links(response: httpx.Response, base: str) -> Iterator[Link]:
    try:
        for file in response.json()["files"]:
            yield Link(
                filename=file["filename"],
                url=absolute(base, file["url"]),
                sha256=file.get("hashes", {}).get("sha256"),
                size=file.get("size"),
                yanked=bool(file.get("yanked", False)),
            )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise Unreachable(
            f"{redacted(base)}: not a PEP 691 answer ({type(error).__name__}: {error})",
            "check index-url in pip's configuration",
        ) from None


class _Anchors(HTMLParser):
    """Collects (href, is yanked) of every anchor, and the page's <base>."""

    def __init__(self) -> None:
        super().__init__()
        self.base: str | None = None
        self.found: list[tuple[str, bool]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = dict(attrs)
        href = attributes.get("href")
        if href and tag == "a":
            self.found.append((href, "data-yanked" in attributes))
        elif href and tag == "base" and self.base is None:
            self.base = href


def _html_links(text: str, base: str) -> Iterator[Link]:
    page = _Anchors()
    page.feed(text)
    base = absolute(base, page.base) if page.base else base
    for href, yanked in page.found:
        url = absolute(base, href)
        checksum = parse_qs(urlsplit(href).fragment).get("sha256", [None])[0]
        filename = unquote(urlsplit(url).path.rpartition("/")[2])
        yield Link(filename, url, checksum, yanked=yanked)


def _belongs_to(filename: str, name: str) -> bool:
    return canonicalize_name(filename.split("-")[0]) == name


@cache
def _tag_ranks() -> dict[Tag, int]:
    """Wheel tags this machine takes -> how specific they are, 0 the most."""
    return {tag: rank for rank, tag in enumerate(sys_tags())}


def _wheels(links: Iterable[Link], name: str) -> Iterator[Wheel]:
    ranks = _tag_ranks()
    for link in links:
        try:
            found, version, _, tags = parse_wheel_filename(link.filename)
        except InvalidWheelFilename:
            continue  # a source archive, or a name pip would not read either
        rank = min((ranks[tag] for tag in tags if tag in ranks), default=None)
        if found == name and rank is not None:
            yield Wheel(version, link, rank)


def _no_wheel(wheels: list[Wheel], name: str, specifier: SpecifierSet | None) -> AprError:
    if not wheels:
        return AprError(
            f"pypi://{name}: there is no wheel of it for this machine",
            "source archives would have to be run to be unpacked; look for another package",
        )
    versions = ", ".join(str(v) for v in sorted({wheel.version for wheel in wheels})[-8:])
    if not specifier:
        return AprError(
            f"pypi://{name}: all versions were withdrawn",
            f"pin one to use it all the same: {versions}",
        )
    return UsageError(f"pypi://{name}{specifier}: no such version", f"available: {versions}")
