"""The schema of the detector: what checkpoints and exports keep of a configuration, besides the weights."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from detector.config_section import Section

_Positive = Annotated[float, Field(gt=0)]


class FeatureExtractorConfig(Section):
    """Which network computes the features; width is the Inceptions' alone, `topology` the ResNets'."""

    type: Literal[
        "inception_v2", "inception_v3", "inception_resnet_v2", "resnet50", "resnet101", "resnet152"
    ] = "inception_v2"
    depth_multiplier: float = Field(1.0, gt=0)
    min_depth: int = Field(16, ge=1)
    topology: Literal["keras", "slim", "garden"] = "keras"
    batch_norm_momentum: float | None = Field(None, ge=0, lt=1)
    batch_norm_epsilon: float | None = Field(None, gt=0)


class FixedShapeConfig(Section):
    """Stretch every image to one size, pixels."""

    kind: Literal["fixed_shape"]
    height: int = Field(ge=33)
    width: int = Field(ge=33)


class KeepAspectRatioConfig(Section):
    """Scale the shorter side to `min_dimension` unless the longer would pass `max_dimension`, pixels."""

    kind: Literal["keep_aspect_ratio"]
    min_dimension: int = Field(600, ge=33)
    max_dimension: int = Field(1024, ge=33)
    pad: bool = False

    @model_validator(mode="after")
    def _ordered(self) -> "KeepAspectRatioConfig":
        if self.min_dimension > self.max_dimension:
            raise ValueError(
                f"min_dimension {self.min_dimension} is larger than max_dimension {self.max_dimension}"
            )
        return self


class AnchorsConfig(Section):
    """The anchor grid, pixels of the canvas."""

    scales: tuple[_Positive, ...] = Field((0.25, 0.5, 1.0, 2.0), min_length=1)
    aspect_ratios: tuple[_Positive, ...] = Field((0.5, 1.0, 2.0), min_length=1)
    base_size_hw: tuple[_Positive, _Positive] = (256.0, 256.0)
    stride_hw: tuple[_Positive, _Positive] = (16.0, 16.0)
    offset_hw: tuple[float, float] = (0.0, 0.0)


class RpnConfig(Section):
    """The region proposal network; `l2` weighs its kernels' L2 loss."""

    conv_depth: int = Field(512, ge=1)
    kernel_size: int = Field(3, ge=1)
    minibatch_size: int = Field(256, ge=1)
    positive_fraction: float = Field(0.5, gt=0, le=1)
    nms_score_threshold: float = Field(0.0, ge=0, lt=1)
    nms_iou_threshold: float = Field(0.7, gt=0, le=1)
    max_proposals: int = Field(300, ge=1)
    clip_anchors: bool = False
    box_loss_weight: float = Field(2.0, ge=0)
    objectness_loss_weight: float = Field(1.0, ge=0)
    l2: float = Field(0.0, ge=0)


class BoxClassifierConfig(Section):
    """The second stage; `l2` weighs its predictor's kernels' L2 loss.

    With `winograd`, the tower's 3x3 convolutions take fewer operations where that pays: on a CPU, in float32.
    """

    crop_size: int = Field(14, ge=1)
    pool_size: int = Field(2, ge=1)
    pool_stride: int = Field(2, ge=1)
    batch_size: int = Field(64, ge=1)
    positive_fraction: float = Field(0.25, gt=0, le=1)
    share_box_across_classes: bool = False
    dropout_rate: float = Field(0.0, ge=0, lt=1)
    box_loss_weight: float = Field(2.0, ge=0)
    class_loss_weight: float = Field(1.0, ge=0)
    l2: float = Field(0.0, ge=0)
    winograd: bool = True
    nms_score_threshold: float = Field(0.0, ge=0, lt=1)
    nms_iou_threshold: float = Field(0.6, gt=0, le=1)
    max_detections_per_class: int = Field(100, ge=1)
    max_detections: int = Field(300, ge=1)

    @model_validator(mode="after")
    def _pool_fits_the_crop(self) -> "BoxClassifierConfig":
        if self.pool_size > self.crop_size:
            raise ValueError(
                f"pool_size {self.pool_size} is larger than crop_size {self.crop_size}, so no cell is left; "
                "raise crop_size, or lower pool_size (1 pools nothing)"
            )
        return self


Precision = Literal["float32", "bfloat16"]


class ModelConfig(Section):
    """The detector."""

    feature_extractor: FeatureExtractorConfig = FeatureExtractorConfig()
    resizer: Annotated[FixedShapeConfig | KeepAspectRatioConfig, Field(discriminator="kind")] = (
        KeepAspectRatioConfig(kind="keep_aspect_ratio")
    )
    anchors: AnchorsConfig = AnchorsConfig()
    rpn: RpnConfig = RpnConfig()
    box_classifier: BoxClassifierConfig = BoxClassifierConfig()
    # `auto`: fixed statistics where weights are restored, updated ones where training starts from scratch.
    batch_norm: Literal["auto", "fixed", "update"] = "auto"
    # What convolutions and dense layers compute in; variables are float32 either way.
    precision: Precision = "float32"
    # Only checked against the data set's classes; the data decides.
    num_classes: int | None = Field(None, ge=1)

    @model_validator(mode="after")
    def _crops_fit_the_tower(self) -> "ModelConfig":
        crops = self.box_classifier
        side = (crops.crop_size - crops.pool_size) // crops.pool_stride + 1
        # Their towers' 3x3 convolutions pad nothing.
        if self.feature_extractor.type in ("inception_v3", "inception_resnet_v2") and side < 3:
            raise ValueError(
                f"the tower of {self.feature_extractor.type} needs pooled crops of at least 3x3 cells, but "
                f"crop_size {crops.crop_size}, pool_size {crops.pool_size} and pool_stride "
                f"{crops.pool_stride} make {side}x{side}; raise box_classifier.crop_size"
            )
        return self
