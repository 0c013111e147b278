"""Student architectures, how they start from their teacher, and how they are saved."""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import HubertConfig, HubertModel, Wav2Vec2FeatureExtractor

from distilkit import config
from distilkit.audio import SAMPLE_RATE
from distilkit.encoder import Encoder, exact, front_norm
from distilkit.errors import DistilkitError
from distilkit.wording import listed

SIZES = {  # in a recipe, and in a configuration
    "layers": "num_hidden_layers",
    "width": "hidden_size",
    "heads": "num_attention_heads",
    "feed_forward": "intermediate_size",
    "conv_widths": "conv_dim",
    "position_frames": "num_conv_pos_embeddings",
}
THIN_CONV = [128, 256, 256, 256, 256, 512, 512]  # channels: narrow where there are most frames


def paper(teacher: HubertConfig, settings: config.Student) -> HubertConfig:
    """The published DistilHuBERT: two layers of the teacher's, no norm before the projection.

    Beside a base teacher: 23.49 M parameters.

    Source: arXiv 2110.01900, section 3; the published checkpoint's configuration.
    """
    student = paper_ln(teacher, settings)
    student.feat_proj_layer_norm = False
    return student


def paper_ln(teacher: HubertConfig, settings: config.Student) -> HubertConfig:
    """The paper's student with the norm before the projection kept.

    Started from the teacher it computes the teacher's first layers exactly.
    """
    return _sized(teacher, settings, layers=2)


def deep_thin(teacher: HubertConfig, settings: config.Student) -> HubertConfig:
    """Twelve narrow layers, 23.3 M parameters beside a base teacher: for recognition.

    Source: the form of FitHuBERT (arXiv 2207.00555) and ARMHuBERT (arXiv 2305.11685), whose deep thin
    students recognise words better than shallow wide ones of the same size; the sizes are ours.
    """
    return _sized(teacher, settings, layers=12, width=384, heads=6, feed_forward=1152)


def thin_conv(teacher: HubertConfig, settings: config.Student) -> HubertConfig:
    """Two layers of the teacher's behind a conv front end that is narrow where frames are many.

    The front end is most of a small student's time. Source: FitHuBERT (arXiv 2207.00555, section
    3.1); the widths are ours.
    """
    return _sized(teacher, settings, layers=2, conv_widths=THIN_CONV)


def hubert(teacher: HubertConfig, settings: config.Student) -> HubertConfig:
    """A HuBERT of the teacher's form and depth: for training from scratch, or again."""
    return _sized(teacher, settings, layers=teacher.num_hidden_layers)


ARCHITECTURES: dict[config.Architecture, Callable[[HubertConfig, config.Student], HubertConfig]] = {
    "paper": paper,
    "paper-ln": paper_ln,
    "deep-thin": deep_thin,
    "thin-conv": thin_conv,
    "hubert": hubert,
}


@dataclass(frozen=True, kw_only=True)
class Beginning:
    """Where a student's weights come from."""

    copied: tuple[str, ...]  # names of weights that are the source's
    fresh: tuple[str, ...]  # names of weights that are random
    layers: tuple[int, ...]  # the source's layers that the student's start from, in order
    text: str  # one line for people


def shape(teacher: HubertConfig | None, settings: config.Student, *, masks: bool) -> HubertConfig:
    """The configuration of a student.

    Args:
        teacher: the teacher's; None is HuBERT base's.
        settings: architecture and sizes.
        masks: whether training hides frames.

    Raises:
        DistilkitError: sizes that do not fit together.
    """
    student = ARCHITECTURES[settings.architecture](_as_hubert(teacher), settings)
    _set_masks(student, masks)
    if student.hidden_size % student.num_attention_heads:
        raise DistilkitError(
            f"`student.width` {student.hidden_size} is not a multiple of `student.heads` "
            f"{student.num_attention_heads}",
            f"--set student.heads={_dividing(student.hidden_size)}",
        )
    groups = student.num_conv_pos_embedding_groups
    if student.hidden_size % groups:
        raise DistilkitError(
            f"`student.width` {student.hidden_size} is not a multiple of "
            f"{groups}, the groups of the positional convolution",
            f"--set student.width={max(1, student.hidden_size // groups) * groups}",
        )
    if len(student.conv_dim) != len(student.conv_kernel):
        raise DistilkitError(
            f"`student.conv_widths` names {len(student.conv_dim)} widths for "
            f"{len(student.conv_kernel)} convolutions",
            listed("student.conv_widths", THIN_CONV),
        )
    return student


def build(
    teacher: Encoder | None, settings: config.Student, *, masks: bool = False
) -> tuple[Encoder, Beginning]:
    """A student that starts from its teacher's weights, and what was copied.

    What the two have in common by name and shape is copied: conv front end, projection, positional
    convolution, norms, and the chosen teacher layers in order.

    Raises:
        DistilkitError: the teacher has no such layers, or sizes do not fit together.
    """
    if settings.start_layers != "auto" and (teacher is None or settings.start == "random"):
        raise DistilkitError(
            f"`student.start_layers` {settings.start_layers} of no teacher: the student starts at random",
            "--set student.start_layers=auto",
        )
    wanted = shape(teacher.model.config if teacher else None, settings, masks=masks)
    model = HubertModel(wanted)
    weights: dict[str, Tensor] = {}
    layers: tuple[int, ...] = ()
    if teacher is not None and settings.start == "teacher":
        layers = _start_layers(teacher, wanted, settings)
        weights = _renumbered(teacher.model.state_dict(), layers)
    normalise = teacher.normalise if teacher else wanted.feat_extract_norm == "layer"
    return _begin(model, weights, layers, normalise, masks, "the teacher")


def check_existing(student: Encoder, settings: config.Student) -> None:
    """Refuse a recipe that wants another student than the one that is there.

    Raises:
        DistilkitError: it asks for other sizes, or names layers to start from.
    """
    own = _as_hubert(student.model.config)
    for name, field in SIZES.items():
        asked, has = getattr(settings, name), getattr(own, field)
        if asked not in ("auto", has):
            raise DistilkitError(
                f"`student.{name}` is {asked}, but the student to go on with has {has}",
                f"--set student.{name}=auto",
            )
    if settings.start_layers != "auto":
        raise DistilkitError(
            f"`student.start_layers` {settings.start_layers} is for a new student, not one to go on with",
            "--set student.start_layers=auto",
        )


def resume_from(
    student: Encoder, settings: config.Student, *, masks: bool = False
) -> tuple[Encoder, Beginning]:
    """An existing student to train on: its own form, sizes and weights, the recipe's dropout."""
    wanted = _as_hubert(student.model.config)
    for name in ("hidden_dropout", "attention_dropout", "activation_dropout"):
        setattr(wanted, name, settings.dropout)
    wanted.layerdrop = 0.0
    _set_masks(wanted, masks)
    layers = tuple(range(1, student.depth + 1))
    weights = student.model.state_dict()
    return _begin(HubertModel(wanted), weights, layers, student.normalise, masks, "the student")


def _begin(
    model: HubertModel,
    weights: Mapping[str, Tensor],
    layers: tuple[int, ...],
    normalise: bool,
    masks: bool,
    source: str,
) -> tuple[Encoder, Beginning]:
    own = model.state_dict()
    copied = [n for n, t in own.items() if n in weights and weights[n].shape == t.shape]
    model.load_state_dict({name: weights[name] for name in copied}, strict=False)
    if not masks and "masked_spec_embed" in dict(model.named_parameters()):
        model.masked_spec_embed.requires_grad_(False)  # unused until CTC fine-tuning masks
    fresh = [name for name in own if name not in copied and name != "masked_spec_embed"]
    whole = [
        layer
        for place, layer in enumerate(layers)
        if not any(name.startswith(f"encoder.layers.{place}.") for name in fresh)
    ]
    begins = Beginning(
        copied=tuple(copied),
        fresh=tuple(fresh),
        layers=tuple(whole),
        text=_describe(own, copied, whole, source),
    )
    return Encoder(model=exact(model), normalise=normalise), begins


def _describe(
    own: Mapping[str, Tensor], copied: Sequence[str], layers: Sequence[int], source: str
) -> str:
    if not copied:
        return "random weights"
    parts = {
        "front end": "feature_extractor.",
        "projection": "feature_projection.projection",
        "positional convolution": "encoder.pos_conv_embed.",
    }
    kept = [
        part
        for part, prefix in parts.items()
        if all(name in copied for name in own if name.startswith(prefix))
    ]
    if layers:
        kept.append(f"layer{'s' if len(layers) > 1 else ''} {', '.join(map(str, layers))}")
    share = sum(own[name].numel() for name in copied) / sum(t.numel() for t in own.values())
    return f"{share:.0%} of its weights are {source}'s: {', '.join(kept) or 'a few'}"


def _as_hubert(other: HubertConfig | None) -> HubertConfig:
    """A teacher's configuration, of whatever family, as a HuBERT's."""
    if other is None:
        return HubertConfig()
    known = set(HubertConfig().to_dict())
    values = {name: value for name, value in other.to_dict().items() if name in known}
    if not isinstance(getattr(other, "feat_proj_layer_norm", True), bool):
        values.pop("feat_proj_layer_norm")
    for name in ("model_type", "architectures", "_name_or_path", "transformers_version"):
        values.pop(name, None)
    if not isinstance(other, HubertConfig):
        # wav2vec 2.0, WavLM and data2vec-audio hold nothing of the kind; a HuBERT student does.
        values |= {"feat_proj_layer_norm": True, "conv_pos_batch_norm": False}
        values |= {"feat_extract_norm": front_norm(other)}
    if other.model_type == "data2vec-audio":  # its positional convolutions have another form
        values |= {"num_conv_pos_embedding_groups": 16, "num_conv_pos_embeddings": 128}
    return HubertConfig(**values)


def _set_masks(shape: HubertConfig, masks: bool) -> None:
    """Training hides frames, or none; which ones is ours to say, and nothing else is hidden."""
    shape.apply_spec_augment = masks
    if masks:
        shape.mask_feature_prob = 0.0
        shape.mask_time_prob = shape.mask_time_prob or 0.05  # at 0 there is no embedding for them


def _dividing(width: int) -> int:
    """Attention heads that share a width equally, at least 64 wide where that goes."""
    return next(heads for heads in range(max(1, width // 64), 0, -1) if width % heads == 0)


def _sized(
    teacher: HubertConfig,
    settings: config.Student,
    *,
    layers: int,
    width: int | None = None,
    heads: int | None = None,
    feed_forward: int | None = None,
    conv_widths: Sequence[int] | None = None,
) -> HubertConfig:
    """The teacher's form in other sizes: the recipe's, else the architecture's, else the teacher's."""
    student = copy.deepcopy(teacher)
    wide = width or teacher.hidden_size
    wide = wide if settings.width == "auto" else settings.width
    resized = wide != (width or teacher.hidden_size)
    per_head = teacher.hidden_size // teacher.num_attention_heads
    inside = feed_forward or teacher.intermediate_size
    if resized:
        heads = max(1, wide // per_head)
        inside = round(wide * inside / (width or teacher.hidden_size))
    student.update(
        {
            "architectures": ["HubertModel"],
            "num_hidden_layers": layers if settings.layers == "auto" else settings.layers,
            "hidden_size": wide,
            "num_attention_heads": (heads or teacher.num_attention_heads)
            if settings.heads == "auto"
            else settings.heads,
            "intermediate_size": inside
            if settings.feed_forward == "auto"
            else settings.feed_forward,
            "conv_dim": list(conv_widths or teacher.conv_dim)
            if settings.conv_widths == "auto"
            else list(settings.conv_widths),
            "feat_proj_dropout": 0.0,
            "final_dropout": 0.0,
            "layerdrop": 0.0,
            "apply_spec_augment": False,
            "hidden_dropout": settings.dropout,
            "attention_dropout": settings.dropout,
            "activation_dropout": settings.dropout,
        }
    )
    if settings.position_frames != "auto":
        student.num_conv_pos_embeddings = settings.position_frames
    return student


def _start_layers(
    teacher: Encoder, student: HubertConfig, settings: config.Student
) -> tuple[int, ...]:
    wanted = settings.start_layers
    if wanted == "auto":
        if student.num_hidden_layers > teacher.depth:
            raise DistilkitError(
                f"`student.layers` is {student.num_hidden_layers}, but the teacher has {teacher.depth}",
                f"--set student.layers={min(2, teacher.depth)}, or --set student.start=random",
            )
        return tuple(range(1, student.num_hidden_layers + 1))
    if len(wanted) != student.num_hidden_layers or max(wanted) > teacher.depth:
        raise DistilkitError(
            f"`student.start_layers` {wanted} does not name one of the teacher's {teacher.depth} "
            f"layers for each of the student's {student.num_hidden_layers}",
            listed(
                "student.start_layers",
                (min(n + 1, teacher.depth) for n in range(student.num_hidden_layers)),
            ),
        )
    return tuple(wanted)


def _renumbered(weights: Mapping[str, Tensor], layers: Sequence[int]) -> dict[str, Tensor]:
    """A state dict with the chosen layers, counted from 1, in the places 0, 1, ..."""
    prefix = "encoder.layers."
    named = {name: value for name, value in weights.items() if not name.startswith(prefix)}
    for place, layer in enumerate(layers):
        old = f"{prefix}{layer - 1}."
        named |= {
            f"{prefix}{place}.{name.removeprefix(old)}": value
            for name, value in weights.items()
            if name.startswith(old)
        }
    return named


def parameters(model: HubertModel) -> int:
    """Parameters that the model computes with; the embedding of masked frames is not one."""
    return sum(p.numel() for name, p in model.named_parameters() if name != "masked_spec_embed")


def save(student: Encoder, folder: Path, card: str, dtype: torch.dtype = torch.float32) -> None:
    """Write a student, or any encoder, as a Hugging Face folder that stock transformers loads.

    Config, weights, feature extractor, and `card` as the model card.
    """
    folder.mkdir(parents=True)
    shape = copy.deepcopy(student.model.config)
    shape.architectures = [type(student.model).__name__]
    shape.dtype = str(dtype).removeprefix("torch.")
    shape.save_pretrained(folder)
    weights = {
        name: tensor.detach().to("cpu", dtype).contiguous()
        for name, tensor in student.model.state_dict().items()
    }
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    Wav2Vec2FeatureExtractor(
        feature_size=1,
        sampling_rate=SAMPLE_RATE,
        padding_value=0.0,
        do_normalize=student.normalise,
        return_attention_mask=front_norm(shape) == "layer",
    ).save_pretrained(folder)
    (folder / "README.md").write_text(card, encoding="utf-8")
