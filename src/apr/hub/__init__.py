"""Sources: what a model reference means, and how its files get onto this disk.

`resolve` turns a reference into a path; `pull` says what was fetched as well. Importing this
package costs nothing: network and package-index code is imported when a download needs it.
"""

from apr.hub.cache import (
    FileRecord,
    Manifest,
    cache_root,
    damaged_files,
    read_manifest,
    write_manifest,
)
from apr.hub.refs import SHORT_NAMES, parse_ref
from apr.hub.resolve import Pulled, pull, resolve

__all__ = [
    "SHORT_NAMES",
    "FileRecord",
    "Manifest",
    "Pulled",
    "cache_root",
    "damaged_files",
    "parse_ref",
    "pull",
    "read_manifest",
    "resolve",
    "write_manifest",
]
