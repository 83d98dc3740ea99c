"""ZeRO by DeepSpeed, on CUDA and on CPUs. Each rank writes some rows of every tensor, so any strategy reads them.

DeepSpeed's engine drives the model alone, not the task around it: a step of ours is several passes of the model.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.utilities.seed import reset_seed
from lightning.pytorch.strategies import DDPStrategy, DeepSpeedStrategy
from torch import Tensor, nn
from torch.optim import Optimizer

from mlplatform.models.share import Share
from mlplatform.training.sharding import flat
from mlplatform.training.sharding.filling import ONE, answering, convert, make_in_pieces
from mlplatform.training.sharding.flat import Flat
from mlplatform.training.sharding.states import by_name, regrouped
from mlplatform.training.shards import Piece, Unread


class ZeroShare(Share):
    """Weights, gradients or moments in DeepSpeed's flat pieces, by stage; it clips, and says the norm afterwards.

    Args:
        options: DeepSpeed's `zero_optimization`.

    Attributes:
        beside: engines of models that never train.
    """

    clips = False
    engine: Any = None

    def __init__(self, number: int, count: int, options: Mapping[str, Any]) -> None:
        super().__init__(number, count)
        self.options, self.beside = options, list[Any]()

    def divide(self, model: nn.Module) -> None:
        """Give scalar weights a dimension, in place: DeepSpeed sends nothing without one between ranks.

        What reads them works on, by broadcasting; checkpoints hold them as they were. A model on the meta device gets
        its memory and its values then, at stage 3.
        """
        for module in model.modules():
            for name, p in list(module.named_parameters(recurse=False)):
                if p.ndim == 0:
                    row: Any = nn.Parameter(p.detach()[None], requires_grad=p.requires_grad)
                    row.scalar = True
                    module.register_parameter(name, row)
        if any(p.is_meta for p in model.parameters()):
            make_in_pieces(model, "offload_param" in self.options)
            if not any(p.requires_grad for p in model.parameters()):  # a reference, a teacher
                self.beside.append(answering(model, self.options))

    @property
    def divides(self) -> bool:  # type: ignore[override]
        """Whether a rank holds but a part of the weights."""
        return self.engine is not None and self.engine.zero_optimization_stage() == 3

    def clip(self, parameters: list[nn.Parameter], limit: float | None) -> None:
        """Leave it to the engine's own step, which was told the limit."""

    def norm(self) -> Tensor:
        """Return the norm the gradient had in the last step, before clipping."""
        return torch.as_tensor(self.engine.get_global_grad_norm(), dtype=torch.float64)

    def changed(self, parameter: nn.Parameter) -> None:
        """Take note of a weight that its block changed by itself: where weights are in pieces, change this rank's."""
        if hasattr(parameter, "ds_id"):
            own, start = flat.computed(parameter)
            own.copy_(parameter.detach().flatten()[start : start + own.numel()])

    def shape(self, parameter: Any) -> torch.Size:
        """Return the shape of a whole parameter."""
        return flat.shape(parameter)

    def held(self, parameter: nn.Parameter) -> Tensor:
        """Return this rank's piece of a weight that trains, in fp32."""
        return flat.stepped(parameter).values

    def whole(self, tensor: Any) -> Tensor:
        """Return all of a parameter or buffer; all ranks call it."""
        return flat.whole(tensor, flat.computed(tensor)) if hasattr(tensor, "ds_id") else tensor.detach()

    def part(self, parameter: nn.Parameter, stored: Unread) -> Tensor:
        """Return this rank's piece of a tensor that a checkpoint holds."""
        own, start = flat.stepped(parameter)
        return stored.stretch(start, own.numel()).to(own.device)

    def written(self, parameter: nn.Parameter, part: Tensor) -> Piece:
        """Return the rows this rank writes of a tensor that is in pieces as the weight is."""
        return self.rows(parameter, flat.whole(parameter, Flat(part, flat.stepped(parameter).start)))

    def rows(self, parameter: nn.Parameter, whole: Tensor) -> Piece:
        """Return the rows this rank writes of a whole tensor."""
        return flat.rows(parameter, whole, self.number, self.count)

    @contextlib.contextmanager
    def exchanged(self, values: Mapping[nn.Parameter, Tensor]) -> Iterator[None]:
        """Within, the model computes with other values, of which each rank gives its piece; those that train stay."""
        try:
            self._compute_with(values)
            yield
        finally:
            self._compute_with({p: self.held(p) for p in values})

    @torch.no_grad()
    def _compute_with(self, values: Mapping[nn.Parameter, Tensor]) -> None:
        for p, value in values.items():
            if hasattr(p, "ds_id"):
                flat.computed(p).values.copy_(value)
            else:
                p.copy_(flat.whole(p, Flat(value, flat.stepped(p).start)).view_as(p))
        self.gather_anew()

    def gather_anew(self) -> None:
        """At stage 3, have what stays whole agree with its pieces, and let go of the rest."""
        if self.divides:
            self.engine.optimizer._partition_all_parameters()
            _gather_small(self.engine.optimizer)


class ZeroStrategy(DeepSpeedStrategy):
    """Lightning's strategy, which also runs on CPUs and gives the engine the model of the task.

    Args:
        backend: what the processes talk through.
        options: DeepSpeed's `zero_optimization`.
        clip_norm: largest norm of the gradient.
    """

    def __init__(self, share: ZeroShare, backend: str, options: Mapping[str, Any], clip_norm: float | None) -> None:
        config = {
            "zero_optimization": dict(options),
            "zero_allow_untested_optimizer": True,
            "zero_force_ds_cpu_optimizer": False,
            "gradient_clipping": clip_norm or 0.0,
            **ONE,
        }
        super().__init__(config=config, process_group_backend=backend, logging_level=logging.ERROR)
        self.share = share

    def setup_environment(self) -> None:
        """Skip Lightning's refusal of everything but CUDA."""
        DDPStrategy.setup_environment(self)  # type: ignore[arg-type]

    def setup_distributed(self) -> None:
        """Join the other processes."""
        if self.root_device.type != "cpu":
            return super().setup_distributed()
        import deepspeed

        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # plain gloo: nothing is compiled
        reset_seed()
        self.set_world_ranks()
        self._init_deepspeed_distributed()

    @property
    def root_device(self) -> torch.device:
        device = DDPStrategy.root_device.fget(self)  # type: ignore[attr-defined]
        return torch.device("cpu", 0) if device.type == "cpu" else device  # the engine wants a number

    @contextlib.contextmanager
    def model_sharded_context(self) -> Iterator[None]:
        yield

    def _setup_model_and_optimizer(self, model: Any, optimizer: Any, lr_scheduler: Any = None) -> tuple[Any, Any]:
        for child in model.children():
            if child is not model.model:
                child.to(self.root_device)
        number = torch.bfloat16 if self.precision_plugin.precision == "bf16-mixed" else torch.float32
        for p in model.model.parameters():
            if hasattr(p, "ds_id"):  # of a model made in pieces, whose type the engine leaves as it is
                convert(p, number)
        engine, optimizer = super()._setup_model_and_optimizer(model.model, optimizer, lr_scheduler)
        self.share.engine = engine
        for p in model.model.parameters():
            if hasattr(p, "scalar"):
                p.is_external_param = True  # read by the task too, so no pass of the model may put it away
        if self.share.divides:
            _register_elsewhere(model.model)
        _gather_small(optimizer)
        return engine, optimizer

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        gradients = getattr(self.deepspeed_engine.optimizer, "grad_partitions_flat_buffer", None)
        if gradients is not None:  # stage 3 adds a weight's first gradient to its last step's, unless it comes at once
            gradients.zero_()
        return self.lightning_module.training_step(*args, **kwargs)  # type: ignore[union-attr]

    def backward(self, closure_loss: Tensor, optimizer: Any, *args: Any, **kwargs: Any) -> Tensor:
        engine: Any = self.deepspeed_engine  # what a call of the engine, instead of the model, would prepare:
        engine.optimizer.clear_backward_seen_flag()  # whether gradients are added to earlier ones of the step
        engine._backward_prologue()
        return super().backward(closure_loss, optimizer, *args, **kwargs)

    @contextlib.contextmanager
    def block_backward_sync(self) -> Iterator[None]:
        """Add gradients up: another micro-batch of the step follows."""
        self.deepspeed_engine.set_gradient_accumulation_boundary(False)
        yield
        self.deepspeed_engine.set_gradient_accumulation_boundary(True)

    @property
    def lightning_restore_optimizer(self) -> bool:
        return True

    def _parameters(self) -> dict[str, nn.Parameter]:
        module: Any = self.lightning_module
        return dict(module.model.named_parameters())

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """Return this rank's rows of all weights, those that train in fp32. One at a time is gathered."""
        module: Any = self.lightning_module
        found = {name: tensor for name, tensor in module.state_dict().items() if not name.startswith("model.")}
        parameters = self._parameters()
        for name, tensor in module.model.state_dict().items():
            p = parameters.get(name)
            if p is None:
                found[f"model.{name}"] = tensor
            elif p.requires_grad or not module.adapted:  # a run of adapters saves only what trains
                found[f"model.{name}"] = self.share.rows(p, flat.gathered(p))
        return found

    @torch.no_grad()
    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """Read this rank's pieces, and whole what it holds whole: one tensor at a time."""
        module: Any = self.lightning_module
        own = module.state_dict(keep_vars=True)
        stored: Mapping[str, Unread] = checkpoint["state_dict"]
        for name, given in stored.items():
            if hasattr(own[name], "ds_id"):
                _put(flat.computed(own[name]), given)
            else:
                own[name].data.copy_(given.whole())
            if own[name].requires_grad:
                _put(flat.stepped(own[name]), given)
        self.share.gather_anew()

    def optimizer_state(self, optimizer: Any) -> dict[str, Any]:
        """Return the state in the groups of one process, this rank's rows of each moment. All ranks call it."""
        base, parameters = _base(optimizer), self._parameters()
        _link(optimizer)
        entries: dict[str, dict[str, Any]] = {}

        def rows(name: str, key: str) -> Piece:
            return self.share.written(parameters[name], flat.stepped(parameters[name], key).values)

        for group, flats in zip(base.param_groups, _flats(optimizer), strict=True):
            held = base.state.get(flats[0], {})
            for name in group["param_names"] if held else ():
                entries[name] = {
                    key: rows(name, key) if _flat(value) else deepcopy(value) for key, value in held.items()
                }
        groups = [{key: value for key, value in group.items() if key != "params"} for group in base.param_groups]
        return regrouped(groups, entries, list(parameters))

    @torch.no_grad()
    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        [optimizer], [state] = self.optimizers, checkpoint["optimizer_states"]
        base, parameters = _base(optimizer), self._parameters()
        entries = by_name(state)
        options = {name: group for group in state["param_groups"] for name in group["param_names"]}
        each = {key for entry in entries.values() for key, value in entry.items() if _flat(value)}
        for group, flats in zip(base.param_groups, _flats(optimizer), strict=True):
            saved, first = options[group["param_names"][0]], entries.get(group["param_names"][0], {})
            group.update({key: value for key, value in saved.items() if key not in ("params", "param_names")})
            for piece in flats:
                base.state[piece] = {k: torch.zeros_like(piece) if k in each else _read(v) for k, v in first.items()}
        _link(optimizer)
        for name, entry in entries.items():
            for key in each & entry.keys():
                _put(flat.stepped(parameters[name], key), entry[key])

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any = None) -> None:
        """Write this rank's rows: every rank does."""
        self.checkpoint_io.save_checkpoint(checkpoint, filepath)

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """Return a checkpoint whose tensors are read when they are asked for."""
        io: Any = self.checkpoint_io
        return io.open(Path(checkpoint_path), Unread)


def _put(piece: Flat, given: Unread) -> None:
    """Give this rank its piece of a stored tensor."""
    piece.values.copy_(given.stretch(piece.start, piece.values.numel()))


def _read(entry: Any) -> Any:
    return entry.whole() if isinstance(entry, Unread) else deepcopy(entry)


def _register_elsewhere(model: nn.Module) -> None:
    """Have the weights at hand that DoRA's part of a layer reads from the others, also where it is compiled."""
    from deepspeed.runtime.zero import register_external_parameter

    for module in model.modules():
        for name, part in getattr(module, "lora_magnitude_vector", {}).items():
            base: Any = module.base_layer
            for p in (*base.parameters(), module.lora_A[name].weight):  # type: ignore[index,union-attr]
                register_external_parameter(part, p)


def _gather_small(optimizer: Any) -> None:
    """At stage 3, have the weights that stay whole at hand: some are read between passes of the model."""
    small = getattr(getattr(optimizer, "_optimizer", optimizer), "persistent_parameters", [])
    missing = [p for p in small if p.ds_status.name == "NOT_AVAILABLE"]
    if missing:
        missing[0].all_gather(missing)


def _flat(value: Any) -> bool:
    """Whether an entry of an optimizer's state has a number for each weight."""
    return isinstance(value, Tensor | Unread) and len(value.shape) > 0


def _base(optimizer: Any) -> Optimizer:
    """Return torch's optimizer within DeepSpeed's."""
    return getattr(optimizer, "_optimizer", optimizer).optimizer


def _link(optimizer: Any) -> None:
    """Let weights know the moments of their pieces: DeepSpeed does so once, after the step of the first group alone."""
    held = getattr(optimizer, "_optimizer", optimizer)
    if hasattr(held, "_hp_optimizer_states_linked"):  # stages 1 and 2
        held._hp_optimizer_states_linked = False
        held._lazy_init_hp_params_optimizer_state()


def _flats(optimizer: Any) -> list[list[Tensor]]:
    """Return, for each group of an optimizer, the flat pieces this rank steps."""
    held = getattr(optimizer, "_optimizer", optimizer)
    if hasattr(held, "fp32_partitioned_groups_flat"):  # stage 3: several pieces to a group
        flats: list[list[Tensor]] = [[] for _ in held.optimizer.param_groups]
        for number, flat in enumerate(held.fp32_partitioned_groups_flat):
            flats[held.sub_group_to_group_id[number]].append(flat)
        return flats
    return [[flat] for flat in held.single_partition_of_fp32_groups]
