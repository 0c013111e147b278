"""The parts of a run put together: student, heads, targets and objective.

Letters in names: B clips in a batch, S samples, T frames, D width, K clusters.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from huggingface_hub.errors import StrictDataclassError
from lhotse import MonoCut
from torch import Tensor, nn
from transformers import HubertConfig, HubertModel

from distilkit import batches, codebooks, config, data, students
from distilkit.audio import frames
from distilkit.codebooks import Codebook, Source
from distilkit.encoder import (
    FRONT,
    Encoder,
    check_sizes,
    encode,
    exact,
    frame_mask,
    same_front,
    scale_conv_gradients,
)
from distilkit.errors import DistilkitError
from distilkit.kernels import STOCK, Kernels
from distilkit.noise import Noises, disturb
from distilkit.objectives import (
    OBJECTIVES,
    Heads,
    Loss,
    PairHeads,
    UnitHeads,
    frame_weights,
    load_named,
    mask_spans,
)
from distilkit.students import Beginning
from distilkit.targets import LiveTargets, Targets, live_mfcc, normalised, parted
from distilkit.wording import listed

PRESETS: dict[config.Preset, tuple[int, ...]] = {  # layers of 12; field's ablation in docs/concepts
    "all-round": (4, 8, 12),
    "content": (8,),
    "speaker": (4,),
}


@dataclass(frozen=True, kw_only=True)
class Existing:
    """A student to go on with: its form, its weights where they are still there, its heads."""

    student: Encoder
    heads: Mapping[str, Tensor] | None = None  # under the names that `named` gives
    head_layers: tuple[int, ...] = ()
    target_width: int = 0  # D of the teacher's layers, for where no teacher is loaded


class Distiller(nn.Module):
    """Student and heads: what is trained."""

    def __init__(self, student: Encoder, heads: nn.Module, layers: Sequence[int]) -> None:
        super().__init__()
        self.model, self.heads = student.model, heads
        self.student, self.layers = student, tuple(layers)

    def forward(
        self,
        wave_BS: Tensor,
        lengths: Sequence[int],
        hidden_BT: Tensor | None = None,
        front_BTC: Tensor | None = None,
    ) -> list[Tensor]:
        """Predictions of the targets, one (B, T, D) or (B, T, K) each.

        Frames that `hidden_BT` marks are hidden from the transformer. The conv front end does not run
        where `front_BTC` is what it would give.
        """
        hidden = encode(self.student, wave_BS, lengths, self.layers, hidden_BT, front_BTC)
        predictions: list[Tensor] = self.heads(hidden)
        return predictions


def resolve(settings: config.Recipe, depth: int | None) -> config.Recipe:
    """A recipe whose layer preset is replaced by layer numbers, scaled to the teacher's depth."""
    layers = settings.objective.layers
    if isinstance(layers, list) or depth is None:
        return settings
    scaled = sorted({max(1, round(layer * depth / 12)) for layer in PRESETS[layers]})
    return settings.model_copy(
        update={"objective": settings.objective.model_copy(update={"layers": scaled})}
    )


def check(settings: config.Recipe, teacher: Encoder | None, name: str) -> None:
    """Refuse what cannot be trained, before anything is read.

    Raises:
        DistilkitError: layers that teacher or student lack, or a teacher that is needed.
    """
    objective = settings.objective
    if teacher is None:
        if objective.features != "mfcc":
            raise DistilkitError(
                f"`objective.name` {objective.name} on layers needs a teacher, and `--teacher none` is none",
                "--set objective.name=units --set objective.features=mfcc",
            )
        return
    if objective.features == "layers":
        assert isinstance(objective.layers, list)
        deepest = max(objective.layers)
        if deepest > teacher.depth:
            fitting = [n for n in objective.layers if n <= teacher.depth] or [teacher.depth]
            raise DistilkitError(
                f"`objective.layers` asks for layer {deepest}, but the teacher `{name}` has {teacher.depth}",
                listed("objective.layers", fitting),
            )


def build(
    teacher: Encoder | None, recipe: config.Recipe, existing: Existing | None = None
) -> tuple[Distiller, Beginning]:
    """What is trained: a student that starts from its teacher or goes on, and its heads.

    Raises:
        DistilkitError: sizes or layers that do not fit together.
    """
    masks = recipe.objective.mask_probability > 0
    if existing is None:
        student, begins = students.build(teacher, recipe.student, masks=masks)
    else:
        student, begins = students.resume_from(existing.student, recipe.student, masks=masks)
    if recipe.train.freeze_front_end:
        _freeze_front(student, begins)
    else:
        scale_conv_gradients(student.model, recipe.train.conv_gradient_scale)
    width = teacher.width if teacher else existing.target_width if existing else 0
    heads, layers = _heads(student, width, recipe.objective)
    if max(layers) < student.depth:
        # Nothing trains what is above, and several processes would wait for its gradients.
        above = [*student.model.encoder.layers[max(layers) :]]
        if student.model.config.do_stable_layer_norm:
            above.append(student.model.encoder.layer_norm)
        for part in above:
            part.requires_grad_(False)
    if existing is not None and existing.heads is not None:
        own = {name: value.shape for name, value in heads.named().items()}  # type: ignore[operator]
        same = own == {name: value.shape for name, value in existing.heads.items()}
        if same and _predict_the_same(existing, recipe.objective):
            load_named(heads, existing.heads)
            begins = replace(begins, text=f"{begins.text}, heads")
    return Distiller(student, heads, layers), begins


def _freeze_front(student: Encoder, begins: Beginning) -> None:
    """Leave the conv front end as it is in training.

    Raises:
        DistilkitError: there is nothing in it to keep.
    """
    if any(name.startswith("feature_extractor.") for name in begins.fresh):
        raise DistilkitError(
            "`train.freeze_front_end` keeps the conv front end as it is, and this student's begins at random",
            "--set train.freeze_front_end=false",
        )
    student.model.feature_extractor._freeze_parameters()


def shared_front(teacher: Encoder | None, student: Encoder, recipe: config.Recipe) -> int:
    """Channels of the front end's output where the teacher's serves the student too; 0 where not.

    It does where the student's is frozen and equal, and hears the whole of what the teacher hears.
    """
    alike = recipe.objective.part_seconds == "whole" and not recipe.noise.probability
    if not (recipe.train.freeze_front_end and alike and recipe.objective.features == "layers"):
        return 0
    if teacher is None or not same_front(teacher, student):
        return 0
    return int(student.model.config.conv_dim[-1])


def _predict_the_same(existing: Existing, settings: config.Objective) -> bool:
    """Whether existing heads are for these targets; clusters that are found anew are others."""
    known = bool(settings.codebook) if settings.name == "units" else not settings.normalise
    return known and list(existing.head_layers) == target_layers(settings)


def _heads(
    student: Encoder, target_width: int, settings: config.Objective
) -> tuple[nn.Module, tuple[int, ...]]:
    """Heads for targets of that width, and the student layers that they read."""
    count = 1 if settings.features == "mfcc" else len(settings.layers)
    layers = (student.depth,) if settings.student_layers == "auto" else settings.student_layers
    if settings.student_layers != "auto" and (len(layers) != count or max(layers) > student.depth):
        raise DistilkitError(
            f"`objective.student_layers` {list(layers)} does not name one of the student's "
            f"{student.depth} layers for each of {count} targets",
            "leave it out: all are predicted from the last layer",
        )
    if settings.name == "units":
        return UnitHeads(student.width, [settings.clusters] * count), tuple(layers)
    kind = Heads if settings.student_layers == "auto" else PairHeads
    return kind(student.width, target_width, count), tuple(layers)


def features(
    teacher: Encoder | None,
    settings: config.Objective,
    device: torch.device | str = "cpu",
    arithmetic: config.Precision = "fp32",
    front: bool = False,
    computed: Kernels = STOCK,
) -> Targets:
    """What the student predicts, or what its units are clusters of; behind it the front end's output."""
    if settings.features == "mfcc":
        return live_mfcc
    assert teacher is not None
    layers = target_layers(settings)
    behind = [FRONT] if front else []
    seen = LiveTargets(teacher, [*layers, *behind], device, arithmetic, computed)
    return normalised(seen, len(layers)) if settings.normalise else seen


def target_layers(settings: config.Objective) -> list[int]:
    """The teacher layers that are predicted, or clustered; none for MFCC."""
    if settings.features == "mfcc":
        return []
    assert isinstance(settings.layers, list), "presets are resolved beforehand"
    return settings.layers


def source(settings: config.Objective, model: str) -> Source:
    """What a recipe's units are clusters of; `model` is the teacher's fingerprint, if any."""
    return Source(
        features=settings.features,
        layers=tuple(target_layers(settings)),
        model=model,
        normalise=settings.normalise,
    )


def given_codebook(settings: config.Objective, model: str) -> Codebook:
    """The codebook that the recipe names.

    Args:
        settings: the recipe's.
        model: the teacher's fingerprint; empty where there is none.

    Raises:
        DistilkitError: it belongs to other features, layers or clusters, or to another model.
    """
    path = Path(settings.codebook)
    codebook = codebooks.load(path)
    codebooks.check_source(codebook, path, source(settings, model))
    most = max(len(centres_KD) for centres_KD in codebook.centres)
    if most != settings.clusters:
        raise DistilkitError(
            f"the codebook `{path}` has {most} units, the recipe {settings.clusters}",
            f"--set objective.clusters={most}",
        )
    return codebook


def clustered(windows: Sequence[MonoCut], recipe: config.Recipe) -> list[MonoCut]:
    """The windows that clusters are found on."""
    return data.some(windows, recipe.objective.cluster_minutes * 60, recipe.train.seed)


def codebook(
    recipe: config.Recipe,
    seen: Targets,
    windows: Sequence[MonoCut],
    micro_seconds: float,
    device: torch.device,
    model: str,
    track: data.Tracker = data.untracked,
) -> Codebook:
    """The codebook that the recipe names, else one that is found on the audio.

    Args:
        recipe: its objective and seed.
        seen: what is clustered.
        windows: the audio to train on.
        micro_seconds: audio in memory at once.
        device: where the features are computed.
        model: the teacher's fingerprint; empty where there is none.
        track: wraps an iterable to show progress.

    Raises:
        DistilkitError: a codebook that does not fit, or too little audio.
    """
    settings = recipe.objective
    if settings.codebook:
        return given_codebook(settings, model)
    count = max(1, len(target_layers(settings)))  # what lies behind is not clustered
    chosen = clustered(windows, recipe)
    taken = track(
        batches.whole(chosen, micro_seconds),
        description="finding the units, batches",
        total=batches.count(chosen, micro_seconds),
    )
    return codebooks.find(
        ((seen(batch.wave_BS.to(device), batch.lengths)[:count], batch.lengths) for batch in taken),
        settings.clusters,
        source(settings, model),
        recipe.train.seed,
    )


def loss_function(
    recipe: config.Recipe,
    targets: Targets,
    noises: Noises,
    device: torch.device,
    front: bool = False,
) -> Callable[[nn.Module, batches.Batch], Loss]:
    """The loss of a micro-batch: the teacher hears it clean, the student disturbed and masked.

    What is held out is neither parted nor disturbed. Targets that came with the batch are taken; else
    `targets` computes them. With `front`, the last of them is the conv front end's output for the student.
    """
    settings = recipe.objective

    def loss_of(module: nn.Module, batch: batches.Batch) -> Loss:
        wave_BS, lengths = batch.wave_BS.to(device, non_blocking=True), list(batch.lengths)
        target = [each.to(device, non_blocking=True) for each in batch.targets] or targets(
            wave_BS, lengths
        )
        front_BTC = target.pop().float() if front else None
        if module.training and settings.part_seconds != "whole":
            wave_BS, lengths, target = parted(wave_BS, lengths, target, settings.part_seconds)
        mask_BT = frame_mask(lengths, target[0].shape[1], device)
        hidden_BT, weight_BT = None, None
        if settings.mask_probability:
            counts = [frames(length) for length in lengths]
            hidden_BT = mask_spans(mask_BT, counts, settings.mask_probability, settings.mask_frames)
            weight_BT = frame_weights(mask_BT, hidden_BT, settings.visible_weight)
        if module.training:
            with torch.autocast(device.type, enabled=False):
                wave_BS = disturb(wave_BS, lengths, recipe.noise, noises)
        predicted = module(wave_BS, lengths, hidden_BT, front_BTC)
        objective = OBJECTIVES[settings.name]
        return objective(predicted, target, mask_BT, weight_BT, settings=settings)

    return loss_of


def from_config(values: Mapping[str, object], normalise: bool) -> Encoder:
    """A student of that configuration, with weights that a checkpoint is to replace.

    Raises:
        ValueError: a setting is of another type, or a size that no model has.
    """
    try:
        shape = HubertConfig(**values)
        check_sizes(shape)
        model = HubertModel(shape)
    except StrictDataclassError as error:
        raise ValueError(" ".join(str(error).split())) from error
    return Encoder(model=exact(model), normalise=normalise)
