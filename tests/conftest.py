"""Runs every test under the strictest settings of JAX, on two CPU devices."""

import gc
import itertools
import os
import platform
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

import jax
import pytest
from hypothesis import settings

KEPT = Path(__file__).parents[1] / ".jax_cache" / platform.node() / "kept"
"""Compiled programs of earlier test runs, which save a third of the time."""
MAX_KEPT_BYTES = 500e6
"""Size of the kept programs above which they are deleted."""


def make_program_folder():
    """Make a folder for the compiled programs of this run; delete those that killed runs left."""
    KEPT.mkdir(parents=True, exist_ok=True)
    for old in KEPT.parent.glob("run-*"):
        if time.time() - old.stat().st_mtime > 86_400:
            shutil.rmtree(old, ignore_errors=True)
    return tempfile.mkdtemp(prefix="run-", dir=KEPT.parent)


# A worker and the processes that its tests start compile each program once among them. Workers
# share no entries: JAX writes one in place, so that another process could read half of it.
FIRST_PROCESS = "IWAE_TESTS_PROGRAMS" not in os.environ
if FIRST_PROCESS:
    os.environ["IWAE_TESTS_PROGRAMS"] = make_program_folder()
RUN_PROGRAMS = Path(os.environ["IWAE_TESTS_PROGRAMS"])
WORKER_PROGRAMS = RUN_PROGRAMS / os.environ.get("PYTEST_XDIST_WORKER", "main")
if not WORKER_PROGRAMS.exists():
    shutil.copytree(KEPT, WORKER_PROGRAMS, copy_function=os.link)
os.environ["JAX_COMPILATION_CACHE_DIR"] = str(WORKER_PROGRAMS)
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
jax.config.update("jax_compilation_cache_dir", str(WORKER_PROGRAMS))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
# Otherwise the name of the folder, which differs between runs, is part of every key.
os.environ["JAX_PERSISTENT_CACHE_ENABLE_XLA_CACHES"] = "none"
jax.config.update("jax_persistent_cache_enable_xla_caches", "none")

# Programs are small and run few times: they are compiled with few optimisations, in one piece, by
# XLA's older code generator, in a fifth of the time. Commands that tests start do the same.
os.environ["XLA_FLAGS"] = " ".join(
    [
        *os.environ.get("XLA_FLAGS", "").split(),
        "--xla_cpu_use_fusion_emitters=false",
        "--xla_cpu_parallel_codegen_split_count=1",
    ]
)
os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"
jax.config.update("jax_disable_most_optimizations", True)

os.environ["JAX_NUM_CPU_DEVICES"] = "2"  # for commands, on any number of cores
jax.config.update("jax_num_cpu_devices", 2)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")

# The first example pays for the compilation, and a test that fails once should fail again.
settings.register_profile("iwae", deadline=None, derandomize=True)
settings.load_profile("iwae")


def pytest_collection_modifyitems(items):
    """Give slow tests the time that they need on busy cores."""
    for item in items:
        if item.get_closest_marker("slow"):
            item.add_marker(pytest.mark.timeout(1800))


def pytest_collection_finish():
    """Collect garbage less often, and not in modules: tracing makes many objects that are used."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(200_000, 20, 20)


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(exitstatus):
    """Keep the programs of a run that passed; in a failed one a crash may have truncated a file."""
    if not FIRST_PROCESS:
        return
    if exitstatus == 0:
        if sum(path.stat().st_size for path in KEPT.iterdir()) > MAX_KEPT_BYTES:
            shutil.rmtree(KEPT)
            KEPT.mkdir()
        for path in RUN_PROGRAMS.glob("*/*"):
            path.replace(KEPT / path.name)
    shutil.rmtree(RUN_PROGRAMS)


NUMERICS = {"models", "inference", "objectives", "evaluation", "training", "testing"}
"""Folders whose quick tests check for reused random keys."""


@pytest.fixture(scope="module", autouse=True)
def check_key_reuse(request):
    """Check for reused random keys; in the quick tests only for the numerics."""
    quick = request.config.option.markexpr == "not slow"
    jax.config.update("jax_debug_key_reuse", not quick or request.path.parent.name in NUMERICS)


MAX_MEMORY_MAPS = 40_000
"""Memory maps that a worker may have, of 65,530 that Linux allows; a program has several."""
TESTS = itertools.count(1)


@pytest.fixture(autouse=True)
def limit_compiled_programs():
    """Clear compiled programs before there are so many that the next one would crash.

    Only every twentieth test checks, since a check takes 20 ms.
    """
    yield
    maps = Path("/proc/self/maps")
    if next(TESTS) % 20 == 0 and maps.exists() and maps.read_bytes().count(b"\n") > MAX_MEMORY_MAPS:
        jax.clear_caches()


@pytest.fixture
def ctrl_c():
    """Python's handler of Ctrl-C, even if the tests run in the background, where it is ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield signal.default_int_handler
    signal.signal(signal.SIGINT, before)


CHROMIUM = Path("/usr/bin/chromium")


@pytest.fixture(scope="module")
def browser():
    """Headless Chromium; tests that need it are skipped where there is none."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs the package playwright")
    if not CHROMIUM.exists():
        pytest.skip(f"needs Chromium as {CHROMIUM}")
    options = """
        --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking
        --disable-component-update --disable-sync
    """.split()  # noqa: SIM905
    with sync_api.sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=CHROMIUM, args=options)
        yield launched
        launched.close()


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A folder as the hub, in place of the real library."""
    from shared_models import FakeHub

    fake = FakeHub(tmp_path / "hub")
    monkeypatch.setitem(sys.modules, "huggingface_hub", fake)
    monkeypatch.setitem(sys.modules, "huggingface_hub.errors", fake.errors)
    return fake
