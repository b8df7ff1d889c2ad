"""What the tests run beside them: it gives way, counts in a file, and ends with its parent."""

import sys
import time
from pathlib import Path

from sam3dnet.annotation.background import give_way

if __name__ == "__main__":
    give_way()
    print("begun", flush=True)
    for number in range(10_000):
        Path(sys.argv[1]).write_text(str(number))
        time.sleep(0.01)
