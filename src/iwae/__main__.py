"""`python -m iwae` is `iwae`."""

import sys

from iwae.cli import main

sys.exit(main())
