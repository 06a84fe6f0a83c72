"""`python -m tango_vlmeval` is run.py from anywhere."""

import sys

from tango_vlmeval.command import main

sys.exit(main())
