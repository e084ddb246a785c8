"""A program's own launcher: takes away network, files and time, then becomes the program.

Run as a script, by a Python that imports nothing: `python -I -S confined.py SECONDS MEMORY_BYTES SCRATCH PROGRAM ...`.
Limits hold wherever POSIX does. On Linux the program also has no network (a network namespace of its own), and, where
the kernel has Landlock, writes nowhere but in SCRATCH; a kernel that refuses one of these does without it.
"""

import ctypes
import os
import resource
import signal
import sys

CLONE_NEWUSER, CLONE_NEWNET, CLONE_NEWPID = 0x10000000, 0x40000000, 0x20000000  # linux/sched.h
PR_SET_PDEATHSIG, PR_SET_NO_NEW_PRIVS = 1, 38  # linux/prctl.h
CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446  # landlock's system calls, the same on every architecture
# linux/landlock.h: write, remove and make of ABI 1, that is all but to execute and to read; and, since ABI 3, truncate
WRITES, TRUNCATE, FILE_WRITE = 0b1_1111_1111_0010, 1 << 14, 0b10
JUST_THE_VERSION = 1
FILE_BYTES = 16 << 20
OPEN_FILES = 256


def limit(seconds: float, memory: int) -> None:
    """Set the limits that every POSIX system has."""
    cpu = max(1, round(seconds + 0.5))
    limits = {
        resource.RLIMIT_CPU: cpu,
        resource.RLIMIT_FSIZE: FILE_BYTES,
        resource.RLIMIT_NOFILE: OPEN_FILES,
        resource.RLIMIT_CORE: 0,
    }
    if sys.platform != "darwin":  # macOS knows no limit of a process's memory
        limits[resource.RLIMIT_AS] = memory
    for kind, value in limits.items():
        hard = resource.getrlimit(kind)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(kind, (value, value))


def leave_network(libc: ctypes.CDLL) -> bool:
    """Move into namespaces without a network, where all processes end with the first; return whether it could."""
    user, group = os.getuid(), os.getgid()
    if libc.unshare(CLONE_NEWUSER | CLONE_NEWNET | CLONE_NEWPID):
        return False
    for name, line in (("setgroups", "deny"), ("uid_map", f"{user} {user} 1"), ("gid_map", f"{group} {group} 1")):
        try:
            with open(f"/proc/self/{name}", "w", encoding="ascii") as file:
                file.write(line)
        except OSError:
            return True  # it then runs as nobody, and still without a network
    return True


def write_only_in(libc: ctypes.CDLL, scratch: str) -> bool:
    """Forbid every write outside `scratch`; return whether the kernel could (Landlock)."""
    version = libc.syscall(CREATE_RULESET, None, ctypes.c_size_t(0), JUST_THE_VERSION)
    writes = WRITES | (TRUNCATE if version >= 3 else 0)
    handled = ctypes.c_uint64(writes)
    rules = libc.syscall(CREATE_RULESET, ctypes.byref(handled), ctypes.c_size_t(8), 0)
    if rules < 0:
        return False
    for path, allowed in ((scratch, writes), ("/dev/null", FILE_WRITE)):
        place = os.open(path, os.O_PATH)
        attributes = allowed.to_bytes(8, sys.byteorder) + place.to_bytes(4, sys.byteorder)
        rule = (ctypes.c_char * len(attributes)).from_buffer_copy(attributes)
        failed = libc.syscall(ADD_RULE, rules, 1, ctypes.byref(rule), 0)
        os.close(place)
        if failed:
            return False
    libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    return bool(libc.syscall(RESTRICT_SELF, rules, 0) == 0)


def main() -> None:
    seconds, memory, scratch, *program = sys.argv[1:]
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if leave_network(libc):
            child = os.fork()  # the first process of the namespace: with it, all that it started ends
            if child:
                status = os.waitpid(child, 0)[1]
                os._exit(os.waitstatus_to_exitcode(status) & 0xFF)
            libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        write_only_in(libc, scratch)
    limit(float(seconds), int(memory))
    os.execv(program[0], program)


if __name__ == "__main__":
    main()
