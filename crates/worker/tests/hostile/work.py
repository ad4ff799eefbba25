"""Work that will not die, one way each: `work.py KIND`. It says `$DIR/$NAME.ready` when the worst of it is there.

What it needs beside Python is the kernel: system calls are made through the C library.
"""

import ctypes
import os
import platform
import signal
import sys
import threading
import time

LIBC = ctypes.CDLL(None, use_errno=True)
DIR, NAME = os.environ.get("DIR", ""), os.environ.get("NAME", "")
# A user that nobody else is: root's bomb is bounded by the number of processes of this one, for root itself has no bound.
ANOTHER = 61_234
# So many processes has a bomb, and whoever else its user runs.
MOST = 200
SYS_CLONE, SYS_EXIT = {"x86_64": (56, 60), "aarch64": (220, 93)}[platform.machine()]
CLONE_PARENT = 0x8000
PR_SET_NAME, PR_SET_CHILD_SUBREAPER = 15, 36


def ready():
    with open(f"{DIR}/{NAME}.ready", "a"):
        pass


def wait_for_ever():
    while True:
        signal.pause()


def be_deaf():
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, signal.SIG_IGN)


def detached(act):
    """Runs it in a grandchild, whose parent has ended, in a session of its own."""
    if os.fork() == 0:
        os.setsid()
        if os.fork() != 0:
            os._exit(0)
        be_deaf()
        act()
        wait_for_ever()
    os.wait()


def sibling():
    """A child of its parent, not of its own, and again one of that: descent from the main process shows none of them."""
    main = os.getpid()
    for _ in range(2):
        if LIBC.syscall(SYS_CLONE, CLONE_PARENT | signal.SIGCHLD, 0, 0, 0, 0) != 0:
            break
        os.setsid()
        be_deaf()
    if os.getpid() == main:
        wait_for_ever()
    ready()
    wait_for_ever()


def hidden():
    """It overwrites its environment, and is an orphan."""
    def act():
        fields = open("/proc/self/stat").read().rsplit(")", 1)[1].split()
        begin, end = int(fields[47]), int(fields[48])
        ctypes.memset(begin, ord("x"), end - begin)
        assert open("/proc/self/environ", "rb").read().strip(b"x") == b""
        ready()

    detached(act)
    wait_for_ever()


def closed():
    """No session, group or file of its beginning is left, and its name reads like the fields of another process."""
    def act():
        LIBC.prctl(PR_SET_NAME, b") R 1 1\n1 (", 0, 0, 0)
        ready()
        os.closerange(0, 4096)

    detached(act)
    LIBC.prctl(PR_SET_NAME, b"a) Z 0 0 (\n", 0, 0, 0)
    os.closerange(0, 4096)
    wait_for_ever()


def headless():
    """Its first thread has ended, so that it is shown as a zombie; another goes on."""
    def act():
        threading.Thread(target=headless_ready).start()
        LIBC.syscall(SYS_EXIT, 0)

    detached(act)
    wait_for_ever()


def headless_ready():
    while " Z " not in open("/proc/self/stat").read():
        time.sleep(0.001)
    ready()
    while True:
        time.sleep(1)


def adopts():
    """It adopts the orphans of its own descendants."""
    LIBC.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    be_deaf()
    detached(lambda: detached(ready))
    wait_for_ever()


def traced():
    """A child that is stopped by its tracer, which does not let it go on."""
    be_deaf()
    if os.fork() == 0:
        LIBC.ptrace(0, 0, 0, 0)
        os.setsid()
        os.kill(os.getpid(), signal.SIGSTOP)
        wait_for_ever()
    os.waitpid(-1, os.WUNTRACED)
    ready()
    wait_for_ever()


def bomb():
    """Each process makes others, each in a session of its own, until its user may have no more; and whenever one dies, again."""
    import resource

    if os.getuid() == 0:
        os.setgroups([])
        os.setresgid(ANOTHER, ANOTHER, ANOTHER)
        os.setresuid(ANOTHER, ANOTHER, ANOTHER)
    resource.setrlimit(resource.RLIMIT_NPROC, (MOST, MOST))
    be_deaf()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    is_full = False
    while True:
        try:
            if os.fork() == 0:
                os.setsid()
        except OSError:
            if not is_full:
                is_full = True
                ready()
            time.sleep(0.03)


def parent_of(pid):
    return int(open(f"/proc/{pid}/stat").read().rsplit(")", 1)[1].split()[1])


def strikes():
    """It sends a signal to its parent, or to its parent's parent, once. What it leaves behind holds a lock that the next one asks for."""
    import fcntl

    lock = open(f"{DIR}/{NAME}.lock", "w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        with open(f"{DIR}/{NAME}.overlap", "w"):
            pass
    target = os.getppid()
    for _ in range(int(sys.argv[3])):
        target = parent_of(target)
    detached(lambda: None)
    be_deaf()
    if not os.path.exists(f"{DIR}/{NAME}.ready"):
        ready()
        os.kill(target, getattr(signal, sys.argv[2]))
    wait_for_ever()


def watch():
    """Ends what bears a limit in this range as soon as its standard input ends: its test has died."""
    low, high = int(sys.argv[2]), int(sys.argv[3])
    sys.stdin.read()
    end = time.monotonic() + 20
    while time.monotonic() < end:
        found = [pid for pid in os.listdir("/proc") if pid.isdigit() and low <= limit_of(pid) <= high]
        for number in (signal.SIGSTOP, signal.SIGKILL):
            for pid in found:
                try:
                    os.kill(int(pid), number)
                except OSError:
                    pass
        if not found:
            time.sleep(0.2)


def limit_of(pid):
    try:
        for line in open(f"/proc/{pid}/limits"):
            if line.startswith("Max msgqueue size"):
                words = line.split()
                return int(words[4]) if words[4].isdigit() else 0
    except OSError:
        pass
    return 0


if __name__ == "__main__":
    {act.__name__: act for act in (sibling, hidden, closed, headless, adopts, traced, bomb, strikes, watch)}[sys.argv[1]]()
