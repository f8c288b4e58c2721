"""Files and folders that appear whole: after an error, a kill, and beside another writer."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from apr.common.errors import AprError, UsageError
from apr.common.files import (
    begin,
    new_file,
    output_file,
    remove,
    replace_folder,
    unlock_folder,
    write_json,
    write_whole,
)


def test_written_whole_with_the_folders_above(tmp_path: Path) -> None:
    write_whole(tmp_path / "a" / "b", "é")
    write_whole(tmp_path / "a" / "b", b"\xff")
    write_json(tmp_path / "a" / "c", {"x": 1})
    assert (tmp_path / "a" / "b").read_bytes() == b"\xff"
    assert (tmp_path / "a" / "c").read_text() == json.dumps({"x": 1}, indent=1) + "\n"
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == ["b", "c"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_error_leaves_what_was_there(tmp_path: Path, error: type[BaseException]) -> None:
    write_whole(tmp_path / "f", "before")
    with pytest.raises(error), new_file(tmp_path / "f") as temporary:
        temporary.write_text("half")
        raise error
    assert [path.name for path in tmp_path.iterdir()] == ["f"]
    assert (tmp_path / "f").read_text() == "before"


def test_writers_at_the_same_time_do_not_meet(tmp_path: Path) -> None:
    texts = [str(number) * 100_000 for number in range(8)]
    threads = [threading.Thread(target=write_whole, args=(tmp_path / "f", t)) for t in texts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (tmp_path / "f").read_text() in texts
    assert len(list(tmp_path.iterdir())) == 1


def test_places_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is a folder"), output_file(tmp_path):
        pass
    (tmp_path / "f").touch()
    with pytest.raises(AprError, match="cannot write"), output_file(tmp_path / "f" / "g"):
        pass


def test_a_folder_replaces_another(tmp_path: Path) -> None:
    for name in ("old", "new"):
        write_whole(tmp_path / name / name, name)
    replace_folder(tmp_path / "new", tmp_path / "old")
    assert [path.name for path in tmp_path.rglob("*")] == ["old", "new"]


@pytest.mark.parametrize("folder", [False, True])
def test_what_killed_writers_left_goes_and_what_living_ones_write_stays(
    tmp_path: Path, folder: bool
) -> None:
    target = tmp_path / "m"
    code = (
        "import sys, time, pathlib; from apr.common.files import begin;"
        f"kept = begin(pathlib.Path(sys.argv[1]), folder={folder});"
        "print('begun', flush=True); time.sleep(60)"
    )
    command = [sys.executable, "-c", code, str(target)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "begun\n"
    (theirs,) = tmp_path.iterdir()
    ours, lock = begin(target, folder=folder)
    assert theirs.exists()  # its writer is alive
    process.send_signal(signal.SIGKILL)
    process.communicate()
    third, other = begin(target, folder=folder)
    assert not theirs.exists()
    assert ours.exists()
    if folder:
        unlock_folder(third)
        assert list(third.iterdir()) == []
    for path, file in ((ours, lock), (third, other)):
        remove(path)
        file.close()
    assert list(tmp_path.iterdir()) == []
