"""From a freshly forked child to a confined one, step by step (the order matters)."""

from __future__ import annotations

import math
import os
import resource
import signal
import sys
from typing import Any, NamedTuple

from . import linux, seccomp


class Confinement(NamedTuple):
    """What a worker prepared once, for each of its children to step into.

    root: the candidate's root directory; empty: as it is.
    uid, gid: to change to, None to stay. own_user: no process but candidates has that uid.
    read_search: keep CAP_DAC_READ_SEARCH, because the interpreter lies where only its owner may
    look (Landlock still confines reading to the view). ruleset: Landlock. only_signal_self: the
    filter must refuse signals to others. process_slack: processes that already count against
    the uid's limit.
    """

    level: str
    work: str
    uid: int | None = None
    gid: int | None = None
    own_user: bool = False
    set_groups: bool = False
    read_search: bool = False
    ruleset: int | None = None
    filter: linux.SyscallFilter | None = None
    only_signal_self: bool = False
    process_slack: int = 0
    root: str = ""


SOCKET = 3  # where a candidate's process finds its socket
_RULESET = 4
JUDGE_MEMORY = 4 << 30


def confine_candidate(confinement: Confinement, order: dict[str, Any], ruleset: int | None) -> None:
    """Confine this process for good.

    order: memory, output (bytes), cpu (seconds), processes, files {name: bytes}, private (the
    directory to work in).
    """
    os.setsid()
    work = order["private"]
    os.chdir(work)
    if confinement.level != "full":
        os.environ.update(TMPDIR=work, HOME=work)
    if order["files"]:
        _write_files(order["files"], confinement)
    set_limits(
        ("RLIMIT_CPU", math.ceil(order["cpu"]) + 1),
        ("RLIMIT_AS", order["memory"]),
        ("RLIMIT_FSIZE", order["output"]),
        ("RLIMIT_NPROC", order["processes"] + confinement.process_slack),
    )
    if confinement.root:
        os.chroot(confinement.root)
    drop_privileges(confinement, ruleset)


def confine_judge(confinement: Confinement) -> None:
    """A judge runs trusted code on untrusted data: the same refusals, no directory."""
    if confinement.own_user and confinement.uid is not None:
        # Not the candidates' user, whose processes are all ended after each job.
        confinement = confinement._replace(uid=confinement.uid + 1)
    set_limits(("RLIMIT_AS", JUDGE_MEMORY), ("RLIMIT_FSIZE", 1 << 20))
    if linux.IS_LINUX:
        linux.no_new_privileges()
    drop_privileges(confinement, confinement.ruleset)
    if linux.IS_LINUX:
        linux.die_with_parent(signal.SIGKILL)  # after the change of user, which clears it


def confine_zygote(confinement: Confinement) -> Confinement:
    """Confine a zygote as far as forking candidates allows; what is left for them to do.

    In level full candidates inherit Landlock and seccomp from here, which saves each the
    installing. Elsewhere a Landlock domain of their own keeps them from signalling us.
    """
    set_limits(("RLIMIT_CORE", 0), ("RLIMIT_MEMLOCK", 0), ("RLIMIT_MSGQUEUE", 0))
    if linux.IS_LINUX:
        linux.no_new_privileges()
    if confinement.level != "full":
        return confinement
    if confinement.ruleset is not None:
        linux.landlock_restrict(confinement.ruleset)
        os.close(confinement.ruleset)
    linux.SyscallFilter(seccomp.build_filter(linux.MACHINE, namespaces=True)).install()
    rest = linux.SyscallFilter(seccomp.build_namespace_filter(linux.MACHINE))
    return confinement._replace(ruleset=None, filter=rest)


def keep_descriptors(keep_fd: int, ruleset: int | None) -> int | None:
    """Move the socket to SOCKET and close everything else; the ruleset's new number.

    The standard descriptors become /dev/null, opened anew: a file that is open here and in another
    process has one position and one set of flags for both.
    """
    null = os.open("/dev/null", os.O_RDWR)
    for number in range(3):
        os.dup2(null, number)
    high = MAX_DESCRIPTORS - 2
    os.dup2(keep_fd, high)
    if ruleset is not None:
        os.dup2(ruleset, high + 1)
        os.dup2(high + 1, _RULESET, inheritable=False)
    os.dup2(high, SOCKET)
    os.closerange(_RULESET if ruleset is None else _RULESET + 1, MAX_DESCRIPTORS)
    return None if ruleset is None else _RULESET


# Workers may not open more themselves, so this bounds what there is to close.
MAX_DESCRIPTORS = 256


def _write_files(files: dict[str, bytes], confinement: Confinement) -> None:
    for name, content in files.items():
        with open(name, "wb") as file:
            file.write(content)
        if confinement.uid is not None and confinement.gid is not None:
            os.chown(name, confinement.uid, confinement.gid)


def set_limits(*limits: tuple[str, int]) -> None:
    """Soft and hard limits at once, never above a hard limit that is already there."""
    for name, value in limits:
        kind = getattr(resource, name, None)  # macOS lacks some
        if kind is None:
            continue
        try:
            resource.setrlimit(kind, (value, value))
        except (ValueError, OSError):
            _set_below(kind, value)


def _set_below(kind: int, value: int) -> None:
    hard = resource.getrlimit(kind)[1]
    if hard != resource.RLIM_INFINITY and hard <= value:
        resource.setrlimit(kind, (hard, hard))
    elif sys.platform == "linux":
        raise OSError(f"resource limit {kind} cannot be set to {value}")
    # macOS refuses some address-space limits; the watch on resident memory remains.


def drop_privileges(confinement: Confinement, ruleset: int | None) -> None:
    """Change user, give up capabilities, and install Landlock and seccomp."""
    privileged = True
    if confinement.uid is not None and confinement.gid is not None:
        if confinement.set_groups:
            os.setgroups([])
        if confinement.read_search:
            linux.keep_capabilities_once()
        # From user 0 to another, this gives up all capabilities as well.
        privileged = confinement.read_search or os.geteuid() != 0
        os.setresgid(confinement.gid, confinement.gid, confinement.gid)
        os.setresuid(confinement.uid, confinement.uid, confinement.uid)
    if not linux.IS_LINUX:
        return
    if privileged:
        linux.set_capabilities(1 << linux.CAP_DAC_READ_SEARCH if confinement.read_search else 0)
    if confinement.level != "full":
        # In full the zygote's end is everybody's: it is process 1 of the namespace around.
        linux.die_with_parent(signal.SIGKILL)
    if ruleset is not None:
        linux.landlock_restrict(ruleset)
        os.close(ruleset)
    if confinement.only_signal_self:
        linux.SyscallFilter(
            seccomp.build_filter(linux.MACHINE, os.getpid(), outside=True, own_user=False)
        ).install()
    elif confinement.filter is not None:
        confinement.filter.install()
