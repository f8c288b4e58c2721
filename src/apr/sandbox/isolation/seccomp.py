"""The system calls a candidate is refused, as a classic BPF program for seccomp (seccomp(2)).

Refused calls fail with EPERM, so a program sees an ordinary PermissionError. clone3 fails with
ENOSYS: its flags lie in memory, out of a filter's sight, and C libraries then use clone.
"""

from __future__ import annotations

import errno
import struct

AF_UNIX = 1
_NAMESPACE_FLAGS = 0x7E02_0000  # CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET
_CLONE_PARENT = 0x8000
_SIGCHLD = 17
_ALLOW = 0x7FFF_0000
_ERRNO = 0x0005_0000
_KILL = 0x8000_0000

# name: (x86_64, aarch64); None where the architecture has no such call.
_SOCKET = {"socket": (41, 198), "socketpair": (53, 199)}
_CLONE = (56, 220)
_SIGACTION = (13, 134)
_CLONE3 = (435, 435)
_KILLERS = {
    "kill": (62, 129),
    "tkill": (200, 130),
    "tgkill": (234, 131),
    "rt_sigqueueinfo": (129, 138),
    "rt_tgsigqueueinfo": (297, 240),
    "pidfd_send_signal": (424, 424),
}
_REFUSED: dict[str, tuple[int | None, int | None]] = {
    # other processes
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "process_madvise": (440, 440),
    "pidfd_getfd": (438, 438),
    "process_mrelease": (448, 448),
    "kcmp": (312, 272),
    # namespaces and file systems
    "pivot_root": (155, 41),
    "mount": (165, 40),
    "umount2": (166, 39),
    "move_mount": (429, 429),
    "open_tree": (428, 428),
    "fsopen": (430, 430),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fspick": (433, 433),
    "mount_setattr": (442, 442),
    "swapon": (167, 224),
    "swapoff": (168, 225),
    "quotactl": (179, 60),
    "quotactl_fd": (443, 443),
    "name_to_handle_at": (303, 264),
    "open_by_handle_at": (304, 265),
    "fanotify_init": (300, 262),
    # kernel surface that programs have no use for
    "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    "modify_ldt": (154, None),
    "vmsplice": (278, 75),
    "move_pages": (279, 239),
    "migrate_pages": (256, 238),
    "mbind": (237, 235),
    # memory that no process shows, unless it looks at it
    "memfd_create": (319, 279),
    "memfd_secret": (447, 447),
    # the machine
    "kexec_load": (246, 104),
    "kexec_file_load": (320, 294),
    "init_module": (175, 105),
    "finit_module": (313, 273),
    "delete_module": (176, 106),
    "reboot": (169, 142),
    "syslog": (103, 116),
    "acct": (163, 89),
    "settimeofday": (164, 170),
    "clock_settime": (227, 112),
    "adjtimex": (159, 171),
    "clock_adjtime": (305, 266),
    "sethostname": (170, 161),
    "setdomainname": (171, 162),
    "iopl": (172, None),
    "ioperm": (173, None),
    "vhangup": (153, 58),
    # memory and queues that outlive their process
    "shmget": (29, 194),
    "semget": (64, 190),
    "msgget": (68, 186),
    "shmat": (30, 196),
    "shmctl": (31, 195),
    "semop": (65, 193),
    "semtimedop": (220, 192),
    "semctl": (66, 191),
    "msgsnd": (69, 189),
    "msgrcv": (70, 188),
    "msgctl": (71, 187),
    "mq_open": (240, 180),
    "mq_unlink": (241, 181),
}
# Where files of others are in sight: what Landlock does not keep a program from.
_OUTSIDE: dict[str, tuple[int | None, int | None]] = {
    "connect": (42, 203),  # sockets that have a path
    "setxattr": (188, 5),
    "lsetxattr": (189, 6),
    "fsetxattr": (190, 7),
    "removexattr": (197, 14),
    "lremovexattr": (198, 15),
    "fremovexattr": (199, 16),
    "setxattrat": (463, 463),
    "removexattrat": (466, 466),
    "chown": (92, None),
    "fchown": (93, 55),
    "lchown": (94, None),
    "fchownat": (260, 54),
}
# Calls on a process, and which arguments are 0 for the caller itself.
_OF_PROCESSES: dict[str, tuple[tuple[int, int], tuple[int, ...]]] = {
    "prlimit64": ((302, 261), (0,)),
    "sched_setparam": ((142, 118), (0,)),
    "sched_setscheduler": ((144, 119), (0,)),
    "sched_setaffinity": ((203, 122), (0,)),
    "sched_setattr": ((314, 274), (0,)),
    "setpriority": ((141, 140), (0, 1)),
    "ioprio_set": ((251, 30), (1,)),
}
_FCNTL, _IOCTL = (72, 25), (16, 29)
_SET_OWNER = {_FCNTL: (8, 15), _IOCTL: (0x8901, 0x8902)}  # whom a descriptor signals
_DATAGRAMS = 2  # the bit that SOCK_DGRAM and SOCK_RAW have and other types have not
_NAMESPACES = {"unshare": (272, 97), "setns": (308, 268), "chroot": (161, 51)}
_ARCHITECTURES = {"x86_64": (0, 0xC000_003E), "aarch64": (1, 0xC000_00B7)}
_X32_BIT = 0x4000_0000

# Offsets in struct seccomp_data: number, architecture, instruction pointer, six arguments.
_NUMBER, _ARCHITECTURE, _ARGUMENT0 = 0, 4, 16
_LOAD, _JUMP_EQUAL, _JUMP_GREATER_EQUAL, _JUMP_SET, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06


def _instruction(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("<HBBI", code, if_true, if_false, value & 0xFFFF_FFFF)


def build_filter(
    machine: str,
    only_signal: int | None = None,
    namespaces: bool = False,
    outside: bool = False,
    own_user: bool = True,
) -> bytes:
    """The program for an architecture (platform.machine()); OSError for one not known.

    only_signal: with a process id, signals to any other process are refused as well (where no
    PID namespace, no Landlock scope and no user of its own keep the candidate from them).
    namespaces: leave unshare, setns and chroot to build_namespace_filter, for a process that still
    needs them. outside: files and sockets of others are in sight. own_user: False where others may
    run as the same user; then calls on processes are for the caller itself.
    """
    column = _column(machine)
    program = _prologue(machine)
    program += [
        _instruction(_JUMP_EQUAL, _CLONE3[column], 0, 1),
        _instruction(_RETURN, _ERRNO | errno.ENOSYS),
        # clone with any flag that makes a namespace, or a child that is not the caller's
        _instruction(_JUMP_EQUAL, _CLONE[column], 0, 4),
        _instruction(_LOAD, _ARGUMENT0),
        _instruction(_JUMP_SET, _NAMESPACE_FLAGS | _CLONE_PARENT, 0, 1),
        _REFUSE,
        _instruction(_RETURN, _ALLOW),
    ]
    program += _keeps_handler(_SIGACTION[column], _SIGCHLD)
    streams = [(_JUMP_SET, 1, _DATAGRAMS)] if outside else []  # datagrams need no connection
    for numbers in _SOCKET.values():
        program += _guard(numbers[column], (_JUMP_EQUAL, 0, AF_UNIX), *streams)
    if not own_user:
        for numbers, zero in _OF_PROCESSES.values():
            program += _guard(numbers[column], *((_JUMP_EQUAL, index, 0) for index in zero))
        for numbers, commands in _SET_OWNER.items():
            program += _refuse_commands(numbers[column], commands)
    if only_signal is not None:
        for name, numbers in _KILLERS.items():
            allowed = 0xFFFF_FFFF if name == "pidfd_send_signal" else only_signal
            program += _guard(numbers[column], (_JUMP_EQUAL, 0, allowed))
    refused = [numbers[column] for numbers in _REFUSED.values()]
    if outside:
        refused += [numbers[column] for numbers in _OUTSIDE.values()]
    if not namespaces:
        refused += [numbers[column] for numbers in _NAMESPACES.values()]
    for number in refused:
        if number is not None:
            program += [_instruction(_JUMP_EQUAL, number, 0, 1), _REFUSE]
    program.append(_instruction(_RETURN, _ALLOW))
    return b"".join(program)


def build_namespace_filter(machine: str) -> bytes:
    """Refuses what build_filter(namespaces=True) leaves out; to be installed after it."""
    program = _prologue(machine)
    for numbers in _NAMESPACES.values():
        program += [_instruction(_JUMP_EQUAL, numbers[_column(machine)], 0, 1), _REFUSE]
    program.append(_instruction(_RETURN, _ALLOW))
    return b"".join(program)


def _column(machine: str) -> int:
    if machine not in _ARCHITECTURES:
        raise OSError(f"seccomp: no list of system calls for {machine}")
    return _ARCHITECTURES[machine][0]


def _prologue(machine: str) -> list[bytes]:
    """Ends a process that calls by another architecture's numbers; loads the call's number."""
    _column(machine)
    program = [
        _instruction(_LOAD, _ARCHITECTURE),
        _instruction(_JUMP_EQUAL, _ARCHITECTURES[machine][1], 1, 0),
        _instruction(_RETURN, _KILL),
        _instruction(_LOAD, _NUMBER),
    ]
    if machine == "x86_64":
        program += [_instruction(_JUMP_GREATER_EQUAL, _X32_BIT, 0, 1), _REFUSE]
    return program


def _guard(number: int, *conditions: tuple[int, int, int]) -> list[bytes]:
    """Allow a call only if all conditions hold for its arguments (their lower halves).

    A condition: (_JUMP_EQUAL, index, value) or (_JUMP_SET, index, bits that are not set).
    """
    body: list[bytes] = []
    for code, index, value in conditions:
        refuse = 2 * len(conditions) - len(body) - 1  # steps from behind the jump
        jumps = (0, refuse) if code == _JUMP_EQUAL else (refuse, 0)
        body += [_instruction(_LOAD, _ARGUMENT0 + 8 * index), _instruction(code, value, *jumps)]
    body += [_instruction(_RETURN, _ALLOW), _REFUSE]
    return [_instruction(_JUMP_EQUAL, number, 0, len(body)), *body]


def _refuse_commands(number: int, commands: tuple[int, ...]) -> list[bytes]:
    """Refuse a call whose second argument is one of these."""
    body = [_instruction(_LOAD, _ARGUMENT0 + 8)]
    for left in range(len(commands), 0, -1):
        body.append(_instruction(_JUMP_EQUAL, commands[-left], left, 0))
    body += [_instruction(_RETURN, _ALLOW), _REFUSE]
    return [_instruction(_JUMP_EQUAL, number, 0, len(body)), *body]


def _keeps_handler(number: int, signal: int) -> list[bytes]:
    """rt_sigaction for this signal may ask, not set.

    The time that a child used is added to its parent's when that waits for it. A parent that
    ignores the signal of their end need not, and their time is lost.
    """
    return [
        _instruction(_JUMP_EQUAL, number, 0, 8),
        _instruction(_LOAD, _ARGUMENT0),
        _instruction(_JUMP_EQUAL, signal, 0, 5),
        _instruction(_LOAD, _ARGUMENT0 + 8),
        _instruction(_JUMP_EQUAL, 0, 0, 2),
        _instruction(_LOAD, _ARGUMENT0 + 12),
        _instruction(_JUMP_EQUAL, 0, 1, 0),
        _REFUSE,
        _instruction(_RETURN, _ALLOW),
    ]


_REFUSE = _instruction(_RETURN, _ERRNO | errno.EPERM)
