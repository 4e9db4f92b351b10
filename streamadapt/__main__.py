"""`python -m streamadapt`."""

import sys

from streamadapt.cli import main

sys.exit(main())
