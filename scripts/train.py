"""`python scripts/train.py [OVERRIDES]` is `mlplatform train [OVERRIDES]`."""

import sys

from mlplatform.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
