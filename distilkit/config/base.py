"""What the settings of every run share: noise, batches, the optimizer and its schedule."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Auto = Literal["auto"]
Precision = Literal["fp32", "bf16", "fp16"]
ExportPrecision = Literal["fp32", "fp16", "int8"]
Device = Literal["cpu", "cuda", "mps"]
EmbeddingFormat = Literal["npy", "npz", "safetensors", "parquet"]
Pool = Literal["none", "mean"]


class Section(BaseModel):
    """A frozen group of settings that refuses keys it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class Noise(Section):
    """How the student's audio is disturbed while the teacher hears it as it is."""

    probability: Annotated[
        float, Field(ge=0.0, le=1.0, description="Share of clips that are disturbed; 0 is off.")
    ] = 0.0
    snr: Annotated[
        list[float],
        Field(min_length=2, max_length=2, description="dB; range of the signal-to-noise ratio."),
    ] = [0.0, 20.0]
    folder: Annotated[
        str,
        Field(description="A folder of noise recordings; empty makes coloured noise and babble."),
    ] = ""
    reverberation: Annotated[
        float, Field(ge=0.0, le=1.0, description="Share of disturbed clips put into a room.")
    ] = 0.3
    band: Annotated[
        float, Field(ge=0.0, le=1.0, description="Share of disturbed clips that lose a band.")
    ] = 0.3
    equaliser: Annotated[
        float,
        Field(
            ge=0.0, le=1.0, description="Share of disturbed clips that another microphone colours."
        ),
    ] = 0.3
    gain: Annotated[
        list[float],
        Field(min_length=2, max_length=2, description="dB; range of the change of level."),
    ] = [-15.0, 5.0]
    voice: Annotated[
        float,
        Field(
            ge=0.0, le=1.0, description="Share of disturbed clips with pitch and formants moved."
        ),
    ] = 0.0

    @model_validator(mode="after")
    def _ranges(self) -> "Noise":
        if self.snr[0] > self.snr[1] or self.gain[0] > self.gain[1]:
            raise ValueError("snr and gain are ranges, from the lower number to the higher")
        return self


class Batches(Section):
    """How much audio one optimizer step sees."""

    seconds: Annotated[
        float, Field(gt=0.0, description="Seconds of audio per optimizer step (effective batch).")
    ] = 375.0
    micro_seconds: Annotated[
        Annotated[float, Field(gt=0.0)] | Auto,
        Field(description="Seconds of audio, padding counted, that are in memory at once."),
    ] = "auto"
    workers: Annotated[
        Annotated[int, Field(ge=0)] | Auto,
        Field(description="Processes that load audio; 0 loads in the main process."),
    ] = "auto"


class Train(Section):
    """The optimizer and its schedule, precision, and how often to validate and save."""

    steps: Annotated[
        Annotated[int, Field(ge=1)] | Auto,
        Field(description="Optimizer steps; `auto` follows from `passes` and the audio."),
    ] = "auto"
    passes: Annotated[
        float, Field(gt=0.0, description="Passes over the audio when `steps` is `auto`.")
    ] = 20.0
    min_steps: Annotated[
        int, Field(ge=1, description="Optimizer steps; the least when `steps` is `auto`.")
    ] = 1
    max_steps: Annotated[
        int, Field(ge=1, description="Optimizer steps; the most when `steps` is `auto`.")
    ] = 200_000
    hours: Annotated[
        Annotated[float, Field(gt=0.0)] | Auto,
        Field(
            description="The most time to take, for steps and stored targets: a few real steps are measured, "
            "and no more are made than fit; `auto` sets no limit."
        ),
    ] = "auto"
    learning_rate: Annotated[float, Field(gt=0.0, description="Peak learning rate of AdamW.")] = (
        2e-4
    )
    warmup_fraction: Annotated[
        float,
        Field(
            ge=0.0, le=1.0, description="Share of the steps with linear warm-up; then linear decay."
        ),
    ] = 0.07
    betas: Annotated[
        list[float], Field(min_length=2, max_length=2, description="AdamW's two decay rates.")
    ] = [0.9, 0.98]
    epsilon: Annotated[float, Field(gt=0.0, description="AdamW's epsilon.")] = 1e-6
    weight_decay: Annotated[float, Field(ge=0.0, description="AdamW's weight decay.")] = 1e-6
    clip_norm: Annotated[
        float, Field(gt=0.0, description="Gradient norm above which gradients are scaled down.")
    ] = 5.0
    conv_gradient_scale: Annotated[
        float,
        Field(ge=0.0, le=1.0, description="Factor on the gradient that enters the conv front end."),
    ] = 0.1
    freeze_front_end: Annotated[
        bool,
        Field(
            description="Keep the conv front end as it is. A student that has its teacher's and hears what "
            "the teacher hears then takes what that gave."
        ),
    ] = False
    precision: Annotated[
        Precision | Auto,
        Field(description="Arithmetic; `auto` takes bf16 where the device has it."),
    ] = "auto"
    gradient_checkpointing: Annotated[
        bool | Auto, Field(description="Recompute activations in the backward pass to save memory.")
    ] = "auto"
    compile: Annotated[
        bool | Auto,
        Field(
            description="Compile transformer layers with torch.compile; `auto` tries it on a GPU where the "
            "run is long enough, and keeps it where it pays."
        ),
    ] = "auto"
    device: Annotated[Device | Auto, Field(description="Where to train.")] = "auto"
    memory_gib: Annotated[
        Annotated[float, Field(gt=0.0)] | Auto,
        Field(
            description="GiB; the most memory to take, of the GPU or, on a CPU, of the machine; `auto` is "
            "what is free."
        ),
    ] = "auto"
    validate_every: Annotated[
        int,
        Field(ge=1, description="Optimizer steps between validations; the last step always is."),
    ] = 500
    checkpoint_every: Annotated[
        int,
        Field(ge=1, description="Optimizer steps between checkpoints; the last step always is."),
    ] = 500
    seed: Annotated[int, Field(ge=0, description="Seed of everything random.")] = 0
