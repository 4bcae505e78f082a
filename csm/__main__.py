"""`python -m csm`."""

import sys

from csm.cli import main

sys.exit(main())
