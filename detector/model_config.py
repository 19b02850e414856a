"""The schema of the detector: what checkpoints and exports keep of a configuration, besides the weights."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from detector.config_section import Section

_Positive = Annotated[float, Field(gt=0)]


class FeatureExtractorConfig(Section):
    """Which network computes the features."""

    type: Literal[
        "inception_v2", "inception_v3", "inception_resnet_v2", "resnet50", "resnet101", "resnet152"
    ] = "inception_v2"
    """The network."""
    depth_multiplier: float = Field(1.0, gt=0)
    """Scales the channels of an Inception."""
    min_depth: int = Field(16, ge=1)
    """No convolution of an Inception gets fewer channels."""
    topology: Literal["keras", "slim", "garden"] = "keras"
    """Where a ResNet strides: as in the Object Detection API of TF2, of TF1, or in the Model Garden."""
    batch_norm_momentum: float | None = Field(None, ge=0, lt=1)
    """Of the moving statistics; the network's published one where it is left out."""
    batch_norm_epsilon: float | None = Field(None, gt=0)
    """The network's published one where it is left out."""


class FixedShapeConfig(Section):
    """Stretch every image to one size, pixels."""

    kind: Literal["fixed_shape"]
    height: int = Field(ge=33)
    """Pixels."""
    width: int = Field(ge=33)
    """Pixels."""


class KeepAspectRatioConfig(Section):
    """Scale the shorter side to `min_dimension` unless the longer would pass `max_dimension`, pixels."""

    kind: Literal["keep_aspect_ratio"]
    min_dimension: int = Field(600, ge=33)
    """Of the shorter side, pixels."""
    max_dimension: int = Field(1024, ge=33)
    """Of the longer side, pixels."""
    pad: bool = False
    """Pads every image to a square of `max_dimension`, so that all canvases are one size."""

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
    """Multiples of the base size."""
    aspect_ratios: tuple[_Positive, ...] = Field((0.5, 1.0, 2.0), min_length=1)
    """Widths over heights, of equal area."""
    base_size_hw: tuple[_Positive, _Positive] = (256.0, 256.0)
    """Height and width of scale 1."""
    stride_hw: tuple[_Positive, _Positive] = (16.0, 16.0)
    """From one centre to the next."""
    offset_hw: tuple[float, float] = (0.0, 0.0)
    """The first centre."""


class RpnConfig(Section):
    """The region proposal network."""

    conv_depth: int = Field(512, ge=1)
    """Channels of its convolution."""
    kernel_size: int = Field(3, ge=1)
    """Side of that convolution's kernel, cells."""
    minibatch_size: int = Field(256, ge=1)
    """Anchors that its losses draw of an image."""
    positive_fraction: float = Field(0.5, gt=0, le=1)
    """The largest part of them that is on objects."""
    nms_score_threshold: float = Field(0.0, ge=0, lt=1)
    """Proposals below this objectness are dropped."""
    nms_iou_threshold: float = Field(0.7, gt=0, le=1)
    """Of two proposals that overlap by more, the better is kept."""
    max_proposals: int = Field(300, ge=1)
    """Proposals an image."""
    clip_anchors: bool = False
    """Clip anchors to the canvas and train on them; those that cross its edge are left out otherwise."""
    box_loss_weight: float = Field(2.0, ge=0)
    """Of the smooth L1 loss."""
    objectness_loss_weight: float = Field(1.0, ge=0)
    """Of the cross-entropy."""
    l2: float = Field(0.0, ge=0)
    """Weight of half the sum of its kernels' squares."""
    winograd: bool = True
    """Compute that convolution with fewer operations where that pays: on a CPU, in float32."""


class BoxClassifierConfig(Section):
    """The second stage."""

    crop_size: int = Field(14, ge=1)
    """Side of what is cropped of the features for each proposal, cells."""
    pool_size: int = Field(2, ge=1)
    """Side of the max pool of the crops, cells."""
    pool_stride: int = Field(2, ge=1)
    """Cells."""
    batch_size: int = Field(64, ge=1)
    """Proposals that its losses draw of an image."""
    positive_fraction: float = Field(0.25, gt=0, le=1)
    """The largest part of them that is on objects."""
    share_box_across_classes: bool = False
    """One box for all classes instead of one for each."""
    dropout_rate: float = Field(0.0, ge=0, lt=1)
    """Before the predictor, in training."""
    box_loss_weight: float = Field(2.0, ge=0)
    """Of the smooth L1 loss."""
    class_loss_weight: float = Field(1.0, ge=0)
    """Of the cross-entropy."""
    l2: float = Field(0.0, ge=0)
    """Weight of half the sum of the predictor's kernels' squares."""
    winograd: bool = True
    """Compute the tower's 3x3 convolutions with fewer operations where that pays: on a CPU, in float32."""
    nms_score_threshold: float = Field(0.0, ge=0, lt=1)
    """Detections below this score are dropped."""
    nms_iou_threshold: float = Field(0.6, gt=0, le=1)
    """Of two detections of a class that overlap by more, the better is kept."""
    max_detections_per_class: int = Field(100, ge=1)
    """Of an image."""
    max_detections: int = Field(300, ge=1)
    """Of an image."""

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
    batch_norm: Literal["auto", "fixed", "update"] = "auto"
    """BatchNorm's statistics of what trains: as they are, or of the batches; auto keeps restored ones, and
    makes its own where training starts from scratch."""
    precision: Precision = "float32"
    """What convolutions and dense layers compute in; variables are float32 either way."""
    num_classes: int | None = Field(None, ge=1)
    """Only checked against the data set's classes; the data decides."""

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
