"""Which package indexes pip would ask: its configuration files and environment variables.

Read the way `pip download` reads them (pip documentation, "Configuration"), without pip: it may be
absent, and `pip config` costs half a second. Later sources replace earlier ones, key by key.
"""

from __future__ import annotations

import configparser
import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from apr.common.errors import UsageError

DEFAULT_INDEX = "https://pypi.org/simple"
_OTHER_NAMES = {"default-timeout": "timeout", "pypi-url": "index-url"}
_SECTIONS = ("global", "download", ":env:")  # increasing precedence


@dataclass(frozen=True)
class PipConfig:
    """index_urls: simple-API roots, in order. find_links: folders or pages of links.

    cert, client_cert: PEM files. timeout: seconds. trusted_hosts: no certificate check there.
    """

    index_urls: tuple[str, ...] = (DEFAULT_INDEX,)
    find_links: tuple[str, ...] = ()
    cert: str | None = None
    client_cert: str | None = None
    proxy: str | None = None
    timeout: float = 15.0
    trusted_hosts: tuple[str, ...] = ()


def load_pip_config(env: Mapping[str, str] | None = None, prefix: str | None = None) -> PipConfig:
    """The configuration pip would use under `env`, for an interpreter installed in `prefix`.

    Raises UsageError naming a file that cannot be parsed or a value that makes no sense.
    """
    env = os.environ if env is None else env
    values: dict[tuple[str, str], str] = {}
    for file in _config_files(env, prefix or sys.prefix):
        values.update(_read_file(file))
    for name, value in env.items():
        if name.startswith("PIP_"):
            values[":env:", _key(name.removeprefix("PIP_"))] = value
    merged: dict[str, str] = {}
    for section in _SECTIONS:
        merged.update({k: v for (s, k), v in values.items() if s == section and v})
    return _from_options(merged)


def _from_options(options: Mapping[str, str]) -> PipConfig:
    index = [options.get("index-url", DEFAULT_INDEX), *options.get("extra-index-url", "").split()]
    if options.get("no-index", "").lower() in ("1", "true", "yes", "on", "y", "t"):
        index = []
    timeout = options.get("timeout", "15")
    try:
        seconds = float(timeout)
    except ValueError:
        raise UsageError(
            f"pip's timeout is {timeout!r}, expected seconds", "see `pip config list`"
        ) from None
    return PipConfig(
        index_urls=tuple(dict.fromkeys(url.rstrip("/") for url in index)),
        find_links=tuple(options.get("find-links", "").split()),
        cert=options.get("cert"),
        client_cert=options.get("client-cert"),
        proxy=options.get("proxy"),
        timeout=seconds,
        trusted_hosts=tuple(options.get("trusted-host", "").split()),
    )


def _config_files(env: Mapping[str, str], prefix: str) -> Iterator[Path]:
    """Global, user, environment-specific (virtual environment), named by PIP_CONFIG_FILE."""
    named = env.get("PIP_CONFIG_FILE")
    if named == os.devnull:  # pip's way of saying: no files at all
        return
    home = Path(env.get("HOME") or Path.home())
    mac = Path("Library/Application Support/pip/pip.conf")
    if sys.platform == "darwin":
        yield "/" / mac
    else:
        for folder in (env.get("XDG_CONFIG_DIRS") or "/etc/xdg").split(os.pathsep):
            yield Path(folder, "pip", "pip.conf")
    yield Path("/etc/pip.conf")
    if not (named and Path(named).exists()):
        yield home / ".pip" / "pip.conf"
        if sys.platform == "darwin" and (home / mac).parent.is_dir():
            yield home / mac
        else:
            yield Path(env.get("XDG_CONFIG_HOME") or home / ".config", "pip", "pip.conf")
    yield Path(prefix, "pip.conf")
    if named:
        yield Path(named)


def _read_file(path: Path) -> dict[tuple[str, str], str]:
    parser = configparser.RawConfigParser()
    try:
        parser.read_string(path.read_text(encoding="utf-8"), source=str(path))
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return {}
    except (configparser.Error, UnicodeDecodeError) as error:
        message = " ".join(str(error).split())
        raise UsageError(f"pip's configuration {path}: {message}", "repair the file") from None
    return {
        (section, _key(key)): value
        for section in parser.sections()
        for key, value in parser.items(section)
    }


def _key(name: str) -> str:
    key = name.lower().replace("_", "-").removeprefix("--")
    return _OTHER_NAMES.get(key, key)
