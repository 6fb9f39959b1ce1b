"""Every test runs under the strictest settings that JAX offers, on two CPU devices."""

import os
import shutil
import signal
import tempfile
from pathlib import Path

import jax
import pytest
from hypothesis import settings

# A worker and the processes that its tests start compile each program once among them. Workers
# share no entries: JAX writes one in place, so that another process could read half of it.
FIRST_PROCESS = "IWAE_TESTS_PROGRAMS" not in os.environ
if FIRST_PROCESS:
    os.environ["IWAE_TESTS_PROGRAMS"] = tempfile.mkdtemp(prefix="iwae-programs-")
PROGRAMS = Path(os.environ["IWAE_TESTS_PROGRAMS"]) / os.environ.get("PYTEST_XDIST_WORKER", "main")
os.environ["JAX_COMPILATION_CACHE_DIR"] = str(PROGRAMS)
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
jax.config.update("jax_compilation_cache_dir", str(PROGRAMS))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)

os.environ["JAX_NUM_CPU_DEVICES"] = "2"  # for commands, on any number of cores
jax.config.update("jax_num_cpu_devices", 2)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_debug_key_reuse", True)

# The first example pays for the compilation, and a test that fails once should fail again.
settings.register_profile("iwae", deadline=None, derandomize=True)
settings.load_profile("iwae")


def pytest_collection_modifyitems(items):
    """Long tests are given the time that they need on busy cores."""
    for item in items:
        if item.get_closest_marker("slow"):
            item.add_marker(pytest.mark.timeout(1800))


def pytest_unconfigure():
    """The programs are of no use to another test run, of other code."""
    if FIRST_PROCESS:
        shutil.rmtree(os.environ["IWAE_TESTS_PROGRAMS"], ignore_errors=True)


compiled = {"quickly": False}
"""How the programs in JAX's caches were compiled."""


@pytest.fixture(scope="module", autouse=True)
def own_programs(request):
    """No module runs programs that another one compiled otherwise: they round otherwise."""
    marks = request.node.iter_markers("usefixtures")
    quickly = any("quick_compilation" in mark.args for mark in marks)
    if quickly != compiled["quickly"]:
        jax.clear_caches()
        compiled["quickly"] = quickly


MAPS = 25_000
"""Pieces of memory that a worker may map, of 65,530 that Linux allows; each program has several."""


@pytest.fixture(autouse=True)
def few_programs():
    """Compiled programs are let go before there are so many that the next one would crash."""
    yield
    maps = Path("/proc/self/maps")
    if maps.exists() and maps.read_bytes().count(b"\n") > MAPS:
        jax.clear_caches()


@pytest.fixture(scope="module")
def quick_compilation(own_programs):  # noqa: ARG001 - must come first
    """For programs that are run only once: less time to compile them, slower code."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture
def ctrl_c():
    """Python's handler of Ctrl-C, also where the tests run in the background, which ignores it."""
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
