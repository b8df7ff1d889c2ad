"""The job beside the annotation, with the priority of the tests, which keep all cores busy."""

import sys

from sam3dnet.annotation import background, job

if __name__ == "__main__":
    background.NICENESS = 0
    sys.exit(job.main())
