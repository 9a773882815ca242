"""Python runs this at its start where the folder is on PYTHONPATH: the clock that Tether sees is then wrong.

WRONG_CLOCK_AHEAD: by how many seconds it is ahead, below 0: behind.
"""

import os
import time

from eventcore import clock

_ahead = float(os.environ["WRONG_CLOCK_AHEAD"])
clock.wall = lambda: time.time() + _ahead
