"""Reading a wheel as the zip file it is: nothing in it is imported or run."""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import zipfile
from collections.abc import Iterator
from email.parser import Parser
from pathlib import Path, PurePosixPath
from types import TracebackType

from packaging.requirements import InvalidRequirement, Requirement

from apr.common.errors import AprError

CHUNK = 1 << 20  # bytes
_SYMLINK = 0o120000


class WheelFile:
    """An open wheel. Members that would leave the target folder are refused when it is opened.

    Raises AprError when the file is no wheel or names such a member.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._zip = zipfile.ZipFile(path)
        except (zipfile.BadZipFile, OSError) as error:
            raise AprError(f"{path.name} is not a wheel: {error}") from None
        try:
            self._members = {
                info.filename: info for info in self._zip.infolist() if not info.is_dir()
            }
            for info in self._members.values():
                _check_member(path.name, info)
            self._checksums = self._read_record()
        except BaseException:
            self._zip.close()
            raise

    def __enter__(self) -> WheelFile:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._zip.close()

    def names(self) -> list[str]:
        """All member files, in the order of the archive."""
        return list(self._members)

    def size(self, name: str) -> int:
        """Unpacked size in bytes."""
        return self._members[name].file_size

    def requirements(self) -> list[Requirement]:
        """What METADATA lists under Requires-Dist; unreadable entries are left out."""
        text = self._dist_info("METADATA")
        found = []
        for line in Parser().parsestr(text, headersonly=True).get_all("Requires-Dist", []):
            try:
                found.append(Requirement(line))
            except InvalidRequirement:
                continue  # nothing we could fetch by name
        return found

    def blocks(self, name: str) -> Iterator[bytes]:
        """The contents of a member. AprError at the end if RECORD gives another checksum."""
        digest = hashlib.sha256()
        try:
            with self._zip.open(self._members[name]) as stream:
                while block := stream.read(CHUNK):
                    digest.update(block)
                    yield block
        except (zipfile.BadZipFile, EOFError, NotImplementedError) as error:
            raise AprError(f"{self.path.name}: {name} is damaged: {error}") from None
        expected = self._checksums.get(name)
        if expected is not None and digest.hexdigest() != expected:
            raise AprError(
                f"{self.path.name}: {name} does not match the checksum in the wheel's RECORD"
            )

    def read_text(self, name: str) -> str:
        """A small member as text (bytes that are no UTF-8 are replaced)."""
        return b"".join(self.blocks(name)).decode("utf-8", errors="replace")

    def _dist_info(self, file: str) -> str:
        for name in self._members:
            path = PurePosixPath(name)
            if path.name == file and len(path.parts) == 2 and path.parts[0].endswith(".dist-info"):
                return self._zip.read(self._members[name]).decode("utf-8", errors="replace")
        raise AprError(f"{self.path.name} is not a wheel: it has no {file}")

    def _read_record(self) -> dict[str, str]:
        checksums = {}
        for row in csv.reader(io.StringIO(self._dist_info("RECORD"))):
            if len(row) >= 2 and row[1].startswith("sha256="):
                code = row[1].removeprefix("sha256=")
                digest = base64.urlsafe_b64decode(code + "=" * (-len(code) % 4))
                checksums[row[0]] = digest.hex()
        return checksums


def _check_member(wheel: str, info: zipfile.ZipInfo) -> None:
    path = PurePosixPath(info.filename)
    leaves = path.is_absolute() or ".." in path.parts or "\\" in info.filename
    drive = len(path.parts) > 0 and path.parts[0].endswith(":")
    link = (info.external_attr >> 16) & 0o170000 == _SYMLINK
    if leaves or drive or link or "\0" in info.filename:
        raise AprError(
            f"{wheel} is refused: its member {info.filename!r} would leave the target folder",
            "do not use this package",
        )
