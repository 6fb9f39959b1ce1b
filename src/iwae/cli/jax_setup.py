"""JAX's settings for the commands: devices, and a cache of compiled programs of limited size."""

import contextlib
import gc
import os
from pathlib import Path

CACHE_BYTES = 2**30
"""Maximum size of the cache of compiled programs; the least recently used ones are removed."""


def set_up_jax() -> None:
    """Use float32 and one JAX device per CPU core, and cache compiled programs on disk."""
    # Imported and traced objects stay alive. With the default thresholds, garbage collection
    # traverses them so often that it takes a tenth of a short run.
    gc.set_threshold(50_000, 20, 100)
    import jax
    import platformdirs

    jax.config.update("jax_enable_x64", False)
    if "JAX_NUM_CPU_DEVICES" not in os.environ:
        jax.config.update("jax_num_cpu_devices", len(cores_for_jax()))
    cache = Path(platformdirs.user_cache_dir("iwae")) / "compiled"
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ and _is_writable(cache):
        jax.config.update("jax_compilation_cache_dir", str(cache))
        trim_jax_cache(cache, CACHE_BYTES)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


def trim_jax_cache(folder: Path, limit: int) -> None:
    """Remove the least recently used files of a folder until it holds at most `limit` bytes.

    JAX's own limit stops caching for good once a process is killed between its two writes of an
    entry.
    """
    files = []
    for path in folder.iterdir():
        with contextlib.suppress(FileNotFoundError):  # another process may trim too
            status = path.stat()
            files.append((max(status.st_atime, status.st_mtime), status.st_size, path))
    excess = sum(size for _, size, _ in files) - limit
    for _, size, path in sorted(files):
        if excess <= 0:
            break
        path.unlink(missing_ok=True)
        excess -= size


def cores_for_jax() -> list[int]:
    """CPU cores available to this process; all cores if the system does not report them."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def _is_writable(folder: Path) -> bool:
    """Whether files can be written to a folder, which is created if necessary."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    return os.access(folder, os.W_OK | os.X_OK)
