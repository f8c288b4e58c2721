"""Wheels written for tests, without any build tool."""

from __future__ import annotations

import base64
import hashlib
import io
import zipfile


def make_wheel(
    name: str,
    version: str,
    files: dict[str, bytes],
    requires: list[str] | None = None,
    *,
    record: dict[str, str] | None = None,
) -> tuple[str, bytes]:
    """(file name, contents). record: overrides entries of RECORD, path -> sha256=..."""
    distribution = name.replace("-", "_")
    info = f"{distribution}-{version}.dist-info"
    lines = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}"]
    lines += [f"Requires-Dist: {requirement}" for requirement in requires or []]
    members = {
        **files,
        f"{info}/METADATA": "\n".join(lines).encode() + b"\n\nA description.\n",
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nTag: py3-none-any\n",
    }
    rows = []
    for path, content in members.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
        rows.append(f"{path},{(record or {}).get(path, 'sha256=' + digest)},{len(content)}")
    members[f"{info}/RECORD"] = ("\n".join([*rows, f"{info}/RECORD,,"]) + "\n").encode()
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for path, content in members.items():
            archive.writestr(path, content)
    return f"{distribution}-{version}-py3-none-any.whl", buffer.getvalue()
