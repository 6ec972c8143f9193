"""`python -m llorch_scheduler.simulator`"""

import sys

from llorch_scheduler.simulator.command import main

if __name__ == "__main__":
    sys.exit(main())
