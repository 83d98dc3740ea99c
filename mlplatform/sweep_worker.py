"""`python -m mlplatform.sweep_worker SWEEP_FOLDER [--worker N]`: works on a sweep, here or as a task of a Slurm job."""

import os
import sys

from mlplatform.runs import slurm_task

if __name__ == "__main__":
    slurm_task.begin(os.environ)  # before anything heavy: a signal that comes meanwhile is remembered
    from mlplatform.cli.sweep_work import main

    sys.exit(main(sys.argv[1:]))
