"""Makes the miniatures importable, and keeps what they fetch and cache in a folder of the test's own."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
