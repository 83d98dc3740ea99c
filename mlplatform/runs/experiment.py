"""The root of a run's config, and all that is checked before anything is written."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import psutil
import torch
from torch import nn

from mlplatform.data.examples import Tools
from mlplatform.data.material import Material, RecordMaterial, documents
from mlplatform.data.mixture import RecordMixture, holds_records
from mlplatform.data.module import DataModule
from mlplatform.data.records import RecordSource
from mlplatform.data.tokens import build_tokenizer
from mlplatform.errors import RunError, SpecError, listing
from mlplatform.models import build
from mlplatform.models.costs import PRECISIONS
from mlplatform.models.share import Share
from mlplatform.models.start import Over, Start
from mlplatform.models.trained import adapter_alone
from mlplatform.registry import Natural, Spec, Text, block
from mlplatform.runs.launchers.local import Local
from mlplatform.runs.teacher import Teacher
from mlplatform.runs.trackers import trackers
from mlplatform.runs.weights import first_values, given, likewise
from mlplatform.training import optimizers
from mlplatform.training.engine import preflight
from mlplatform.training.freezing import freeze
from mlplatform.training.strategies import Place

log = logging.getLogger(__name__)
MOMENTS = {"adamw": 1.0, "muon": 0.5}
"""Share of AdamW's two moments that an optimizer keeps, by its kind; those not here keep next to nothing."""

Sizes = Callable[[], Iterable[tuple[str, Mapping[str, Any]]]]
"""Returns (name, spec) of the models there are."""


@block("run/run")
class Experiment:
    """A whole run: what `mlplatform train` composes.

    Args:
        experiment: the folder under `outputs` the run goes to.
        tokenizer, processor: what makes tokens of text, and the model's inputs of images or sound; null for none.
        seed: of the initial weights, the order of the data, dropout and masking.
        logger: a tracker beside metrics.jsonl.
        init_from: a folder of Hugging Face's format, or one of our run folders, whose weights training starts from.
        init_parts: the same for parts of the model: `{vision: clip/last, language: FOLDER}`; what is left starts as new
            (or as `init_from` has it).
        adapter: what trains on top of `init_from`, which stays as it is.
        teacher: the model the task learns from, where it learns from one.
        freeze: path patterns of what does not train (`trunk.input`, `vision.*`), read in order; `!` before one lets it
            train after all: `["*", "!head"]` is a linear probe.
        plugins: installed packages whose blocks the config may name.
        prompt: what the sample at the end of a causal model's run goes on from.
        sweep: how `mlplatform sweep` searches; one run does not look at it.
        launcher: where the run runs; null for here.
    """

    def __init__(
        self,
        *,
        model: Annotated[Spec, "model"],
        data: Annotated[Spec, "data"],
        batch: Annotated[Spec, "batch"],
        task: Annotated[Spec, "task"],
        optimizer: Annotated[Spec, "optimizer"],
        schedule: Annotated[Spec, "schedule"],
        strategy: Annotated[Spec, "strategy"],
        trainer: Annotated[Spec, "trainer"],
        tokenizer: Annotated[Spec, "tokenizer"] | None = None,
        processor: Annotated[Spec, "processor"] | None = None,
        logger: Annotated[Spec, "logger"] | None = None,
        experiment: Text = "default",
        outputs: Text = "outputs",
        seed: Natural = 0,
        init_from: Text | None = None,
        init_parts: dict[str, Text] = {},  # noqa: B006  (read as data, never changed)
        adapter: Annotated[Spec, "adapter"] | None = None,
        teacher: Annotated[Spec, "teacher"] | None = None,
        freeze: list[Text] = [],  # noqa: B006  (read as data, never changed)
        prompt: str = "\n",
        plugins: list[Text] | None = None,
        sweep: Annotated[Spec, "sweep"] | None = None,
        launcher: Annotated[Spec, "launcher"] | None = None,
    ) -> None:
        if experiment in (".", "..") or "/" in experiment:
            raise SpecError(f"experiment={experiment!r} is no folder name")
        self.model, self.data, self.tokenizer, self.batch, self.task = model, data, tokenizer, batch, task
        self.optimizer, self.schedule, self.strategy, self.trainer = optimizer, schedule, strategy, trainer
        self.logger, self.experiment, self.outputs = logger, experiment, Path(outputs)
        self.seed, self.init_from, self.prompt, self.processor = seed, init_from, prompt, processor
        self.adapter, self.freeze, self.init_parts = adapter, freeze, init_parts
        self.teacher: Teacher | None = teacher.build() if teacher is not None else None
        self.launcher: Any = Local() if launcher is None else launcher.build()
        self._tools = Tools()
        self._data: DataModule | None = None
        self._model: nn.Module | None = None

    def check(self, sizes: Sizes | None = None) -> Place:
        """Check what can be known before data are read or anything is written; return where this process stands.

        Args:
            sizes: the models there are, to name one that fits when this one does not.

        Raises:
            SpecError: the machine lacks what is asked, blocks don't fit, or the task doesn't fit the model.
            RunError: the model with its gradients and optimizer is larger than the machine's memory.
        """
        place, shell = self.check_processes()
        task = self.build_task(shell)
        optimizers.build(self.optimizer, shell)
        trackers(self.logger)
        self._check_batch(task)
        if self.launcher.here:
            self._check_memory(shell, place, sizes)
        learns = self.teacher is not None and self.teacher.layers is not None
        if learns and self.init_from is not None:
            told = "the student starts from the teacher's layers or from init_from; leave one away"
            raise SpecError(problems=[("teacher.layers", told)])
        if learns or self.init_from is not None or self.init_parts:
            self._model = self._start()
        return place

    def check_processes(self) -> tuple[Place, nn.Module]:
        """Check that the machine and the strategy fit the model; return the place, and the model without weights.

        Raises:
            SpecError: the machine lacks what is asked, or the strategy can't divide the model among the devices.
        """
        place = preflight(self.trainer, self.strategy, self.schedule, self.launcher.place)
        shell = self.shell()
        arrangement = self.strategy.build()
        arrangement.check_model(shell, self.optimizer, place)
        if self.teacher is not None:
            try:
                arrangement.check_blocks(self.teacher.shell(), place)
            except SpecError as error:
                raise SpecError(problems=[("teacher", told) for _, told in error.problems]) from None
        return place, shell

    def shell(self) -> nn.Module:
        """Return the model without weights, as it trains: parts of it frozen, an adapter in it."""
        shell = build(self.model, device="meta")
        self._choose_parts(shell)
        return shell

    def _check_batch(self, task: Any) -> None:
        """Check the batch and the data against the task and the model."""
        shape = self.batch.build()
        self._check_data(task)
        reads_text = not task.reads_records or bool(task.reads().texts)
        length, (name, tower) = shape.length, self._tower
        if reads_text and length > tower.get("context_length", length):
            most = tower["context_length"]
            told = f"{length} tokens are more than model.{name}.context_length={most}; use {most} or less"
            raise SpecError(problems=[("batch.length", told)])
        if not task.reads_records and shape.layout not in task.layouts:
            told = f"task={self.task.kind} can't be laid out as '{shape.layout}'; use batch={task.layouts[0]}"
            raise SpecError(problems=[("batch.layout", told)])

    def _check_data(self, task: Any) -> None:
        records = holds_records(self.data)
        if records and not task.reads_records:
            told = f"data={self.data.kind} holds records, and task={self.task.kind} learns from documents"
            raise SpecError(problems=[("data", f"{told}; take data=shakespeare, text, jsonl or parquet")])
        if task.reads_records and not records:
            told = f"data={self.data.kind} holds documents, and task={self.task.kind} learns from records"
            raise SpecError(problems=[("data", f"{told} with {listing(task.reads().fields)}; take csv or json_rows")])
        if not task.reads_records and self.tokenizer is None:
            raise SpecError(problems=[("tokenizer", f"task={self.task.kind} reads text; choose one, such as bpe")])

    @property
    def _tower(self) -> tuple[str, Mapping[str, Any]]:
        """The name and the spec of the tower that reads the input."""
        names = [name for name in ("trunk", "encoder") if name in self.model.data]
        return (names[0], self.model.data[names[0]]) if names else ("trunk", {})

    def _check_memory(self, shell: nn.Module, place: Place, sizes: Sizes | None) -> None:
        count, trained = _size(shell), sum(p.numel() for _, p in optimizers.trainable(shell))
        weight, gradient, moments, _ = PRECISIONS.get(self.trainer["precision"], PRECISIONS["bf16-mixed"])
        arrangement = self.strategy.build()
        held = arrangement.portions(shell, place.processes)
        beside = weight * (held.weights if arrangement.fills else 1) if self._has_reference(shell) else 0
        kept = moments * MOMENTS.get(self.optimizer.kind, 0.0) * held.moments
        each = beside + weight * held.weights + (gradient * held.gradients + kept) * trained / count
        if place.device == "cuda" and not arrangement.offload:
            there = torch.cuda.get_device_properties(0).total_memory
        else:  # processes on one machine share its memory
            there = psutil.virtual_memory().total // place.devices
        if count * each <= there:
            return
        most = int(there / each)
        parts = "weights, gradients and optimizer" if kept else "weights and gradients"
        parts += " and the reference" if beside else ""
        shared = f" on each of {place.processes} devices" if place.processes > 1 else ""
        raise RunError(
            f"model: {count / 1e9:.2f}B parameters need {count * each / 2**30:.0f} GiB for {parts}{shared}, and a "
            f"device here has {there / 2**30:.0f}: room for {most / 1e9:.1f}B; {self._smaller(most, sizes)}"
        )

    def _smaller(self, most: int, sizes: Sizes | None) -> str:
        """Return the advice to take the largest named size of the same kind of model that fits."""
        fitting: list[tuple[int, str]] = []
        for name, spec in sizes() if sizes else ():
            if _family(spec) == _family(self.model.data) and (size := _size(build(spec, device="meta"))) <= most:
                fitting.append((size, name))
        if fitting:
            size, name = max(fitting)
            return f"model={name} fits, with {size / 1e6:.1f}M"
        return "take a smaller size (`mlplatform config groups model` lists them), or set model.trunk.depth lower"

    def prepare(self, place: Place) -> DataModule:
        """Read the data and train or load the tokenizer: both are cached. Raises DataError."""
        if self._data is None:
            task = self.build_task(build(self.model, device="meta"))
            material, collator = (self._records if task.reads_records else self._documents)(task)
            if self.teacher is not None:
                self.teacher.check_tokenizer(self._tools.tokenizer)
            share = self.strategy.build().share(place) if place.processes > 1 else Share()
            self._data = DataModule(material, self.batch, collator, self.seed, share.number, share.count)
            self._data.setup()
        return self._data

    def _documents(self, task: Any) -> tuple[Material, Any]:
        """Return the data as one stream of tokens, and the task's collator."""
        source = self.data.build()
        tokenizer, length = self._build_tokenizer(source), self.batch["length"]
        self._tools = Tools(tokenizer=tokenizer, length=length)
        return documents(source, tokenizer), task.collator(tokenizer, length)

    def _records(self, task: Any) -> tuple[RecordMaterial, Any]:
        """Return the data as records, and what makes rows of them for the task."""
        source: RecordSource | RecordMixture = self.data.build()
        trained = self.tokenizer is not None and "corpus" in self.tokenizer.signature.handed
        task.tools = given = Tools(
            tokenizer=self._build_tokenizer(source) if self.tokenizer is not None and not trained else None,
            processor=self.processor.build() if self.processor is not None else None,
            length=self.batch["length"],
        )
        opened = source.open(task.reads())
        tokenizer = self._build_tokenizer(opened) if trained else given.tokenizer
        self._tools = replace(given, tokenizer=tokenizer, classes=opened.classes)
        task.settle(self._tools)
        return RecordMaterial(source, opened, self._tools.tokenizer), task.examples(self._tools)

    def _build_tokenizer(self, corpus: Any) -> Any:
        assert self.tokenizer is not None
        return build_tokenizer(self.tokenizer, corpus, self._tower[1].get("input", {}).get("vocab"))

    @property
    def tools(self) -> Tools:
        """The tokenizer, the processor and the classes, once `prepare` was called."""
        return self._tools

    def build_task(self, model: nn.Module) -> Any:
        """Build the task of a model, and hand it the teacher or the reference it learns beside, where it has one.

        Raises:
            SpecError: the model doesn't fit the task, or the teacher the student.
        """
        learns = "teacher" in self.task.signature.handed
        if learns != (self.teacher is not None):
            told = f"task={self.task.kind} learns from a teacher; set teacher=folder teacher.source=FOLDER"
            if self.teacher is not None:
                told = f"task={self.task.kind} learns from no teacher; set task=distillation, or leave teacher away"
            raise SpecError(problems=[("teacher", told)])
        handed: dict[str, Any] = {}
        if self.teacher is not None:
            handed["teacher"] = likewise(model, self.teacher.shell(), self.teacher.values)
        if "reference" in self.task.signature.handed:
            handed["reference"] = self._reference(model) if self._has_reference(model) else None
        return self.task.build(model=model, **handed)

    def _reference(self, model: nn.Module) -> nn.Module:
        shell = build(self.model, device="meta")
        return likewise(model, shell, partial(self._first_values, shell))

    def _has_reference(self, model: nn.Module) -> bool:
        """Whether the task compares a model with a copy of it as training began; an adapter is switched off instead."""
        return "reference" in self.task.signature.handed and not adapter_alone(model)

    def _start(self) -> nn.Module:
        """Return the model with the weights training starts from, or, where ranks fill their own parts, without any.

        Raises:
            CheckpointError: what it starts from is damaged or of another model.
        """
        model = build(self.model, device="meta")
        return given(model, self._first_values(model), later=self._in_parts)

    def _first_values(self, model: nn.Module) -> Start:
        start = first_values(model, self.init_from, self.init_parts, self.seed)
        if self.teacher is not None and self.teacher.layers is not None and self.init_from is None:
            start = Over(start, self.teacher.lessons(model))
        return start

    def build_model(self) -> nn.Module:
        """Build the model, with the weights of `init_from` and `init_parts`; what `freeze` names does not train.

        Where the strategy's ranks fill their own parts, it is on the meta device, and says where its values come from.

        Raises:
            CheckpointError: one of them is damaged or of another model.
        """
        model, self._model = self._model or self._start(), None
        self._choose_parts(model)
        return model.train()

    @property
    def _in_parts(self) -> bool:
        """Whether ranks fill their own parts. 4 bits are made of a whole model."""
        return self.strategy.build().fills and (self.adapter is None or self.adapter["quantize"] is None)

    def _choose_parts(self, model: nn.Module) -> None:
        """Freeze what does not train, and put the adapter in."""
        freeze(model, self.freeze)
        if self.adapter is None:
            return
        if self.freeze or self.init_from is None:
            told = "an adapter freezes all but itself and what adapter.train names; leave freeze empty"
            if not self.freeze:
                told = "an adapter stands on weights that are there; set init_from, a Hugging Face folder or a run"
            raise SpecError(problems=[("adapter", told)])
        self.adapter.build().apply(model, self.seed)


def _size(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def _family(spec: Mapping[str, Any]) -> tuple[Any, Any]:
    return spec.get("kind"), (spec.get("hf") or {}).get("model_type")
