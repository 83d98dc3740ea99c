"""What all tasks share: the optimizer step with its one loss normalisation, validation, and which models fit."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import lightning.pytorch as L
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from mlplatform.blocks.moe import auxiliary_loss, expert_metrics, mixtures
from mlplatform.context import Output
from mlplatform.data.collate import IGNORED, Collator
from mlplatform.errors import CheckpointError, DataError, RunError, SpecError, listing
from mlplatform.models.share import Share
from mlplatform.models.trained import frozen_digest, trained_names
from mlplatform.registry import kinds
from mlplatform.tasks.ways import fitting, way_of

Batch = dict[str, Tensor]


class Figures(NamedTuple):
    """One optimizer step, over all ranks: mean loss per target, norm of the gradient before clipping, counts."""

    loss: float
    grad_norm: float
    targets: int
    tokens: int


class Task(L.LightningModule):
    """A model, its loss and its metrics.

    One item of the train loader is one optimizer step of this rank: a list of micro-batches. The loss of the step is
    the sum over all target tokens of all micro-batches and ranks, divided by their number, whatever the padding,
    packing, accumulation or ranks.

    Args:
        model: called with Hugging Face's batch names; returns `loss_sum` and `loss_count`.

    Attributes:
        make_optimizer: returns the optimizer of a model. clip_norm: largest norm of the gradient, None for no limit.
        share: how ranks divide the work.
        on_bad_step: called with a step's number and what is wrong when its loss or gradient is not finite; raises, or
            returns: the step then changes nothing. None raises. All are set by whoever runs the task.
        figures: the last step's, set just before its weights change.
    """

    kind: str
    """Its name in YAML."""
    attention = "causal"
    """What the self-attention of the tower that reads the input must be: `causal`, `full` or `any`."""
    head_task = ""
    """What the model's head must be made for; empty for the task's own kind."""
    assembly = "single_tower"
    """`encoder_decoder` for a task whose labels a decoder writes."""
    reads_key = "input_ids"
    """The key of the batch that the model's tower reads: `pixel_values` of images, `input_values` of sound."""
    layouts: tuple[str, ...] = ("packed", "padded")
    """The layouts of rows its batches can be made of."""
    reads_records = False
    """Whether it learns from records (record_task.py), not from a stream of documents."""
    own_keys: tuple[str, ...] = ("num_bytes", "numbers", "filler")
    """Keys of its batches that the task reads and the model does not get."""
    goes_on = False
    """Whether its model goes on from a text, so that a run can end with a sample."""
    monitor = "validation/loss"
    """The metric by which the best checkpoint is chosen, unless the trainer names another."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.check_model(model)
        self.model = model
        self.measures: dict[str, Any] = {}
        self.make_optimizer: Callable[[nn.Module], Optimizer] | None = None
        self.clip_norm: float | None = None
        self.on_bad_step: Callable[[int, str], None] | None = None
        self.share = Share()
        self.figures = Figures(math.nan, math.nan, 0, 0)
        self._base = ""

    def check_model(self, model: nn.Module) -> None:
        """Raise SpecError when the task can't train a model. Tasks of other assemblies have one of their own."""
        check_fit(self, model)

    def collator(self, tokenizer: Any, length: int) -> Collator:
        """Return what makes a micro-batch of rows of documents for this task.

        Raises:
            DataError: the tokenizer lacks a token the task needs.
        """
        raise NotImplementedError

    def targets(self, batch: Batch) -> Tensor:
        """Return how many tokens of a micro-batch the loss is over, before it is computed."""
        raise NotImplementedError

    def metrics(self, sums: Tensor) -> dict[str, float]:
        """Return the metrics of the (loss_sum, targets, bytes) of a whole validation pass."""
        raise NotImplementedError

    def configure_model(self) -> None:
        """Keep this rank's part of the model; Lightning calls it once processes can talk to each other."""
        self.share.divide(self.model)
        if self.adapted:  # before an engine puts what is frozen into pieces, or into another type
            self._base = self._base or frozen_digest(self.model, self.share)

    @contextlib.contextmanager
    def asked(self, other: nn.Module) -> Iterator[None]:
        """Within, a model that never trains answers beside the task's own: a reference, a teacher."""
        if not any(hasattr(p, "to_local") for p in other.parameters()):  # else it is where its ranks keep their parts
            other.to(self.device)
        with torch.no_grad():
            yield
        self.share.settle(other)

    def configure_optimizers(self) -> Optimizer:
        """Return the optimizer `make_optimizer` makes."""
        if self.make_optimizer is None:
            raise RunError("set task.make_optimizer before training: a function from the model to an optimizer")
        optimizer = self.make_optimizer(self.model)
        # Fused optimizers would unscale fp16's gradients by themselves, after they were clipped.
        optimizer._step_supports_amp_scaling = False  # type: ignore[attr-defined]
        return optimizer

    def training_step(self, micro_batches: list[Batch]) -> None:
        """Make one optimizer step.

        Raises:
            DataError: no token of any rank is a target. RunError: the loss or the gradient is not finite.
        """
        total, tokens = self._totals(micro_batches)
        self.figures = Figures(math.nan, math.nan, total, tokens)
        self._loss = self.backward_all(micro_batches, total)
        self.share.complete(self.model)
        optimizer: Any = self.optimizers()
        with torch.autocast(self.device.type, enabled=False):
            optimizer.step()
        if not self.share.clips:
            self._check_finite(optimizer, self.share.norm())
        optimizer.zero_grad()
        for _, moe in mixtures(self.model):
            moe.settle(self._sum)
            for parameter in moe.router.parameters():
                if not parameter.requires_grad:
                    self.share.changed(parameter)

    def backward_all(self, micro_batches: list[Batch], total: int) -> Tensor:
        """Give every parameter its gradient of a step; return the step's mean loss over all ranks, in fp64.

        Args:
            total: targets of the step, over all ranks.
        """
        loss_sum = torch.zeros((), dtype=torch.float64, device=self.device)
        for number, batch in enumerate(micro_batches):
            with self.held_back(number == len(micro_batches) - 1):
                out = self.learned(batch)
                objective, extra = out.loss_sum, auxiliary_loss(self.model)
                if extra is not None:  # a mean of each micro-batch, weighed by its targets
                    objective = objective + extra * out.loss_count
                with torch.autocast(self.device.type, enabled=False):
                    # Ranks' gradients are averaged, hence the factor: the sum over ranks divided by the global total.
                    self.manual_backward(objective * (self.share.count / total))
            loss_sum += out.loss_sum.detach()
        return self._sum(loss_sum) / total

    def held_back(self, last: bool) -> contextlib.AbstractContextManager[None]:
        """Keep ranks from averaging gradients until the last micro-batch of a step."""
        hold = getattr(self.trainer.strategy, "block_backward_sync", contextlib.nullcontext)
        return contextlib.nullcontext() if last else hold()

    def learned(self, batch: Batch) -> Output:
        """Return the model's output of a micro-batch in training: `loss_sum` is minimised, `loss_count` its targets."""
        return self.model(**self.inputs(batch), logits=False)

    def gauges(self) -> dict[str, float]:
        """Return metrics of the model itself after a step, logged beside the loss."""
        return expert_metrics(self.model)

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Clip, and stop before anything that is not finite reaches the weights. Gradients are unscaled here."""
        norm = self.share.clip([p for group in optimizer.param_groups for p in group["params"]], self.clip_norm)
        if norm is not None:
            self._check_finite(optimizer, norm)

    def _check_finite(self, optimizer: Optimizer, norm: Tensor) -> None:
        """Note the loss and the norm of a step; one that is not finite is left out, or ends the run."""
        loss, size = torch.stack([self._loss, norm.double().to(self._loss.device)]).tolist()
        self.figures = self.figures._replace(loss=loss, grad_norm=size)
        scaled = getattr(self.trainer.precision_plugin, "scaler", None) is not None  # fp16 skips such a step by itself
        if not math.isfinite(loss) or not (math.isfinite(size) or scaled):
            what = f"the loss is {loss}" if not math.isfinite(loss) else f"the norm of the gradient is {size}"
            self._leave_out(optimizer, what)

    def _leave_out(self, optimizer: Optimizer, what: str) -> None:
        """Make the step one that changes nothing, unless `on_bad_step` raises: what has no gradient stays as it is."""
        step = self.trainer.global_step + 1
        if self.on_bad_step is None:
            raise RunError(f"step {step}: {what}")
        self.on_bad_step(step, what)
        self.figures = self.figures._replace(loss=math.nan)
        for group in optimizer.param_groups:
            for p in group["params"]:
                p.grad = None
        for _, moe in mixtures(self.model):
            moe.counts = None

    def validation_step(self, batch: Batch, seen: Callable[[Batch, Output], None] | None = None) -> Tensor:
        """Return (loss_sum, targets, bytes) of one micro-batch in fp64; bytes is 0 where the data doesn't say.

        A batch that only evens out the ranks goes through the model and counts for nothing.

        Args:
            seen: gets the batch with the model's output.
        """
        out = self.scored(batch)
        if "filler" in batch:
            return torch.zeros(3, dtype=torch.float64, device=self.device)
        self.observe(batch, out)
        if seen is not None:
            seen(batch, out)
        size = batch.get("num_bytes", torch.zeros((), device=self.device))
        return torch.stack([out.loss_sum.double(), out.loss_count.double(), size.double()])

    def scored(self, batch: Batch) -> Output:
        """Return the model's output of a held-out micro-batch, with `loss_sum` and `loss_count`."""
        return self.model(**self.inputs(batch), logits=False)

    def observe(self, batch: Batch, out: Output) -> None:
        """Add a held-out micro-batch to the `measures`."""

    def inputs(self, batch: Batch) -> Batch:
        """Return what the model is called with."""
        return {name: tensor for name, tensor in batch.items() if name not in self.own_keys}

    def begin_validation(self) -> None:
        """Forget what the measures saw in an earlier pass."""
        for measure in self.measures.values():
            measure.to(self.device)
            measure.process_group = self.share.group
            measure.reset()

    def measured(self) -> dict[str, float]:
        """Return what the measures say of a whole pass over all ranks, as `validation/NAME`."""
        told: dict[str, float] = {}
        for name, measure in self.measures.items():
            value = measure.compute()
            told |= value if isinstance(value, dict) else {name: float(value)}
        return {f"validation/{name}": value for name, value in told.items()}

    def higher_is_better(self, metric: str) -> bool:
        """Whether more of a metric (`validation/NAME`) is better; losses and what isn't known are better when lower."""
        measure = self.measures.get(metric.removeprefix("validation/"))
        if measure is None and metric != "validation/loss":  # one of several that a measure gives at once
            measure = next((m for m in self.measures.values() if metric in self._names(m)), None)
        return bool(getattr(measure, "higher_is_better", False))

    @staticmethod
    def _names(measure: Any) -> set[str]:
        return {f"validation/{name}" for name in getattr(measure, "names", ())}

    @property
    def adapted(self) -> bool:
        """Whether the model stands on frozen weights that its checkpoints leave out."""
        return getattr(self.model, "adapted", False)

    @property
    def strict_loading(self) -> bool:
        """What Lightning asks before it loads a checkpoint's weights; `on_load_checkpoint` has checked them by then."""
        return not self.adapted

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Of a model on frozen weights, keep what trains and a hash of the rest."""
        if self.adapted:
            checkpoint["state_dict"] = {n: t for n, t in checkpoint["state_dict"].items() if n in self._trained()}
            checkpoint["base"] = self._base

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse the weights of another model, and those that stood on other frozen ones."""
        own = self.state_dict()
        if self.adapted:
            own = {name: own[name] for name in self._trained()}
            if checkpoint.get("base") != self._base:
                raise CheckpointError("the weights init_from names are not those this run's adapter began on")
        check_weights(checkpoint["state_dict"], self._whole(own))

    def _whole(self, own: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the shapes of whole weights, of which this rank may hold a part."""
        parameters = dict(self.named_parameters())
        shapes = {name: self.share.shape(parameters.get(name, tensor)) for name, tensor in own.items()}
        return {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}

    def _trained(self) -> set[str]:
        return {f"model.{name}" for name in trained_names(self.model)}

    def _totals(self, micro_batches: list[Batch]) -> tuple[int, int]:
        """Return the numbers of targets and of tokens (padding not counted) over micro-batches and ranks."""
        counts = [torch.stack([self.targets(batch), real_tokens(batch).sum()]) for batch in micro_batches]
        targets, tokens = self._sum(torch.stack(counts).sum(0)).tolist()
        if targets == 0:
            step = self.trainer.global_step + 1
            raise DataError(
                f"step {step}: no token of its batch is a target; `mlplatform data preview` prints what is masked"
            )
        return int(targets), int(tokens)

    def _sum(self, tensor: Tensor) -> Tensor:
        """Sum over the ranks that read different data."""
        return self.share.sum(tensor)


def real_tokens(batch: Batch) -> Tensor:
    """Return which positions are no padding (rows, length); where there are no tokens, a row counts as one (rows,)."""
    for name in ("attention_mask", "document_ids"):
        if name in batch:
            return batch[name] > 0
    first = next(iter(batch.values()))
    return torch.ones(len(first), dtype=torch.bool, device=first.device)


def loss_and_perplexity(sums: Tensor) -> dict[str, float]:
    """Return the mean loss per target of a validation pass, and its exponential."""
    total, count, _ = sums.tolist()
    return {"validation/loss": total / count, "validation/perplexity": math.exp(min(total / count, 700.0))}


def count_targets(labels: Tensor) -> Tensor:
    """Return how many labels are not -100."""
    return (labels != IGNORED).sum()


def check_fit(task: Task, model: nn.Module) -> None:
    """Raise SpecError when a task can't train a model; names both and the tasks that fit.

    A head says which task it is for; the self-attention of the tower must see what the task lets it see.
    """
    name = task.kind
    head, trunk = getattr(model, "head", None), getattr(model, "trunk", None)
    made_for, kind = getattr(head, "task", None), getattr(model, "kind", "model")
    if (way := way_of(model)) in ("beside", "asked"):  # those that read images within a text can do without
        raise SpecError(f"task={name} gives the model no images, and this {kind} reads them: {fitting(way)}")
    read = getattr(getattr(trunk, "input", None), "reads", task.reads_key)
    if read != task.reads_key:
        raise SpecError(f"task={name} gives the model {task.reads_key}, and this {kind} reads {read}")
    seen = {"causal" if m.causal else "full" for m in (trunk or model).modules() if hasattr(m, "causal")}
    fits, written = made_for == (task.head_task or name), kind == "encoder_decoder"
    seen_alike = task.attention == "any" or seen <= {task.attention}
    if fits and written == (task.assembly == "encoder_decoder") and seen_alike:
        return
    parts = f"head {getattr(head, 'kind', 'none')}, {' and '.join(sorted(seen)) or 'no'} attention"
    told = f"task={name} does not fit this {kind} ({parts})"
    if fits and written and task.assembly == "single_tower":
        raise SpecError(f"{told}: span_corruption fits it")
    if fits and not written and task.assembly == "encoder_decoder":
        raise SpecError(f"{told}: it needs an encoder_decoder, such as model=t5_tiny")
    if fits:
        tower = "encoder" if written else "trunk"
        raise SpecError(f"{told}: it needs {task.attention} attention; set model.{tower}.layer.attention.mask")
    there = f"{kinds()[f'task/{made_for}'].name} fits it" if f"task/{made_for}" in kinds() else "no task fits this head"
    raise SpecError(f"{told}: {there}; or choose another model.head")


def check_weights(given: Mapping[str, Any], own: Mapping[str, Tensor]) -> None:
    """Raise CheckpointError that lists which weights (what has a shape) are missing, extra or of another shape."""
    wrong = [f"{n} is missing" for n in own if n not in given]
    wrong += [f"{n} is not in the model" for n in given if n not in own]
    wrong += [
        f"{n} is {tuple(given[n].shape)} and the model's {tuple(own[n].shape)}"
        for n in own
        if n in given and given[n].shape != own[n].shape
    ]
    if wrong:
        raise CheckpointError(f"the checkpoint is of another model: {listing(wrong, 3)}")
