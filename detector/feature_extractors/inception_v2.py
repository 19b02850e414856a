"""Inception v2 as Faster R-CNN uses it: the first stage through `Mixed_4e`, the tower `Mixed_5a`-`Mixed_5c`.

The network is slim's (`tf_slim.nets.inception_v2`, after arXiv:1502.03167 and arXiv:1512.00567), cut where
the Object Detection API cuts it (`models/faster_rcnn_inception_v2_feature_extractor.py`), whose batch norm
settings are the defaults here.  Stages and layers carry slim's names.
"""

from dataclasses import dataclass

import tf_keras

from detector.component import Component
from detector.feature_extractors.convolution import AveragePool, Chain, MaxPool, SeparableConv, StageChain
from detector.feature_extractors.inception import Mixed, Width, preprocess

__all__ = ["first_stage", "preprocess", "tower"]


def first_stage(
    depth_multiplier: float = 1.0,
    min_depth: int = 16,
    batch_norm_momentum: float = 0.9997,
    batch_norm_epsilon: float = 0.001,
) -> Component:
    """Return the layers shared by the RPN and the box classifier.

    They map preprocessed images [B, H, W, 3] to features [B, ceil(H / 16), ceil(W / 16), 576] at depth
    multiplier 1.  Every layer has max(int(d * `depth_multiplier`), `min_depth`) filters where slim's has d.

    Raises:
        ValueError: for a multiplier that is not positive, or widths below the first layer's 3 channels.
    """
    make = _Width(depth_multiplier, min_depth, batch_norm_momentum, batch_norm_epsilon)
    return StageChain(
        Conv2d_1a_7x7=make.stem(),
        MaxPool_2a_3x3=MaxPool(3, 2),
        Conv2d_2b_1x1=make.conv(64, 1, stddev=0.1),
        Conv2d_2c_3x3=make.conv(192, 3),
        MaxPool_3a_3x3=MaxPool(3, 2),
        Mixed_3b=make.inception(64, (64, 64), (64, 96), AveragePool, 32),
        Mixed_3c=make.inception(64, (64, 96), (64, 96), AveragePool, 64),
        Mixed_4a=make.reduction((128, 160), (64, 96)),
        Mixed_4b=make.inception(224, (64, 96), (96, 128), AveragePool, 128),
        Mixed_4c=make.inception(192, (96, 128), (96, 128), AveragePool, 128),
        Mixed_4d=make.inception(160, (128, 160), (128, 160), AveragePool, 96),
        Mixed_4e=make.inception(96, (128, 192), (160, 192), AveragePool, 96),
    )


def tower(
    depth_multiplier: float = 1.0,
    min_depth: int = 16,
    batch_norm_momentum: float = 0.9997,
    batch_norm_epsilon: float = 0.001,
) -> Component:
    """Return the layers the box classifier runs on each crop of the first stage's features.

    They map crops [B, h, w, 576] to [B, ceil(h / 2), ceil(w / 2), 1024] at depth multiplier 1.  Arguments
    and errors are those of `first_stage`.
    """
    make = _Width(depth_multiplier, min_depth, batch_norm_momentum, batch_norm_epsilon)
    return StageChain(
        Mixed_5a=make.reduction((128, 192), (192, 256)),
        Mixed_5b=make.inception(352, (192, 320), (160, 224), AveragePool, 128),
        Mixed_5c=make.inception(352, (192, 320), (192, 224), MaxPool, 128),
    )


@dataclass(frozen=True)
class _Width(Width):
    """Makes the network's layers at one width."""

    batch_norm_scale: bool = True  # the detector's have a gamma

    def __post_init__(self):
        super().__post_init__()
        if self.depth(64) < 3:
            raise ValueError(
                "the first convolution needs at least 3 filters, one per colour, but has "
                f"{self.depth(64)}: raise depth_multiplier ({self.depth_multiplier}) or "
                f"min_depth ({self.min_depth})"
            )

    def stem(self) -> SeparableConv:
        """The first convolution."""
        filters = self.depth(64)
        return SeparableConv(
            filters,
            7,
            2,
            # At most 8, and never more depthwise outputs (3 colours times this) than filters.
            depth_multiplier=min(int(filters / 3), 8),
            batch_norm=self.batch_norm,
            depthwise_initializer=_truncated_normal(1.0),
            pointwise_initializer=_truncated_normal(1.0),
        )

    def inception(
        self,
        conv1x1: int,
        conv3x3: tuple[int, int],
        double3x3: tuple[int, int],
        pool: type[AveragePool] | type[MaxPool],
        projection: int,
    ) -> Mixed:
        """A block that keeps the size; pairs are the filters of the 1x1 reduction and of the 3x3 after it."""
        pool_name = "MaxPool_0a_3x3" if pool is MaxPool else "AvgPool_0a_3x3"
        return Mixed(
            Chain(Conv2d_0a_1x1=self.conv(conv1x1, 1)),
            Chain(
                Conv2d_0a_1x1=self.conv(conv3x3[0], 1, stddev=0.09),
                Conv2d_0b_3x3=self.conv(conv3x3[1], 3),
            ),
            Chain(
                Conv2d_0a_1x1=self.conv(double3x3[0], 1, stddev=0.09),
                Conv2d_0b_3x3=self.conv(double3x3[1], 3),
                Conv2d_0c_3x3=self.conv(double3x3[1], 3),
            ),
            Chain(**{pool_name: pool(3)}, Conv2d_0b_1x1=self.conv(projection, 1, stddev=0.1)),
        )

    def reduction(self, conv3x3: tuple[int, int], double3x3: tuple[int, int]) -> Mixed:
        """A block that halves the size; pairs as for `inception`."""
        return Mixed(
            Chain(
                Conv2d_0a_1x1=self.conv(conv3x3[0], 1, stddev=0.09),
                Conv2d_1a_3x3=self.conv(conv3x3[1], 3, 2),
            ),
            Chain(
                Conv2d_0a_1x1=self.conv(double3x3[0], 1, stddev=0.09),
                Conv2d_0b_3x3=self.conv(double3x3[1], 3),
                Conv2d_1a_3x3=self.conv(double3x3[1], 3, 2),
            ),
            Chain(MaxPool_1a_3x3=MaxPool(3, 2)),
        )


def _truncated_normal(stddev: float) -> tf_keras.initializers.Initializer:
    return tf_keras.initializers.TruncatedNormal(stddev=stddev)
