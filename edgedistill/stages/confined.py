"""A program's own launcher: takes away network, files, processes and time, then becomes the program.

Run as a script, by a Python that imports nothing:
`python -I -S confined.py SECONDS MEMORY_BYTES SCRATCH FOLDER READABLE PROGRAM ...`, where READABLE are paths with
`os.pathsep` between them. Limits hold wherever POSIX does. On Linux the program also has namespaces of its own (no
network, no other process, a root folder that holds nothing but what it may read); and where the kernel has Landlock, it
reads nowhere but in READABLE and writes nowhere but in SCRATCH. A kernel that refuses one of these does without it;
`sandbox.confinement` finds out what is left.
"""

import ctypes
import os
import resource
import signal
import sys

# linux/sched.h, linux/prctl.h, linux/mount.h
CLONE_NEWNS, CLONE_NEWIPC, CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET = (1 << bit for bit in (17, 27, 28, 29, 30))
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_CAPBSET_DROP, PR_SET_NO_NEW_PRIVS = 1, 4, 24, 38
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_REMOUNT, MS_BIND, MS_REC, MS_PRIVATE = (
    1,
    2,
    4,
    8,
    32,
    4096,
    1 << 14,
    1 << 18,
)
MNT_DETACH = 2
CAPABILITY_VERSION = 0x20080522
# linux/landlock.h; the system calls have the same numbers on every architecture
CREATE_RULESET, ADD_RULE, RESTRICT_SELF, JUST_THE_VERSION = 444, 445, 446, 1
EXECUTE, FILE_WRITE, FILE_READ, DIR_READ = 1, 2, 4, 8
FIRST_RIGHTS, REFER, TRUNCATE = (1 << 13) - 1, 1 << 13, 1 << 14  # of versions 1, 2 and 3
TCP, SCOPES = 0b11, 0b11  # of version 4: bind and connect; of version 6: abstract sockets and signals

FILE_BYTES = 16 << 20
SCRATCH_BYTES = 64 << 20
SCRATCH_FILES = 4096
OPEN_FILES = 256
PROCESSES = 64
LEAST_PID_MAX = 301  # that a PID namespace of its own may have, since Linux 6.14
DEVICES = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom")
SHARED_MEMORY = "/dev/shm"


def limit(seconds: float, memory: int, counts_own: bool) -> None:
    """Set the limits that every POSIX system has, and that of processes where it counts no others."""
    limits = {
        resource.RLIMIT_CPU: max(1, round(seconds + 0.5)),
        resource.RLIMIT_FSIZE: FILE_BYTES,
        resource.RLIMIT_NOFILE: OPEN_FILES,
        resource.RLIMIT_CORE: 0,
    }
    if sys.platform != "darwin":  # macOS knows no limit of a process's memory
        limits[resource.RLIMIT_AS] = memory
    if counts_own:
        limits[resource.RLIMIT_NPROC] = PROCESSES
    for kind, value in limits.items():
        hard = resource.getrlimit(kind)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(kind, (value, value))


def leave(libc: ctypes.CDLL) -> bool:
    """Move into namespaces without a network, whose processes end with the first; return whether it could."""
    user, group = os.getuid(), os.getgid()
    least = CLONE_NEWUSER | CLONE_NEWNET | CLONE_NEWPID
    if libc.unshare(least | CLONE_NEWNS | CLONE_NEWIPC) and libc.unshare(least):
        return False
    for name, line in (("setgroups", "deny"), ("uid_map", f"{user} {user} 1"), ("gid_map", f"{group} {group} 1")):
        if not write(f"/proc/self/{name}", line):
            return True  # it then runs as nobody, and still without a network
    return True


def write(path: str, text: str) -> bool:
    try:
        with open(path, "w", encoding="ascii") as file:
            file.write(text)
    except OSError:
        return False
    return True


def go_on_in_child(libc: ctypes.CDLL) -> None:
    """Fork; the child returns, this process ends as the child does, and takes it along when it is killed."""
    child = os.fork()
    if not child:
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        return
    libc.prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)  # nobody looks into it
    while True:
        ended, status = os.waitpid(-1, 0)
        if ended == child:
            os._exit(os.waitstatus_to_exitcode(status) & 0xFF)


def build_root(libc: ctypes.CDLL, scratch: str, readable: list[str]) -> bool:
    """Make a root folder of what may be read, empty otherwise, and of a scratch with room for so much; move into it.

    Whether it could; otherwise nothing has changed but in `scratch`.
    """

    def mount(source: str, target: str, kind: str, flags: int, data: str = "") -> bool:
        words = (None if not word else os.fsencode(word) for word in (source, target, kind))
        return not libc.mount(*words, ctypes.c_ulong(flags), os.fsencode(data) if data else None)

    if not mount("", "/", "", MS_REC | MS_PRIVATE):
        return False
    if not mount("tmpfs", scratch, "tmpfs", MS_NOSUID | MS_NODEV, f"size={SCRATCH_BYTES},nr_inodes={SCRATCH_FILES}"):
        return False
    for path in (*readable, *DEVICES):
        source, target = os.path.realpath(path), scratch + path
        if os.path.isdir(source):
            os.makedirs(target, exist_ok=True)
        elif os.path.exists(source) and not os.path.exists(target):
            os.makedirs(os.path.dirname(target), exist_ok=True)
            os.close(os.open(target, os.O_CREAT, 0o600))
        if not os.path.exists(source) or os.path.samefile(source, target):
            continue  # it is not there, or in a folder that is there already
        if not mount(source, target, "", MS_BIND | MS_REC):
            return False
        held = os.statvfs(target).f_flag & (MS_NOSUID | MS_NODEV | MS_NOEXEC)  # what a namespace may not take away
        mount("", target, "", MS_REMOUNT | MS_BIND | MS_RDONLY | held)
    for folder in (scratch, SHARED_MEMORY, "/proc"):
        os.makedirs(scratch + folder, exist_ok=True)
    quiet = MS_NOSUID | MS_NODEV | MS_NOEXEC
    if mount("proc", f"{scratch}/proc", "proc", quiet):
        write(f"{scratch}/proc/sys/kernel/pid_max", str(LEAST_PID_MAX))
        mount("", f"{scratch}/proc", "", MS_REMOUNT | MS_BIND | MS_RDONLY | quiet)
    os.chdir(scratch)
    if libc.pivot_root(b".", b"."):
        return False
    libc.umount2(b".", MNT_DETACH)
    os.chdir("/")
    return True


def restrict(libc: ctypes.CDLL, writable: list[str], readable: list[str]) -> bool:
    """Forbid every read outside of both and every write outside `writable`; whether the kernel could (Landlock)."""
    version = libc.syscall(CREATE_RULESET, None, ctypes.c_size_t(0), JUST_THE_VERSION)
    rights = FIRST_RIGHTS | (REFER if version >= 2 else 0) | (TRUNCATE if version >= 3 else 0)
    handled = (ctypes.c_uint64 * 3)(rights, TCP, SCOPES)
    size = 24 if version >= 6 else 16 if version >= 4 else 8
    rules = libc.syscall(CREATE_RULESET, ctypes.byref(handled), ctypes.c_size_t(size), 0)
    if rules < 0:
        return False
    allowed = {path: EXECUTE | FILE_READ | DIR_READ for path in (*readable, "/proc")}
    allowed |= dict.fromkeys(DEVICES, FILE_READ) | {"/dev/null": FILE_READ | FILE_WRITE}
    for path, access in (allowed | dict.fromkeys(writable, rights)).items():
        try:
            place = os.open(path, os.O_PATH)
        except OSError:
            continue
        if not os.path.isdir(path):
            access &= EXECUTE | FILE_READ | FILE_WRITE
        rule = access.to_bytes(8, sys.byteorder) + place.to_bytes(4, sys.byteorder)
        failed = libc.syscall(ADD_RULE, rules, 1, (ctypes.c_char * len(rule)).from_buffer_copy(rule), 0)
        os.close(place)
        if failed:
            return False
    libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    return bool(libc.syscall(RESTRICT_SELF, rules, 0) == 0)


def drop_capabilities(libc: ctypes.CDLL) -> None:
    """Give up every privilege for good."""
    for capability in range(64):
        libc.prctl(PR_CAPBSET_DROP, capability, 0, 0, 0)
    libc.capset((ctypes.c_uint32 * 2)(CAPABILITY_VERSION, 0), (ctypes.c_uint32 * 6)())


def counts_own_processes() -> bool:
    """Whether a user namespace has a count of processes of its own (Linux 5.14)."""
    release = os.uname().release.split(".")
    return tuple(int(part) for part in release[:2] if part.isdigit()) >= (5, 14)


def main() -> None:
    seconds, memory, scratch, folder, listed, *program = sys.argv[1:]
    readable = [path for path in listed.split(os.pathsep) if path]
    writable, has_left = [scratch], False
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        has_left = leave(libc)
        if has_left:
            go_on_in_child(libc)  # the first process of the namespace: with it, all that the program started ends
            writable += [SHARED_MEMORY] if build_root(libc, scratch, readable) else []
            go_on_in_child(libc)  # the program is not the first: that one does not end as the program wants
        os.setsid()
        write("/proc/self/oom_score_adj", "1000")  # where memory is short, it goes first
        restrict(libc, writable, readable)
        drop_capabilities(libc)
    limit(float(seconds), int(memory), has_left and counts_own_processes())
    os.chdir(folder)
    os.execv(program[0], program)


if __name__ == "__main__":
    main()
