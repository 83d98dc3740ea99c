"""On which devices a run computes, and how its processes share the work.

A strategy never starts processes: whoever launches the run does (torchrun, srun), and says so in the environment.
"""

from mlplatform.training.strategies.place import Accelerator, Place

__all__ = ["Accelerator", "Place"]
