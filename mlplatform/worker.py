"""`python -m mlplatform.worker RUN_FOLDER`: what torchrun and srun start for each rank."""

import os
import sys

from mlplatform.runs import slurm_task

if __name__ == "__main__":
    slurm_task.begin(os.environ)  # before anything heavy: a signal that comes meanwhile is remembered
    from mlplatform.runs.worker import main

    sys.exit(main(sys.argv[1:]))
