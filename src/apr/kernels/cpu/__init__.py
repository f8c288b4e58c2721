"""CPU kernels compiled by LLVM from Python (numba): bf16 in, fp32 sums, batch-invariant.

A row's result depends on that row alone: every dot product is summed in one fixed order, whatever
the number of rows, threads or blocks. That is what makes a request's tokens independent of what
else is in the batch.

Compiled code is cached on disk (numba's cache), so only the first run on a machine compiles.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

_STAMP = "kernels.sha256"


def _drop_stale_cache() -> None:
    """Remove cached code of other versions of this folder.

    numba looks at the file of the function it loads only, not at the files that function uses.
    """
    folder = Path(__file__).parent
    cache = folder / "__pycache__"
    sources = b"".join(path.read_bytes() for path in sorted(folder.glob("*.py")))
    digest = hashlib.sha256(sources).hexdigest()
    stamp = cache / _STAMP
    if stamp.exists() and stamp.read_text() == digest:
        return
    try:
        cache.mkdir(exist_ok=True)
        for stale in cache.glob("*.nb[ci]"):
            stale.unlink(missing_ok=True)
        stamp.write_text(digest)
    except OSError:
        # A read-only installation: numba keeps its cache in the user's folder, under a key that
        # holds the path and time of the installed file, so a new version is a new key.
        return


_drop_stale_cache()
