"""Which indexes are asked: the same as pip."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from apr.common.errors import UsageError
from apr.hub.pip_config import DEFAULT_INDEX, load_pip_config

# What pip itself makes of its files and variables: one line of options for each environment.
_ASK_PIP = """
import json, os, sys
from pip._internal.commands import create_command
for env in json.load(sys.stdin):
    os.environ.clear()
    os.environ.update(env)
    options, _ = create_command("download").parse_args([])
    print(json.dumps([options.index_url, options.extra_index_urls, options.find_links,
        options.cert, options.timeout, options.no_index, options.trusted_hosts, options.proxy]))
"""

needs_pip = pytest.mark.skipif(importlib.util.find_spec("pip") is None, reason="pip is not there")


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


@pytest.fixture
def env(tmp_path: Path) -> dict[str, str]:
    """An environment whose home and system folders are empty ones of ours."""
    (tmp_path / "home").mkdir()
    return {
        "HOME": str(tmp_path / "home"),
        "XDG_CONFIG_HOME": str(tmp_path / "config"),
        "XDG_CONFIG_DIRS": str(tmp_path / "xdg"),
        "PATH": os.environ["PATH"],
    }


def test_default(env: dict[str, str], tmp_path: Path) -> None:
    config = load_pip_config(env, prefix=str(tmp_path))
    if not Path("/etc/pip.conf").exists():
        assert config.index_urls == (DEFAULT_INDEX,)
    assert config.proxy is None


CASES = {
    "global file": {"xdg/pip/pip.conf": "[global]\nindex-url = http://a/simple/\n"},
    "user over global": {
        "xdg/pip/pip.conf": "[global]\nindex-url = http://a/simple\ntimeout = 7\n",
        "config/pip/pip.conf": "[global]\nindex_url = http://b/simple\n",
    },
    "legacy user file": {
        "home/.pip/pip.conf": "[global]\nindex-url = http://c/simple\n",
        "config/pip/pip.conf": "[global]\nfind-links = /one\n  /two http://three/\n",
    },
    "section of the command": {
        "config/pip/pip.conf": "[download]\nindex-url = http://d/simple\n"
        "[global]\nindex-url = http://e/simple\nextra-index-url =\n  http://f/simple\n  http://g/s\n"
        "[install]\nindex-url = http://h/simple\n",
    },
    "empty value": {
        "xdg/pip/pip.conf": "[global]\nindex-url = http://a/simple\nproxy = http://p:1\n",
        "config/pip/pip.conf": "[global]\nindex-url =\n",
    },
    "no index": {"config/pip/pip.conf": "[global]\nno-index = true\nfind-links = /wheels\n"},
    "trust and certificates": {
        "config/pip/pip.conf": "[global]\ntrusted-host = a b:8080\ncert = /x.pem\n",
    },
}
VARIABLES = {
    "index": {"PIP_INDEX_URL": "http://v/simple"},
    "several": {"PIP_EXTRA_INDEX_URL": "http://w/s http://x/s", "PIP_DEFAULT_TIMEOUT": "99"},
    "empty": {"PIP_INDEX_URL": "", "PIP_FIND_LINKS": ""},
    "none": {},
}


@needs_pip
def test_same_as_pip(env: dict[str, str], tmp_path: Path) -> None:
    environments = []
    for number, files in enumerate(CASES.values()):
        root = tmp_path / str(number)
        for path, text in files.items():
            write(root / path, text)
        moved = {k: v.replace(str(tmp_path), str(root)) for k, v in env.items()}
        environments += [{**moved, **variables} for variables in VARIABLES.values()]
    assert_same_as_pip(environments)


@needs_pip
def test_named_file_replaces_the_user_file(env: dict[str, str], tmp_path: Path) -> None:
    write(
        tmp_path / "config/pip/pip.conf",
        "[global]\nindex-url = http://a/simple\nproxy=http://p:1",
    )
    named = write(tmp_path / "named.conf", "[global]\nextra-index-url = http://b/simple\n")
    files = [str(named), str(tmp_path / "absent.conf"), os.devnull]
    assert_same_as_pip([{**env, "PIP_CONFIG_FILE": file} for file in files])


def assert_same_as_pip(environments: list[dict[str, str]]) -> None:
    command = [sys.executable, "-c", _ASK_PIP]
    asked = json.dumps(environments)
    done = subprocess.run(command, input=asked, capture_output=True, text=True, check=True)
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    for env, answer in zip(environments, answers, strict=True):
        index, extra, find_links, cert, timeout, no_index, trusted, proxy = answer
        ours = load_pip_config(env)
        urls = [] if no_index else [url.rstrip("/") for url in [index, *extra]]
        assert list(ours.index_urls) == urls
        assert list(ours.find_links) == find_links
        assert ours.cert == cert
        assert ours.timeout == timeout
        assert list(ours.trusted_hosts) == trusted
        assert (ours.proxy or "") == proxy


def test_broken_file_is_named(env: dict[str, str], tmp_path: Path) -> None:
    path = write(tmp_path / "config/pip/pip.conf", "index-url = no section\n")
    with pytest.raises(UsageError, match=str(path)):
        load_pip_config(env)


def test_senseless_timeout(env: dict[str, str]) -> None:
    with pytest.raises(UsageError, match="timeout is 'soon'"):
        load_pip_config({**env, "PIP_TIMEOUT": "soon"})
