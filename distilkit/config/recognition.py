"""The settings of a recogniser: its text, its tokenizer, and how it is fine-tuned."""

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from distilkit.config.base import Auto, Batches, Noise, Section, Train

TokenizerKind = Literal["char", "unigram", "bpe"]
UnicodeForm = Literal["NFC", "NFKC", "NFD", "NFKD"]
Case = Literal["keep", "lower", "upper"]
Punctuation = Literal["keep", "remove"]
Digits = Literal["keep", "spell"]
TranscriptFormat = Literal["txt", "json", "srt", "vtt"]
EncoderStart = Literal["pretrained", "random"]
Layers = Literal["last", "weighted"]
LoraTarget = Literal[
    "q_proj", "k_proj", "v_proj", "out_proj", "intermediate_dense", "output_dense", "projection"
]


class Text(Section):
    """How text is written before it becomes tokens; the same for training and for error rates."""

    form: Annotated[UnicodeForm, Field(description="Unicode form.")] = "NFKC"
    case: Annotated[Case, Field(description="Letters as they are, or all `lower` or `upper`.")] = (
        "lower"
    )
    punctuation: Annotated[
        Punctuation,
        Field(description="Punctuation and symbols; an apostrophe inside a word always stays."),
    ] = "remove"
    digits: Annotated[
        Digits, Field(description="Digits as they are, or spelled as words of the language.")
    ] = "keep"
    language: Annotated[
        str,
        Field(
            description="In which digits are spelled: `en`, `de`, `pt_BR` ... For `tr` and `az`, "
            "I and i are two letters."
        ),
    ] = "en"

    @field_validator("language")
    @classmethod
    def _canonical(cls, value: str) -> str:
        """`pt-br` is `pt_BR`."""
        name, *region = value.replace("-", "_").split("_")
        return "_".join([name.lower(), *(part.upper() for part in region)])


class Tokenizer(Section):
    """What the tokens are."""

    kind: Annotated[
        TokenizerKind,
        Field(description="Characters, or subwords by SentencePiece: `unigram`, `bpe`."),
    ] = "char"
    size: Annotated[
        Annotated[int, Field(ge=4, le=50_000)] | Auto,
        Field(description="Tokens in all; `auto` follows from the text."),
    ] = "auto"


class Transcribed(Section):
    """Which utterances are used, and which are held out."""

    max_seconds: Annotated[
        float, Field(ge=1.0, le=3600.0, description="Seconds; longer utterances are left out.")
    ] = 30.0
    min_seconds: Annotated[
        float, Field(ge=0.025, le=10.0, description="Seconds; shorter utterances are left out.")
    ] = 0.1
    valid_fraction: Annotated[
        float,
        Field(
            ge=0.0,
            le=0.5,
            description="Share of the audio held out: whole speakers where they are known, else "
            "whole recordings.",
        ),
    ] = 0.1
    valid_minutes: Annotated[
        float, Field(gt=0.0, description="Minutes; the most audio that is held out.")
    ] = 30.0
    text_column: Annotated[
        str, Field(description="Column of a table that holds the text; empty finds it.")
    ] = ""


class Recogniser(Section):
    """The encoder under the recogniser's head."""

    start: Annotated[
        EncoderStart,
        Field(
            description="`pretrained` keeps the encoder's weights; `random` draws new ones, to see "
            "what pre-training was worth."
        ),
    ] = "pretrained"
    dropout: Annotated[
        float,
        Field(ge=0.0, lt=1.0, description="Dropout of hidden states, attention, activations."),
    ] = 0.1
    layers: Annotated[
        Layers,
        Field(
            description="What the head reads: the `last` layer, or a learned `weighted` sum of all."
        ),
    ] = "last"


class Lora(Section):
    """Low-rank adapters in place of training all weights (arXiv 2106.09685)."""

    rank: Annotated[
        int, Field(ge=0, le=512, description="Rank of the adapters; 0 trains all weights.")
    ] = 0
    alpha: Annotated[
        Annotated[float, Field(gt=0.0)] | Auto,
        Field(description="Their scale times the rank; `auto` is twice the rank."),
    ] = "auto"
    learning_rate: Annotated[
        float,
        Field(gt=0.0, description="Peak learning rate of the adapters; the head keeps its own."),
    ] = 1e-3
    dropout: Annotated[
        float, Field(ge=0.0, lt=1.0, description="Dropout of what the adapters read.")
    ] = 0.0
    norms: Annotated[
        bool,
        Field(
            description="Train layer norms and biases of the transformer too (arXiv 2309.12307, "
            "section 3.3)."
        ),
    ] = False
    positions: Annotated[
        bool,
        Field(description="Train the positional convolution too, all of it; no adapter fits it."),
    ] = False
    front_end: Annotated[
        bool, Field(description="Train the convolutions of the front end too, all of them.")
    ] = False
    targets: Annotated[
        list[LoraTarget], Field(min_length=1, description="Linear maps that get an adapter.")
    ] = ["q_proj", "k_proj", "v_proj", "out_proj", "intermediate_dense", "output_dense"]


class Augment(Section):
    """How training utterances are varied."""

    speeds: Annotated[
        list[Annotated[float, Field(ge=0.5, le=2.0)]],
        Field(min_length=1, description="Speeds, one drawn for each utterance; [1.0] is off."),
    ] = [0.9, 1.0, 1.1]
    mask_probability: Annotated[
        float,
        Field(
            ge=0.0,
            le=1.0,
            description="SpecAugment in time: spans times length, as a share of the utterance's "
            "frames; 0 is off.",
        ),
    ] = 0.3
    mask_frames: Annotated[
        int, Field(ge=1, le=100, description="Frames in a masked span (20 ms each).")
    ] = 10
    mask_widths: Annotated[
        float,
        Field(
            ge=0.0,
            le=0.5,
            description="SpecAugment in width: most of a frame's numbers in the "
            "one span that is zeroed, as a share; 0 is off.",
        ),
    ] = 0.0


class CtcTrain(Train):
    """The optimizer and its schedule, which parts it trains when, and when it stops early."""

    passes: Annotated[
        float, Field(gt=0.0, description="Passes over the audio when `steps` is `auto`.")
    ] = 60.0
    min_steps: Annotated[
        int, Field(ge=1, description="Optimizer steps; the least when `steps` is `auto`.")
    ] = 500
    max_steps: Annotated[
        int, Field(ge=1, description="Optimizer steps; the most when `steps` is `auto`.")
    ] = 50_000
    head_learning_rate: Annotated[
        float, Field(gt=0.0, description="Peak learning rate of the new head.")
    ] = 1e-3
    layer_decay: Annotated[
        float,
        Field(
            gt=0.0,
            le=1.0,
            description="Factor on the learning rate from each layer to the one below it.",
        ),
    ] = 1.0
    head_fraction: Annotated[
        float,
        Field(
            ge=0.0, lt=1.0, description="Share of the steps in which only the new head is trained."
        ),
    ] = 0.05
    freeze_front_end: Annotated[
        bool,
        Field(description="Keep the conv front end as it is. With adapters `lora.front_end` says."),
    ] = True
    patience: Annotated[
        int,
        Field(
            ge=0,
            description="Validations without a better word error rate before training stops; 0 goes on.",
        ),
    ] = 0


class CtcRecipe(Section):
    """Everything that decides what a fine-tuning run computes."""

    command: Literal["finetune-ctc"] = "finetune-ctc"
    data: Transcribed = Transcribed()
    model: Recogniser = Recogniser()
    lora: Lora = Lora()
    augment: Augment = Augment()
    noise: Noise = Noise()
    batches: Batches = Batches()
    train: CtcTrain = CtcTrain()

    @property
    def frozen_front_end(self) -> bool:
        """Whether the conv front end stays as it is."""
        return not self.lora.front_end if self.lora.rank else self.train.freeze_front_end

    @property
    def peak_rate(self) -> tuple[str, float]:
        """The setting of the encoder's learning rate, and what it is."""
        if self.lora.rank:
            return "lora.learning_rate", self.lora.learning_rate
        return "train.learning_rate", self.train.learning_rate

    @model_validator(mode="after")
    def _fits_together(self) -> "CtcRecipe":
        if self.data.min_seconds >= self.data.max_seconds:
            raise ValueError("data.min_seconds must be below data.max_seconds")
        return self
