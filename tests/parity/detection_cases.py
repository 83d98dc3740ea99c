"""The table's rows of models that find objects on images."""

from __future__ import annotations

from typing import Any

import torch
import transformers as tf
from family_cases import FOLDER
from oracle import ROWS, Case
from torch import Tensor

SIZE: dict[str, Any] = {"d_model": 32, "encoder_layers": 2, "decoder_layers": 3, "num_queries": 7, "num_labels": 5}
SIZE |= {"encoder_attention_heads": 4, "decoder_attention_heads": 2, "encoder_ffn_dim": 48, "decoder_ffn_dim": 40}
STATES = tuple(f"{tower}_hidden_states.{i}" for tower, depth in (("encoder", 2), ("decoder", 3)) for i in range(depth))
BARE = ("last_hidden_state", "encoder_last_hidden_state", *STATES)
FOUND = ("logits", "pred_boxes", "loss", "loss_dict.loss_ce", "loss_dict.loss_bbox", "loss_dict.loss_giou")
FOUND += ("loss_dict.cardinality_error", *BARE)


def images(padding: str | None, channels: int = 3) -> dict[str, Tensor]:
    """Return images, padded to the batch's size on the right and below."""
    generator = torch.Generator().manual_seed(4)
    batch = {"pixel_values": torch.randn(ROWS, channels, 96, 128, generator=generator)}
    if padding is None:
        return batch
    mask = torch.ones(ROWS, 96, 128, dtype=torch.long)
    mask[1, 60:] = 0
    mask[2, :, 70:] = 0
    return {**batch, "pixel_mask": mask}


def objects() -> list[dict[str, Tensor]]:
    """Return what is on the images: two objects, none, and three, two of which are one class."""
    generator = torch.Generator().manual_seed(6)
    sizes = ([1, 3], [], [4, 0, 4])
    return [
        {
            "class_labels": torch.tensor(kinds, dtype=torch.long),
            "boxes": 0.1 + 0.4 * torch.rand(n, 4, generator=generator),
        }
        for kinds in sizes
        for n in [len(kinds)]
    ]


def detr(variant: str, more: dict[str, Any] | None = None, model: Any = tf.DetrForObjectDetection, **kw: Any) -> Case:
    config = kw.pop("config", tf.DetrConfig)(**{**SIZE, "backbone": "test_resnet", **(more or {})})
    finds = "ObjectDetection" in model.__name__
    kw.setdefault("break_at", ("decoder.layer.mlp.activation", "gelu"))
    kw.setdefault("inputs", images)
    kw.setdefault("fields", FOUND if finds else BARE)
    options = {"labels": objects()} if finds else {}
    return Case(
        kw.pop("family", "detr"), variant, model, config, paddings=(None, "right"), options=options, labels=finds, **kw
    )


def table_transformer(variant: str, more: dict[str, Any] | None = None, **kw: Any) -> Case:
    kw.setdefault("model", tf.TableTransformerForObjectDetection)
    outside = {"family": "table_transformer", "config": tf.TableTransformerConfig, "config_dirs": (FOLDER,)}
    return detr(variant, more, **outside, **kw)


RESNET: dict[str, Any] = {"embedding_size": 12, "hidden_sizes": [10, 20, 30, 40], "depths": [1, 2, 1, 1]}
OWN = {"use_timm_backbone": False, "backbone": None}
EARLIER = tuple(f"auxiliary_outputs.{i}.{name}" for i in range(2) for name in ("logits", "pred_boxes"))
DETECTION = [
    detr("timm"),
    detr("auxiliary-loss", {"auxiliary_loss": True}, fields=(*FOUND, *EARLIER), break_at=("decoder.final_norm", True)),
    detr("resnet-by-transformers", {**OWN, "backbone_config": tf.ResNetConfig(**RESNET, out_features=["stage4"])}),
    detr(
        "learned-positions",
        {"position_embedding_type": "learned"},
        break_at=("encoder.layer.attention.heads", 2),
    ),
    detr(
        "one-channel-dilated-other-costs",
        {
            "num_channels": 1,
            "dilation": True,
            "class_cost": 2,
            "bbox_cost": 1,
            "eos_coefficient": 0.3,
            "giou_loss_coefficient": 4,
            "bbox_loss_coefficient": 3,
            "activation_function": "gelu",
        },
        inputs=lambda padding: images(padding, channels=1),
        break_at=("encoder.input.positions", {"kind": "sine_2d", "temperature": 10.0}),
    ),
    detr("bare", model=tf.DetrModel),
    detr(
        "bare-resnet-by-transformers",
        {**OWN, "backbone_config": tf.ResNetConfig(**RESNET, layer_type="basic", downsample_in_first_stage=True)},
        tf.DetrModel,
    ),
    detr(
        "resnet-by-transformers-third-stage",
        {
            **OWN,
            "backbone_config": tf.ResNetConfig(
                **RESNET, downsample_in_bottleneck=True, hidden_act="gelu", out_features=["stage1", "stage3"]
            ),
        },
        break_at=("backbone.trunk.halve_early", False),
    ),
    table_transformer("timm"),
    # its decoder_hidden_states are then normed, DETR's are not
    table_transformer(
        "auxiliary-loss",
        {"auxiliary_loss": True},
        fields=(*(name for name in FOUND if "decoder" not in name), *EARLIER),
        break_at=("decoder.final_norm", True),
    ),
    table_transformer("learned-positions", {"position_embedding_type": "learned"}),
    table_transformer("bare", model=tf.TableTransformerModel),
]
