"""`mlplatform doctor`: versions, devices, and what is missing."""

from __future__ import annotations

import json
import os
import platform
import shutil
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from mlplatform import places
from mlplatform.cli.arguments import Arguments, suggest

NEEDED = ("torch", "lightning", "hydra-core", "safetensors", "tokenizers", "huggingface_hub", "pyarrow")
EXTRAS = ("tensorboard", "wandb")


def doctor(arguments: Arguments) -> int:
    """Print what there is to work with. Returns 2 when something needed is missing."""
    arguments.plain(most=0)
    found = {name: _version(name) for name in NEEDED}
    report: dict[str, Any] = {
        "mlplatform": _version("mlplatform"),
        "python": platform.python_version(),
        "packages": found,
        "extras": {name: _version(name) for name in EXTRAS},
        "devices": _devices() if found["torch"] else [],
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "conf": str(places.conf()),
        "cache": str(places.cache()),
        "free_gb": round(shutil.disk_usage(os.curdir).free / 1e9, 1),
        "slurm": shutil.which("sbatch") is not None,
    }
    missing = [name for name, there in found.items() if there is None]
    if arguments.flag("json"):
        print(json.dumps(report, indent=2))
    else:
        _print(report)
    if missing:
        suggest(f"pip install {' '.join(missing)}")
        return 2
    suggest("mlplatform train")
    return 0


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _devices() -> list[str]:
    import torch

    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    if torch.backends.mps.is_available():
        names.append("mps")
    return [*names, "cpu"]


def _print(report: dict[str, Any]) -> None:
    print(f"mlplatform {report['mlplatform']}  python {report['python']}")
    print("packages   " + "  ".join(f"{name} {there or 'MISSING'}" for name, there in report["packages"].items()))
    lacks = 'no (pip install "mlplatform[{}]")'
    print("extras     " + "  ".join(f"{n} {there or lacks.format(n)}" for n, there in report["extras"].items()))
    cores, slurm = f"({report['cores']} cores)", "yes" if report["slurm"] else "no"
    print(f"devices    {', '.join(report['devices'])} {cores}   slurm: {slurm}")
    print(f"conf       {report['conf']}\ncache      {report['cache']}   free here: {report['free_gb']} GB")
