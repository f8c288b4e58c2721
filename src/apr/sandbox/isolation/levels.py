"""Bringing a worker to an isolation level; where it cannot be had, an OSError says why.

full      user, mount, PID, network and IPC namespaces, Landlock, seccomp, limits
confined  Landlock, seccomp, limits, a user of its own where we are root
limits    limits and a clean environment only
"""

# ruff: noqa: PTH101, PTH112, PTH116, PTH120, PTH208
from __future__ import annotations

import errno
import os
import platform

from . import landlock, linux, seccomp, view
from .confine import Confinement

_INSIDE_ID = 1000  # the candidate's user in its user namespace
# Users of candidates outside a user namespace: far above real ones, one pair a worker.
_FIRST_UID = 2_000_000_000
_DESKTOP_SLACK = 256
_LEAST_PAIRS = 1000  # of users: so many workers at a time
_NO_NAMESPACES = {
    errno.ENOSPC: "are switched off here (user.max_user_namespaces)",
    errno.EPERM: "are not allowed here, by the container or the kernel's settings",
    errno.EACCES: "are not allowed here, by the container or the kernel's settings",
    errno.ENOSYS: "are unknown to this kernel",
    errno.EINVAL: "are unknown to this kernel",
}


def prepare(level: str, base: str) -> Confinement:
    """Take this process into the level as far as a worker goes; children go the rest.

    base: a directory that belongs to this worker. Raises OSError with the reason.
    """
    if level == "limits":
        return _with_own_user("limits", base, view.readable_paths())
    if not linux.IS_LINUX:
        raise OSError("only Linux has namespaces, Landlock and seccomp")
    return _prepare_full(base) if level == "full" else _prepare_confined(base)


def _prepare_full(base: str) -> Confinement:
    linux.landlock_abi()
    program = linux.SyscallFilter(seccomp.build_filter(linux.MACHINE))
    paths = view.readable_paths()
    hidden = view.hidden_paths(paths)
    view.trim_import_path(paths)
    try:
        drops_user = _enter_namespaces()
    except OSError as error:
        why = _NO_NAMESPACES.get(error.errno or 0, str(error))
        raise OSError(f"user namespaces {why}") from None
    view.enter(base, paths, hidden)
    view.fresh_root(1 << 20)  # for modules that write while they are imported
    ruleset = landlock.build_ruleset(["/"], [view.BOX], [])
    return Confinement(
        level="full",
        work=view.WORK,
        uid=_INSIDE_ID,
        gid=_INSIDE_ID,
        set_groups=drops_user,
        ruleset=ruleset,
        filter=program,
        process_slack=0 if _counts_processes_per_namespace() else _DESKTOP_SLACK,
        root=view.ROOT,
    )


def _enter_namespaces() -> bool:
    """New namespaces for this process; True if candidates get a user that nobody else has.

    Root maps a second, otherwise unused user for candidates. That takes a helper that stays
    outside, because the map's writer must be privileged there.
    """
    uid, gid = os.geteuid(), os.getegid()
    flags = (
        linux.CLONE_NEWUSER
        | linux.CLONE_NEWNS
        | linux.CLONE_NEWPID
        | linux.CLONE_NEWNET
        | linux.CLONE_NEWIPC
        | linux.CLONE_NEWUTS
    )
    spare = {name: _spare_id(name) for name in ("uid_map", "gid_map")}
    if uid == 0 and all(spare.values()):
        maps = {name: f"0 0 1\n{_INSIDE_ID} {own} 1\n" for name, own in spare.items()}
        if _mapped_by_helper(flags, maps):
            return True
    else:
        linux.unshare(flags)
    with open("/proc/self/setgroups", "w") as file:
        file.write("deny")
    for name, number in (("uid_map", uid), ("gid_map", gid)):
        with open(f"/proc/self/{name}", "w") as file:
            file.write(f"{_INSIDE_ID} {number} 1\n")
    return False


def _spare_id(name: str) -> int | None:
    """A user (`uid_map`) or group (`gid_map`) that nobody else has, with the next one; None where
    there are none to spare.

    In a container ids may end at 65,535, or be one: then they are of the upper half of what is
    mapped.
    """
    with open(f"/proc/self/{name}") as file:
        ranges = [(int(line.split()[0]), int(line.split()[2])) for line in file]
    own = _FIRST_UID + 2 * os.getpid()
    if any(first <= own and own + 1 < first + count for first, count in ranges):
        return own
    first, count = max(ranges, key=lambda found: found[1])
    pairs = count // 4
    return first + count - 2 * pairs + 2 * (os.getpid() % pairs) if pairs >= _LEAST_PAIRS else None


def _mapped_by_helper(flags: int, maps: dict[str, str]) -> bool:
    """unshare(flags), with the maps written by a helper; False if it may not write them."""
    ready_read, ready_write = os.pipe()
    parent = os.getpid()
    helper = os.fork()
    if helper == 0:
        status = 1
        try:
            os.close(ready_write)
            if os.read(ready_read, 1):
                for name, text in maps.items():
                    with open(f"/proc/{parent}/{name}", "w") as file:
                        file.write(text)
                status = 0
        finally:
            os._exit(status)
    os.close(ready_read)
    try:
        linux.unshare(flags)
        os.write(ready_write, b"1")
    finally:
        os.close(ready_write)
        status = os.waitpid(helper, 0)[1]
    return status == 0


def _counts_processes_per_namespace() -> bool:
    """RLIMIT_NPROC counts per user namespace since Linux 5.14, per user of the machine before."""
    major, minor = platform.release().split(".")[:2]
    return (int(major), int("".join(c for c in minor if c.isdigit()) or 0)) >= (5, 14)


def _prepare_confined(base: str) -> Confinement:
    abi = linux.landlock_abi()
    paths = view.readable_paths()
    hidden = view.hidden_paths(paths)
    view.trim_import_path(paths)
    ruleset = landlock.build_ruleset(paths, [base], hidden)
    confinement = _with_own_user("confined", base, paths)
    return confinement._replace(
        ruleset=ruleset,
        filter=linux.SyscallFilter(
            seccomp.build_filter(linux.MACHINE, outside=True, own_user=confinement.own_user)
        ),
        only_signal_self=not (confinement.own_user or landlock.scopes_signals(abi)),
    )


def weakness(confinement: Confinement) -> str:
    """What a program may do at this level to what is not its own; empty where nothing is known."""
    if confinement.level != "confined" or confinement.own_user:
        return ""
    return "programs run as this user, so that they may change modes and times of its files"


def _with_own_user(level: str, base: str, paths: list[str]) -> Confinement:
    """As root: a user that nobody else has. Otherwise candidates run as the user we are."""
    os.chmod(base, 0o711)
    uid = gid = None
    if os.geteuid() == 0 and linux.IS_LINUX:
        uid, gid = _spare_id("uid_map"), _spare_id("gid_map")
    if uid is None or gid is None:
        return Confinement(level, base, process_slack=_user_processes() + _DESKTOP_SLACK)
    read_search = False
    if not all(_world_readable(path) for path in paths):
        if not linux.effective_capabilities() >> linux.CAP_DAC_READ_SEARCH & 1:
            raise OSError("the interpreter can be read by its owner only; use a system-wide Python")
        read_search = True
    return Confinement(
        level,
        base,
        uid=uid,
        gid=gid,
        own_user=True,
        set_groups=True,
        read_search=read_search,
    )


def _user_processes() -> int:
    """Processes of this user, which count against its RLIMIT_NPROC; 0 where /proc is not."""
    if not os.path.isdir("/proc/self"):
        return 0
    uid, count = os.getuid(), 0
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                count += os.stat(f"/proc/{name}").st_uid == uid
            except FileNotFoundError:  # ended meanwhile
                continue
    return count


def _world_readable(path: str) -> bool:
    """Whether any user may read `path`, judged by the modes of it and of the folders above."""
    if not os.stat(path).st_mode & 0o004:
        return False
    path = os.path.realpath(path)
    while path != "/":
        path = os.path.dirname(path)
        if not os.stat(path).st_mode & 0o001:
            return False
    return True
