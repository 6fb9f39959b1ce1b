"""A function that is called before every write within a folder, whoever writes: Python, C or Rust.

A small shared library is compiled and loaded before all others (LD_PRELOAD, so this needs Linux and
a C compiler). It stands before the system's functions that write, create and rename.
"""

import ctypes
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

SOURCE = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

static char folder[4096];
static int (*hook)(void);
static long offset;
static __thread int inside;

void fire_hook(const char *where, int (*function)(void)) {
    hook = 0;
    snprintf(folder, sizeof folder, "%s", where);
    hook = function;
}

void fire_clock(long seconds) { offset = seconds; }

static int refused(const char *path) {
    if (!hook || inside || strncmp(path, folder, strlen(folder))) return 0;
    inside = 1;
    int number = hook();
    inside = 0;
    if (number < 0) {  // not from Python, whose handler would run within the hook
        raise(-number);
        number = 0;
    }
    if (number) errno = number;
    return number;
}

static int refused_file(int file) {
    if (!hook || inside) return 0;
    char name[64], path[4096];
    snprintf(name, sizeof name, "/proc/self/fd/%d", file);
    ssize_t length = readlink(name, path, sizeof path - 1);
    if (length < 0) return 0;
    path[length] = 0;
    return refused(path);
}

#define WRITING(type, name, parameters, file, ...) \
    type name parameters { \
        static type (*real) parameters; \
        if (!real) real = dlsym(RTLD_NEXT, #name); \
        return refused_file(file) ? -1 : real(__VA_ARGS__); \
    }

WRITING(ssize_t, write, (int f, const void *b, size_t n), f, f, b, n)
WRITING(ssize_t, pwrite, (int f, const void *b, size_t n, off_t o), f, f, b, n, o)
WRITING(ssize_t, pwrite64, (int f, const void *b, size_t n, off64_t o), f, f, b, n, o)
WRITING(ssize_t, writev, (int f, const struct iovec *v, int n), f, f, v, n)
WRITING(int, ftruncate, (int f, off_t n), f, f, n)
WRITING(int, ftruncate64, (int f, off64_t n), f, f, n)
WRITING(int, fsync, (int f), f, f)

#define NAMING(name, parameters, path, ...) \
    int name parameters { \
        static int (*real) parameters; \
        if (!real) real = dlsym(RTLD_NEXT, #name); \
        return refused(path) ? -1 : real(__VA_ARGS__); \
    }

NAMING(mkdir, (const char *p, mode_t m), p, p, m)
NAMING(rename, (const char *p, const char *q), q, p, q)

#define OPENING(name) \
    int name(const char *path, int flags, ...) { \
        static int (*real)(const char *, int, ...); \
        if (!real) real = dlsym(RTLD_NEXT, #name); \
        va_list more; \
        va_start(more, flags); \
        mode_t mode = (flags & (O_CREAT | O_TMPFILE)) ? va_arg(more, mode_t) : 0; \
        va_end(more); \
        return (flags & O_CREAT) && refused(path) ? -1 : real(path, flags, mode); \
    }

OPENING(open)
OPENING(open64)

int clock_gettime(clockid_t clock, struct timespec *time) {
    static int (*real)(clockid_t, struct timespec *);
    if (!real) real = dlsym(RTLD_NEXT, "clock_gettime");
    int status = real(clock, time);
    if (clock == CLOCK_REALTIME) time->tv_sec += offset;
    return status;
}
"""

LOADED = "IWAE_CAMPAIGN_HOOK"
_kept = []


def load() -> None:
    """Start this program again with the library before all others, unless it has been."""
    if LOADED in os.environ:
        return
    folder = Path(tempfile.mkdtemp(prefix="iwae-hook-"))
    (folder / "hook.c").write_text(SOURCE)
    words = ["cc", "-shared", "-fPIC", "-O1", "-o", folder / "hook.so", folder / "hook.c", "-ldl"]
    subprocess.run(words, check=True)
    environment = os.environ | {LOADED: str(folder), "LD_PRELOAD": str(folder / "hook.so")}
    os.execve(sys.executable, [sys.executable, *sys.argv], environment)  # noqa: S606


def before_each_write(folder: Path, function: Callable[[], int] | None) -> None:
    """Call a function before each write in a folder; it returns 0, an error, or minus a signal."""
    library = ctypes.CDLL(f"{os.environ[LOADED]}/hook.so")
    kind = ctypes.CFUNCTYPE(ctypes.c_int)
    called = kind(function) if function is not None else kind()
    _kept[:] = [called]
    library.fire_hook(str(folder).encode(), called)


def set_clock(seconds: int) -> None:
    """Move the clock, as seen by this process, away from the true time."""
    ctypes.CDLL(f"{os.environ[LOADED]}/hook.so").fire_clock(ctypes.c_long(seconds))
