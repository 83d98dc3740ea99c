"""Being asked to stop, also where a parent kept signals from itself."""

from __future__ import annotations

import os
import signal

from mlplatform.training.signals import STOPPING, StopSignals


def test_a_mask_that_was_inherited_keeps_no_signal_away() -> None:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)
    try:
        with StopSignals() as signals:
            os.kill(os.getpid(), signal.SIGTERM)
            assert signals.caught == "SIGTERM"
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
