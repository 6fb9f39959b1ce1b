"""Entry point of `iwae` and `python -m iwae`, with Ctrl-C handled from the first import."""

import gc
import sys


def main() -> int:
    """Run the command line and return the exit status."""
    try:
        from iwae.cli import main as run

        return run()
    except KeyboardInterrupt:  # during imports; afterwards `run` catches it
        print("interrupted", file=sys.stderr)
        return 130
    finally:
        gc.freeze()  # the process ends here: skip the final garbage collection


if __name__ == "__main__":
    sys.exit(main())
