"""A short name for the contents of a model, without reading gigabytes."""

from __future__ import annotations

import hashlib

from apr.hub.resolve import Pulled


def fingerprint(pulled: Pulled) -> str:
    """16 hexadecimal digits that change when the weights do.

    Fetched models: from the checksums verified when they were fetched. Local ones: from path, size
    and modification time of each weight file.
    """
    digest = hashlib.sha256()
    if pulled.manifest is not None:
        for record in pulled.files():
            digest.update(f"{record.path} {record.sha256}\n".encode())
    else:
        for path in pulled.weight_paths():
            status = path.stat()
            line = f"{path.resolve()} {status.st_size} {status.st_mtime_ns}\n"
            digest.update(line.encode())
    return digest.hexdigest()[:16]
