"""The settings of a distillation."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from distilkit.config.base import Auto, Batches, Noise, Section, Train

Architecture = Literal["paper", "paper-ln", "deep-thin", "thin-conv", "hubert"]
Start = Literal["teacher", "random"]
ObjectiveName = Literal["layerwise", "units"]
Preset = Literal["all-round", "content", "speaker"]
Features = Literal["layers", "mfcc"]
Stored = Literal["fp16", "int8"]


class Data(Section):
    """How recordings become training windows."""

    window_seconds: Annotated[
        float,
        Field(ge=1.0, le=60.0, description="Seconds; the longest window a recording is cut into."),
    ] = 15.625
    min_seconds: Annotated[
        float, Field(ge=0.025, le=10.0, description="Seconds; shorter recordings are left out.")
    ] = 0.1
    valid_fraction: Annotated[
        float,
        Field(
            ge=0.0,
            le=0.5,
            description="Share of the audio, in whole recordings, held out to validate.",
        ),
    ] = 0.05
    valid_minutes: Annotated[
        float, Field(gt=0.0, description="Minutes; the most audio that is held out.")
    ] = 30.0

    @model_validator(mode="after")
    def _windows_hold_the_shortest(self) -> "Data":
        if self.min_seconds * 2 > self.window_seconds:
            raise ValueError("min_seconds must be at most half of window_seconds")
        return self


class Student(Section):
    """What is trained. Numbers that are `auto` follow from the architecture and the teacher."""

    architecture: Annotated[
        Architecture, Field(description="Which student; `paper` is the published DistilHuBERT.")
    ] = "paper"
    layers: Annotated[
        Annotated[int, Field(ge=1, le=48)] | Auto,
        Field(description="Transformer layers; `auto` is the architecture's number."),
    ] = "auto"
    width: Annotated[
        Annotated[int, Field(ge=16, le=2048)] | Auto,
        Field(
            description="Size of a frame's vector; `auto` is the architecture's, else the teacher's."
        ),
    ] = "auto"
    heads: Annotated[
        Annotated[int, Field(ge=1, le=64)] | Auto,
        Field(description="Attention heads; `auto` keeps the width of the teacher's heads."),
    ] = "auto"
    feed_forward: Annotated[
        Annotated[int, Field(ge=16, le=8192)] | Auto,
        Field(description="Width inside a layer's feed-forward part; `auto` keeps the ratio."),
    ] = "auto"
    conv_widths: Annotated[
        list[Annotated[int, Field(ge=8, le=1024)]] | Auto,
        Field(description="Channels of the seven convolutions of the front end."),
    ] = "auto"
    position_frames: Annotated[
        Annotated[int, Field(ge=2, le=512)] | Auto,
        Field(description="Frames that the positional convolution spans."),
    ] = "auto"
    start: Annotated[
        Start,
        Field(description="`teacher` copies every weight that fits, `random` copies none."),
    ] = "teacher"
    start_layers: Annotated[
        list[Annotated[int, Field(ge=1, le=48)]] | Auto,
        Field(
            description="Teacher layers that the student's layers start from, in order; `auto` is "
            "the first ones."
        ),
    ] = "auto"
    dropout: Annotated[
        float,
        Field(ge=0.0, lt=1.0, description="Dropout of hidden states, attention, activations."),
    ] = 0.1


class Objective(Section):
    """What the student predicts."""

    name: Annotated[
        ObjectiveName,
        Field(description="`layerwise` predicts hidden states, `units` their clusters."),
    ] = "layerwise"
    layers: Annotated[
        Annotated[list[Annotated[int, Field(ge=0, le=48)]], Field(min_length=1)] | Preset,
        Field(
            description="Teacher layers to predict, one head each; 0 is the input. A preset is "
            "scaled to the teacher's depth: `all-round` is 4, 8, 12 of 12, `content` 8, `speaker` 4."
        ),
    ] = "all-round"
    student_layers: Annotated[
        Annotated[list[Annotated[int, Field(ge=0, le=48)]], Field(min_length=1)] | Auto,
        Field(
            description="Student layers that predict them, one for each (layer to layer, deep "
            "supervision); `auto` predicts all from the last."
        ),
    ] = "auto"
    l1_weight: Annotated[float, Field(ge=0.0, description="Weight of the mean L1 distance.")] = 1.0
    l2_weight: Annotated[
        float, Field(ge=0.0, description="Weight of the mean squared distance.")
    ] = 0.0
    cosine_weight: Annotated[float, Field(ge=0.0, description="Weight of the cosine term.")] = 1.0
    cosine: Annotated[
        Literal["log-sigmoid", "raw"],
        Field(description="The cosine term: -log sigmoid(cos) as in the paper, or 1 - cos."),
    ] = "log-sigmoid"
    features: Annotated[
        Features,
        Field(description="`units`: clusters of the teacher's layers, or of MFCC (no teacher)."),
    ] = "layers"
    clusters: Annotated[
        int, Field(ge=2, le=20_000, description="`units`: clusters, for each predicted layer.")
    ] = 100
    cluster_minutes: Annotated[
        float,
        Field(gt=0.0, description="`units`: minutes of audio that the clusters are found on."),
    ] = 60.0
    codebook: Annotated[
        str,
        Field(description="`units`: a codebook of `distilkit units`; empty finds one beforehand."),
    ] = ""
    normalise: Annotated[
        bool,
        Field(
            description="Bring each window's features to zero mean and unit variance before they "
            "are predicted or clustered, so that they tell less of who speaks."
        ),
    ] = False
    part_seconds: Annotated[
        Annotated[list[Annotated[float, Field(ge=0.1)]], Field(min_length=2, max_length=2)]
        | Literal["whole"],
        Field(
            description="Most seconds that the student hears at once, drawn between two numbers: it hears "
            "each window in parts, the teacher `whole`."
        ),
    ] = "whole"
    mask_probability: Annotated[
        float,
        Field(
            ge=0.0,
            le=1.0,
            description="Frames that the student must guess: spans times length, as a share of the "
            "clip; spans overlap, so 0.8 hides about half. 0 hides none.",
        ),
    ] = 0.0
    mask_frames: Annotated[
        int, Field(ge=1, le=100, description="Frames in a masked span (20 ms each).")
    ] = 10
    visible_weight: Annotated[
        float,
        Field(ge=0.0, le=1.0, description="Weight of frames that are not masked, beside 1."),
    ] = 1.0

    @model_validator(mode="after")
    def _makes_sense(self) -> "Objective":
        if isinstance(self.layers, list) and len(set(self.layers)) != len(self.layers):
            raise ValueError("layers must be different whole numbers from 0 up")
        if self.name == "layerwise" and not (
            self.l1_weight or self.l2_weight or self.cosine_weight
        ):
            raise ValueError("l1_weight, l2_weight and cosine_weight are all 0: nothing to learn")
        if self.name == "layerwise" and self.features == "mfcc":
            raise ValueError("features `mfcc` belong to the objective `units`")
        if self.name == "layerwise" and self.codebook:
            raise ValueError("a codebook belongs to the objective `units`")
        if self.normalise and self.features == "mfcc":
            raise ValueError("normalise is for layers; MFCC always are")
        if self.part_seconds != "whole" and self.part_seconds[0] > self.part_seconds[1]:
            raise ValueError("part_seconds is a range, from the lower number to the higher")
        if not self.visible_weight and not self.mask_probability:
            raise ValueError("visible_weight and mask_probability are both 0: nothing to learn")
        return self


class Targets(Section):
    """Whether what the teacher says is computed once and kept on disk."""

    store: Annotated[
        Stored | Literal["none"] | Auto,
        Field(
            description="Form of what is kept; `none` runs the teacher beside the student in every pass. "
            "`auto` keeps fp16 where there are at least two passes and the disk has room."
        ),
    ] = "auto"
    folder: Annotated[
        str,
        Field(
            description="Where they are kept for other runs too; empty keeps them in the run folder "
            "until the student is written."
        ),
    ] = ""
    most_gib: Annotated[float, Field(gt=0.0, description="GiB; the most that `auto` keeps.")] = (
        100.0
    )


class Recipe(Section):
    """Everything that decides what a distillation run computes."""

    command: Literal["distill"] = "distill"
    data: Data = Data()
    student: Student = Student()
    objective: Objective = Objective()
    targets: Targets = Targets()
    noise: Noise = Noise()
    batches: Batches = Batches()
    train: Train = Train()

    @property
    def frozen_front_end(self) -> bool:
        """Whether the conv front end stays as it is."""
        return self.train.freeze_front_end

    @property
    def peak_rate(self) -> tuple[str, float]:
        """The setting of the encoder's learning rate, and what it is."""
        return "train.learning_rate", self.train.learning_rate
