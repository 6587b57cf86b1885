"""``python -m leaveout``: the command line."""

import sys

from leaveout.cli import main

sys.exit(main())
