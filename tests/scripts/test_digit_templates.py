"""Templates laid along a string of digits: the string is found again."""

from __future__ import annotations

from types import ModuleType

import numpy as np

SCRIPT = "digit_templates.py"


def test_what_is_laid_is_what_was_joined(script: ModuleType) -> None:
    draw = np.random.default_rng(0)
    frames = draw.normal(size=(10, 6, 4))
    silence = np.full((3, 4), 5.0)
    said = [3, 3, 0, 7]
    heard = frames[said][:, [0, 1, 1, 2, 4, 5]]  # a frame held, another skipped
    string = np.concatenate([silence, *(part for digit in heard for part in (digit, silence))])
    string += 0.1 * draw.normal(size=string.shape)
    states = np.concatenate([silence[:1], *frames])
    costs = ((string[:, None] - states[None]) ** 2).mean(-1)
    cost, found = script.laid(costs, [6] * 10)
    assert found == said
    assert cost < script.PENALTY * len(said) + 0.02 * len(string)


def test_a_voice_is_heard_in_noise(script: ModuleType) -> None:
    draw = np.random.default_rng(0)
    turns = {"en_low": 0.2, "it_high": 1.1}

    def spoken(voice: str, digit: int) -> np.ndarray:
        return 0.4 * np.sin(np.arange(2400) * (turns[voice] + digit / 15))

    templates = {voice: [script.powers(spoken(voice, digit)) for digit in range(10)] for voice in turns}
    pause = np.zeros(1600)
    string = np.concatenate([pause, spoken("it_high", 2), pause, spoken("it_high", 9), pause])
    string += 0.01 * draw.standard_normal(len(string))
    assert script.heard(string.astype(np.float32), templates) == "due nove"
