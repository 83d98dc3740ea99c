"""`python -m mlplatform.worker RUN_FOLDER`: what torchrun and srun start for each rank."""

import sys

from mlplatform.runs.worker import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
