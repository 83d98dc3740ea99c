"""The root of a run's config, and all that is checked before anything is written."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import psutil
import torch
from torch import nn

from mlplatform.data.module import DataModule
from mlplatform.data.tokens import build_tokenizer
from mlplatform.errors import CheckpointError, RunError, SpecError
from mlplatform.models import build
from mlplatform.registry import Natural, Spec, Text, block
from mlplatform.training import optimizers
from mlplatform.training.engine import preflight
from mlplatform.training.strategies import Place

ADAM_BYTES = 16
"""A parameter in fp32, its gradient, and two moments of an optimizer."""


@block("run/run")
class Experiment:
    """A whole run: what `mlplatform train` composes.

    Args:
        experiment: the folder under `outputs` the run goes to.
        seed: of the initial weights, the order of the data, dropout and masking.
        logger: a tracker beside metrics.jsonl.
        init_from: a folder of Hugging Face's format, or one of our run folders, whose weights training starts from.
        plugins: installed packages whose blocks the config may name.
        prompt: what the sample at the end of a causal model's run goes on from.
    """

    def __init__(
        self,
        *,
        model: Annotated[Spec, "model"],
        data: Annotated[Spec, "data"],
        tokenizer: Annotated[Spec, "tokenizer"],
        batch: Annotated[Spec, "batch"],
        task: Annotated[Spec, "task"],
        optimizer: Annotated[Spec, "optimizer"],
        schedule: Annotated[Spec, "schedule"],
        strategy: Annotated[Spec, "strategy"],
        trainer: Annotated[Spec, "trainer"],
        logger: Annotated[Spec, "logger"] | None = None,
        experiment: Text = "default",
        outputs: Text = "outputs",
        seed: Natural = 0,
        init_from: Text | None = None,
        prompt: str = "\n",
        plugins: list[Text] | None = None,
    ) -> None:
        if experiment in (".", "..") or "/" in experiment:
            raise SpecError(f"experiment={experiment!r} is no folder name")
        self.model, self.data, self.tokenizer, self.batch, self.task = model, data, tokenizer, batch, task
        self.optimizer, self.schedule, self.strategy, self.trainer = optimizer, schedule, strategy, trainer
        self.logger, self.experiment, self.outputs = logger, experiment, Path(outputs)
        self.seed, self.init_from, self.prompt = seed, init_from, prompt
        self._tokenizer: Any = None
        self._data: DataModule | None = None

    def check(self) -> Place:
        """Check what can be known before data are read or anything is written; return where this process stands.

        Raises:
            SpecError: the machine lacks what is asked, blocks don't fit, or the task doesn't fit the model.
            RunError: the model with its gradients and optimizer is larger than the machine's memory.
        """
        place = preflight(self.trainer, self.strategy)
        shell = build(self.model, device="meta")
        self.task.build(model=shell)
        optimizers.build(self.optimizer, shell)
        self.schedule.build()
        self.trackers()
        if self.init_from is not None and not Path(self.init_from).is_dir():
            raise CheckpointError(f"init_from={self.init_from!r}: no such folder")
        self._check_memory(shell, place)
        return place

    def _check_memory(self, shell: nn.Module, place: Place) -> None:
        count = sum(p.numel() for p in shell.parameters())
        if place.device == "cuda":
            need, there = count * ADAM_BYTES, torch.cuda.get_device_properties(0).total_memory
        else:  # processes on one machine share its memory
            need, there = count * ADAM_BYTES * place.devices, psutil.virtual_memory().total
        if need > there:
            raise RunError(
                f"model: {count / 1e9:.2f}B parameters need {need / 2**30:.0f} GiB with gradients and optimizer, "
                f"there are {there / 2**30:.0f}; take a smaller size (`mlplatform config groups model` lists them)"
            )

    def prepare(self, place: Place) -> DataModule:
        """Read the data and train or load the tokenizer: both are cached. Raises DataError."""
        if self._data is None:
            source = self.data.build()
            rows = self.model.data.get("trunk", {}).get("input", {}).get("vocab")
            self._tokenizer = build_tokenizer(self.tokenizer, source, rows)
            length = self.batch["length"]
            collator = self.task.build(model=build(self.model, device="meta")).collator(self._tokenizer, length)
            self._data = DataModule(source, self._tokenizer, self.batch, collator, self.seed, place.rank, place.world)
            self._data.setup()
        return self._data

    def trackers(self) -> list[Any]:
        """Return the trackers. Raises SpecError when one's package is not installed."""
        built = self.logger.build() if self.logger else []
        return built if isinstance(built, list) else [built]

    @property
    def tokens(self) -> Any:
        """The tokenizer, once `prepare` was called."""
        return self._tokenizer

    def build_model(self) -> nn.Module:
        """Build the model, with the weights of `init_from` where it is set.

        Raises:
            CheckpointError: `init_from` is damaged or of another model.
        """
        if self.init_from is None:
            return build(self.model, seed=self.seed)
        from mlplatform.runs.export import load_run

        folder = Path(self.init_from)
        if (folder / "run.json").is_file():
            loaded = load_run(folder, dtype=torch.float32)
        else:
            from mlplatform.interop import load

            head = self.model.data.get("head")
            loaded = load(folder, lambda _: self.model.data, dtype=torch.float32, head=head)
        ours = {name: p.shape for name, p in build(self.model, device="meta").named_parameters()}
        theirs = {name: p.shape for name, p in loaded.named_parameters()}
        if ours != theirs:
            name = next(n for n in (*ours, *theirs) if ours.get(n) != theirs.get(n))
            raise CheckpointError(
                f"init_from={self.init_from}: {name} is {list(theirs.get(name, ()))} there and "
                f"{list(ours.get(name, ()))} in this run's model; choose the model's YAML of that size"
            )
        return loaded.train()
