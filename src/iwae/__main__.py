"""`python -m iwae` and `iwae`: the command line, with Ctrl-C caught from its first import on."""

import gc
import sys


def main() -> int:
    """Run the command line; returns the exit status."""
    try:
        from iwae.cli import main as run

        return run()
    except KeyboardInterrupt:  # while modules are imported; later `run` catches it
        print("interrupted", file=sys.stderr)
        return 130
    finally:
        gc.freeze()  # all goes with the process: else Python looks for garbage in it first


if __name__ == "__main__":
    sys.exit(main())
