"""What the shell of a job does before the job's own work."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from typing import Any

from mlplatform.errors import SpecError
from mlplatform.registry import Text, block
from mlplatform.runs.secrets import MASK


@block("shell/bash")
class Bash:
    """Lines of bash that stand before a job's work, in this order.

    Args:
        modules: environment modules to load.
        variables: environment variables to set. Secret ones come through the environment of sbatch and stand in no
            file.
        lines: further lines, as bash reads them.
    """

    def __init__(
        self,
        *,
        modules: list[Text] = [],  # noqa: B006  (read as data, never changed)
        variables: dict[str, Any] = {},  # noqa: B006
        lines: list[Text] = [],  # noqa: B006
    ) -> None:
        if wrong := [name for name in variables if not re.fullmatch(r"[A-Za-z_]\w*", str(name))]:
            raise SpecError(problems=[("variables", f"'{wrong[0]}' can't be a variable's name")])
        self.modules, self.variables, self.lines = modules, variables, lines

    def written(self, shown: Mapping[str, Any]) -> list[str]:
        """Return the lines.

        Args:
            shown: these settings as they may be shown, with secrets masked.

        Raises:
            SpecError: one of `lines` holds a secret.
        """
        if MASK in (shown.get("lines") or []):
            told = "a line holds a secret, and the script can be read by others; put it into launcher.shell.variables"
            raise SpecError(problems=[("launcher.shell.lines", told)])
        variables = (shown.get("variables") or {}).items()
        secret = "is secret: it comes from the environment of sbatch"
        return [
            *(f"module load {shlex.quote(name)}" for name in self.modules),
            *(f"# {k} {secret}" if v == MASK else f"export {k}={shlex.quote(str(v))}" for k, v in variables),
            *self.lines,
        ]
