"""`mlplatform ui`: the runs' pages on this machine, until Ctrl-C."""

from __future__ import annotations

from mlplatform.cli.arguments import Arguments, suggest
from mlplatform.cli.runs import outputs
from mlplatform.errors import RunError

PORT = 8765


def ui(arguments: Arguments) -> None:
    """Serve the pages of the runs under outputs/ on 127.0.0.1."""
    from mlplatform.runs.report.serving import Server

    arguments.plain(most=0)
    folder, port = outputs(arguments), arguments.whole("port", PORT)
    if port > 65535:
        raise RunError(f"--port {port}: it should be at most 65535")
    if not folder.is_dir():
        raise RunError(f"{folder}: no such folder; `mlplatform train` makes one, --outputs names another")
    with Server(folder, port) as server:
        print(
            f"{server.address}   the runs of {folder}/, read only, for this machine alone; Ctrl-C stops it", flush=True
        )
        suggest("mlplatform report last")
        server.serve_forever()
