"""hf:// against a server in this process that speaks the hub's interface."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from apr.common.errors import AprError, UsageError
from apr.hub import pull, resolve
from apr.hub.model_files import choose_files
from apr.hub.refs import HfRef

from .server import FakeHub, git_blob_id, running_server, sha256

WEIGHTS = bytes(range(256)) * 8000  # 2 MB
MODEL = {
    "config.json": b'{"model_type": "llama"}',
    "model.safetensors": WEIGHTS,
    "tokenizer.json": b"{}",
    "chat_template.jinja": b"{{ messages }}",
    "README.md": b"# not needed",
    "pytorch_model.bin": b"p" * 5000,
    "onnx/model.onnx": b"o" * 5000,
    "consolidated.safetensors": b"c" * 5000,
}
REF = "hf://org/model"


def test_pulls_the_model_files_and_nothing_else(hub: FakeHub) -> None:
    hub.add_repo("org/model", MODEL)
    folder = resolve(REF, progress=False)
    names = sorted(p.name for p in folder.iterdir())
    assert names == ["chat_template.jinja", "config.json", "model.safetensors", "tokenizer.json"]
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS


def test_the_files_lie_where_huggingface_hub_finds_them(hub: FakeHub) -> None:
    from huggingface_hub import constants, hf_hub_download

    hub.add_repo("org/model", MODEL)
    folder = resolve(REF, progress=False)
    found = hf_hub_download(
        "org/model", "model.safetensors", cache_dir=constants.HF_HUB_CACHE, local_files_only=True
    )
    assert Path(found) == folder / "model.safetensors"


def test_second_look_up_asks_nobody(hub: FakeHub) -> None:
    hub.add_repo("org/model", MODEL)
    first = pull(REF, progress=False)
    hub.server.requests.clear()
    second = pull(REF, progress=False)
    assert (second.path, second.from_cache) == (first.path, True)
    assert not first.from_cache
    assert hub.server.requests == []


def test_records_name_commit_and_checksums(hub: FakeHub) -> None:
    hub.add_repo("org/model", MODEL)
    found = pull(REF, progress=False)
    assert found.manifest is not None
    assert found.manifest.ref == f"hf://org/model@{'c' * 40}"
    (weights,) = found.files()
    assert (weights.path, weights.size) == ("model.safetensors", len(WEIGHTS))
    assert weights.sha256 == sha256(WEIGHTS)


def test_revision_is_honoured(hub: FakeHub) -> None:
    hub.add_repo("org/model", MODEL)
    hub.add_repo("org/model", {**MODEL, "config.json": b"{}"}, revision="v2", commit="d" * 40)
    assert (resolve(REF, progress=False) / "config.json").read_bytes() == MODEL["config.json"]
    assert (resolve(f"{REF}@v2", progress=False) / "config.json").read_bytes() == b"{}"


def test_refresh_follows_the_branch(hub: FakeHub) -> None:
    hub.add_repo("org/model", MODEL)
    resolve(REF, progress=False)
    hub.add_repo("org/model", {**MODEL, "config.json": b"{}"}, commit="d" * 40)
    assert (resolve(REF, progress=False) / "config.json").read_bytes() == MODEL["config.json"]
    renewed = pull(REF, progress=False, refresh=True)
    assert (renewed.path / "config.json").read_bytes() == b"{}"
    assert resolve(REF, progress=False) == renewed.path


def test_a_broken_connection_is_taken_up_again(hub: FakeHub) -> None:
    hub.add_repo("org/model", MODEL)
    served = hub.server.resources[f"/org/model/resolve/{'c' * 40}/model.safetensors"]
    served.cut = [700_000]
    folder = resolve(REF, progress=False)
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS
    ranges = [r.headers.get("Range") for r in hub.server.gets("model.safetensors")]
    assert ranges == [None, "bytes=700000-"]


def test_an_interrupted_pull_resumes(hub: FakeHub) -> None:
    hub.add_repo("org/model", MODEL)
    served = hub.server.resources[f"/org/model/resolve/{'c' * 40}/model.safetensors"]
    served.cut = [700_000, 0, 0, 0]  # half of it, then nothing any more
    with pytest.raises(AprError, match="cannot reach"):
        resolve(REF, progress=False)
    hub.server.requests.clear()
    folder = resolve(REF, progress=False)
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS
    assert [r.headers.get("Range") for r in hub.server.gets("model.safetensors")] == [
        "bytes=700000-"
    ]


def test_wrong_contents_are_not_accepted(hub: FakeHub) -> None:
    hub.add_repo("org/model", MODEL)
    path = f"/org/model/resolve/{'c' * 40}/model.safetensors"
    hub.server.resources[path].content = WEIGHTS[:-1] + b"!"
    with pytest.raises(AprError, match=r"has sha256 .* expected"):
        resolve(REF, progress=False)


def test_wrong_small_file_is_not_accepted(hub: FakeHub) -> None:
    hub.add_repo("org/model", MODEL)
    for revision in ("main", "c" * 40):
        served = hub.server.resources[f"/org/model/resolve/{revision}/config.json"]
        served.content = b'{"model_type": "LLAMA"}'
    with pytest.raises(AprError, match=r"config\.json does not have the checksum"):
        resolve(REF, progress=False)


def test_refresh_repairs_a_damaged_file(hub: FakeHub) -> None:
    hub.add_repo("org/model", MODEL)
    folder = resolve(REF, progress=False)
    blob = (folder / "model.safetensors").resolve()
    blob.write_bytes(b"X" + WEIGHTS[1:])  # the same length: only the checksum tells
    pull(REF, progress=False, refresh=True)
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS


def test_a_lost_file_is_fetched_again(hub: FakeHub, capsys: pytest.CaptureFixture[str]) -> None:
    hub.add_repo("org/model", MODEL)
    folder = resolve(REF, progress=False)
    (folder / "model.safetensors").resolve().unlink()
    (folder / "model.safetensors").unlink()
    assert (resolve(REF) / "model.safetensors").read_bytes() == WEIGHTS
    assert "model.safetensors is missing: it has to be fetched again" in capsys.readouterr().err


def test_offline_uses_the_cache(hub: FakeHub) -> None:
    hub.add_repo("org/model", MODEL)
    folder = resolve(REF, progress=False)
    hub.server.requests.clear()
    assert resolve(REF, offline=True, progress=False) == folder
    assert hub.server.requests == []


def test_offline_adopts_what_another_program_fetched(hub: FakeHub) -> None:
    from huggingface_hub import constants, snapshot_download

    hub.add_repo("org/model", MODEL)
    folder = snapshot_download(
        "org/model", cache_dir=constants.HF_HUB_CACHE, endpoint=hub.server.url
    )
    hub.server.requests.clear()
    assert resolve(REF, offline=True, progress=False) == Path(folder)
    assert hub.server.requests == []


def test_offline_without_a_copy(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.add_repo("org/model", MODEL)
    with pytest.raises(AprError, match=r"hf://org/model is not in the cache .*without `offline`"):
        resolve(REF, offline=True, progress=False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(AprError, match="is not in the cache"):
        resolve(REF, progress=False)
    assert hub.server.requests == []


def test_no_network_is_one_line(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # the discard port: nobody listens
    with pytest.raises(AprError, match=r"cannot reach http://127\.0\.0\.1:9") as caught:
        resolve(REF, progress=False)
    assert "\n" not in str(caught.value)


def test_no_such_repository(hub: FakeHub) -> None:
    hub.refuse("org/model", 404, "RepoNotFound", "Repository not found")
    with pytest.raises(UsageError, match="no such repository"):
        resolve(REF, progress=False)


def test_gated_repository(hub: FakeHub) -> None:
    hub.refuse("org/model", 403, "GatedRepo", "Access to model org/model is restricted")
    with pytest.raises(AprError, match=r"is gated .*accept its terms"):
        resolve(REF, progress=False)


def test_no_such_revision(hub: FakeHub) -> None:
    hub.add_repo("org/model", MODEL)
    headers = {"X-Error-Code": "RevisionNotFound", "X-Error-Message": "Invalid rev id: v9"}
    hub.server.add_json("/api/models/org/model/revision/v9", {}, status=404, headers=headers)
    with pytest.raises(UsageError, match="hf://org/model@v9: no such revision"):
        resolve(f"{REF}@v9", progress=False)


def test_server_trouble(hub: FakeHub) -> None:
    hub.server.add_json("/api/models/org/model", {"error": "boom"}, status=500)
    with pytest.raises(AprError, match="the hub answered"):
        resolve(REF, progress=False)


def test_the_token_stays_with_the_hub(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    """Large files are redirected to another host, which must not see the user's token."""
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    hub.add_repo("org/model", MODEL)
    with running_server() as elsewhere:
        elsewhere.add("/blob", WEIGHTS)
        served = hub.server.resources[f"/org/model/resolve/{'c' * 40}/model.safetensors"]
        served.status, served.content = 302, b""
        served.headers["Location"] = f"{elsewhere.url}/blob".replace("127.0.0.1", "localhost")
        folder = resolve(REF, progress=False)
        assert (folder / "model.safetensors").read_bytes() == WEIGHTS
        (asked,) = hub.server.gets("model.safetensors")
        assert asked.headers["Authorization"] == "Bearer hf_secret"
        (answered,) = elsewhere.requests
        assert "Authorization" not in answered.headers


GGUF = {"README.md": b"x", "a-q4.gguf": b"GGUF" + b"4" * 2000, "a-q8.gguf": b"GGUF" + b"8" * 2000}


def test_gguf_file_by_name(hub: FakeHub) -> None:
    hub.add_repo("org/gguf", GGUF)
    path = resolve("hf://org/gguf/a-q8.gguf", progress=False)
    assert path.read_bytes() == GGUF["a-q8.gguf"]
    assert not hub.server.gets("a-q4.gguf")


def test_several_gguf_files_must_be_told_apart(hub: FakeHub) -> None:
    hub.add_repo("org/gguf", GGUF)
    with pytest.raises(UsageError, match=r"2 GGUF models .*hf://org/gguf/a-q4\.gguf"):
        resolve("hf://org/gguf", progress=False)
    with pytest.raises(UsageError, match=r"no such file .*a-q4\.gguf, a-q8\.gguf"):
        resolve("hf://org/gguf/b.gguf", progress=False)


def test_single_gguf_needs_no_name(hub: FakeHub) -> None:
    hub.add_repo("org/gguf", {"only.gguf": b"GGUF" * 500})
    assert resolve("hf://org/gguf", progress=False).name == "only.gguf"


def test_split_gguf_comes_whole() -> None:
    names = ["m-00001-of-00002.gguf", "m-00002-of-00002.gguf", "other.gguf"]
    ref = HfRef("org/gguf", file="m-00001-of-00002.gguf")
    assert choose_files(ref, names) == set(names[:2])


def test_pickles_are_refused(hub: FakeHub) -> None:
    hub.add_repo("org/old", {"config.json": b"{}", "pytorch_model.bin": b"x" * 2000})
    with pytest.raises(AprError, match="only as pickles"):
        resolve("hf://org/old", progress=False)


def test_settings_reach_a_separate_process(hub: FakeHub, tmp_path: Path) -> None:
    """HF_ENDPOINT and HF_HOME from the environment, as a user sets them."""
    hub.add_repo("org/model", MODEL)
    program = "from apr.hub import resolve; print(resolve('hf://org/model', progress=False))"
    env = {**os.environ, "HF_HOME": str(tmp_path / "home")}
    done = subprocess.run(
        [sys.executable, "-c", program], env=env, capture_output=True, text=True, check=True
    )
    folder = Path(done.stdout.strip())
    assert folder.is_relative_to(tmp_path / "home" / "hub")
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS
    assert done.stderr == ""


def test_the_server_tells_small_files_by_git_id() -> None:
    """`git hash-object` of "hello\\n": the fake hub's ids are git's."""
    assert git_blob_id(b"hello\n") == "ce013625030ba8dba906f756967f9e9ca394464a"
