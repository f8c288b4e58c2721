"""`hf://datasets/org/name`: the files of rows of a Hugging Face data set.

hf://datasets/org/name[@revision]           its training split, or all where none is named so
hf://datasets/org/name/PATH[@revision]      one file, a folder, or a pattern (data/test-*.parquet)
"""

from __future__ import annotations

import fnmatch
import re
import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from apr.common.errors import AprError, UsageError
from apr.hub.hf import endpoint, hub_errors, hub_offline, literally, no_bars
from apr.hub.refs import HfRef

PREFIX = "hf://datasets/"
KINDS = (".jsonl", ".jsonl.gz", ".parquet", ".json", ".json.gz", ".csv", ".csv.gz")
_REF = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+)(?:/(?P<path>[^@]+?))?(?:@(?P<revision>[^@]+))?")
_PART = re.compile(r"\d+-of-(\d+)\.")
_TRAIN = re.compile(r"(?<![a-z])train(?![a-z])")


def local_files(
    names: Iterable[str | Path], *, offline: bool = False, progress: bool = True
) -> list[Path]:
    """The files that paths and references to data sets mean."""
    found: list[Path] = []
    for name in names:
        if str(name).startswith(PREFIX):
            found += dataset_files(str(name), offline=offline, progress=progress)
        else:
            found.append(Path(name).expanduser())
    return found


def dataset_files(ref: str, *, offline: bool = False, progress: bool = True) -> list[Path]:
    """The files a reference means, in the hub's cache, in the order of their names.

    Raises UsageError (no such data set or file, files of another kind), AprError (network).
    """
    match = _REF.fullmatch(ref.removeprefix(PREFIX))
    if match is None:
        raise UsageError(f"{ref}: not a data set", f"write {PREFIX}org/name[/file][@revision]")
    named = HfRef(f"datasets/{match['repo']}", match["revision"])
    repo, path = match["repo"], (match["path"] or "").rstrip("/")
    with hub_errors(named):
        if offline or hub_offline():
            folder = _snapshot(repo, match["revision"], None, progress, offline=True)
            names = [p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()]
            chosen = choose_rows(ref, path, names)
            _check_parts(ref, chosen, path)
            return [folder / name for name in chosen]
        from huggingface_hub import HfApi

        api = HfApi(endpoint=endpoint(), library_name="apr")
        info = api.dataset_info(repo, revision=match["revision"])
        chosen = choose_rows(ref, path, [s.rfilename for s in info.siblings or []])
        folder = _snapshot(repo, match["revision"], chosen, progress, offline=False)
    return [folder / name for name in chosen]


def choose_rows(ref: str, path: str, names: list[str]) -> list[str]:
    """Of all names in a data set those a reference means (see above). Raises UsageError."""
    rows = sorted(name for name in names if name.endswith(KINDS))
    rows = [name for name in rows if name.rpartition("/")[2] != "dataset_infos.json"]
    if path:
        found = [n for n in rows if n.startswith(path + "/") or fnmatch.fnmatchcase(n, path)]
    else:
        found = [name for name in rows if _TRAIN.search(name)] or rows
    # Tables beside rows of another kind are mostly lists of something else.
    found = [name for name in found if not _is_csv(name)] or found
    if not found:
        listed = ", ".join(rows[:10]) or f"no file of {', '.join(KINDS)}"
        raise UsageError(f"{ref}: no such rows in the data set", f"it has {listed}")
    kinds = {name.removesuffix(".gz").rpartition(".")[2] for name in found}
    if len(kinds) > 1:
        raise UsageError(
            f"{ref} is there as {' and '.join(sorted(kinds))}", f"name {found[0]}, say"
        )
    return found


def _is_csv(name: str) -> bool:
    return name.removesuffix(".gz").endswith(".csv")


def _check_parts(ref: str, names: list[str], path: str) -> None:
    """What another program fetched in part must not pass for a whole split."""
    if path:
        return
    totals = Counter(m[1] for m in map(_PART.search, names) if m)
    for total, count in totals.items():
        if count % int(total):
            raise AprError(
                f"{ref}: {count} of {int(total)} parts are in the cache", "pull it online"
            )


def _snapshot(
    repo: str, revision: str | None, names: list[str] | None, progress: bool, *, offline: bool
) -> Path:
    from huggingface_hub import constants, snapshot_download

    folder = snapshot_download(
        repo,
        repo_type="dataset",
        revision=revision,
        cache_dir=constants.HF_HUB_CACHE,
        endpoint=endpoint(),
        # Offline no name is known: a pattern that no name matches asks for the folder as it is.
        allow_patterns=[""] if names is None else [literally(name) for name in names],
        local_files_only=offline,
        tqdm_class=None if progress and sys.stderr.isatty() else no_bars(),
    )
    return Path(folder)
