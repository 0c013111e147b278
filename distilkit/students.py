"""Student architectures, how they start from their teacher, and how they are saved."""

import copy
from collections.abc import Callable
from pathlib import Path

from safetensors.torch import save_file
from transformers import HubertConfig, HubertModel, Wav2Vec2FeatureExtractor

from distilkit import config
from distilkit.audio import SAMPLE_RATE
from distilkit.encoder import Encoder, exact
from distilkit.errors import DistilkitError


def paper(teacher: HubertConfig, settings: config.Student) -> HubertConfig:
    """The published DistilHuBERT: the teacher's first layers, no norm before the projection.

    Beside a base teacher and with 2 layers: 23.49 M parameters.

    Source: arXiv 2110.01900, section 3; the published checkpoint's configuration.
    """
    student = copy.deepcopy(teacher)
    student.update(
        {
            "architectures": ["HubertModel"],
            "num_hidden_layers": settings.layers,
            "feat_proj_layer_norm": False,
            "feat_proj_dropout": 0.0,
            "final_dropout": 0.0,
            "layerdrop": 0.0,
            "hidden_dropout": settings.dropout,
            "attention_dropout": settings.dropout,
            "activation_dropout": settings.dropout,
            "apply_spec_augment": False,
        }
    )
    return student


ARCHITECTURES: dict[config.Architecture, Callable[[HubertConfig, config.Student], HubertConfig]] = {
    "paper": paper,
}


def build(teacher: Encoder, settings: config.Student) -> tuple[Encoder, list[str]]:
    """A student that starts from its teacher's weights, and the names of what did not.

    Everything that the two have in common is copied: conv front end, projection, positional
    convolution, final norm, and the teacher's first layers in order.

    Raises:
        DistilkitError: the student is deeper than its teacher.
    """
    if settings.layers > teacher.depth:
        raise DistilkitError(
            f"`student.layers` is {settings.layers}, but the teacher has {teacher.depth}",
            f"--set student.layers={min(2, teacher.depth)}",
        )
    shape = ARCHITECTURES[settings.architecture](teacher.model.config, settings)
    student = HubertModel(shape)
    weights = teacher.model.state_dict()
    fresh = [name for name in student.state_dict() if name not in weights]
    student.load_state_dict(
        {name: weights[name] for name in student.state_dict() if name in weights}, strict=False
    )
    if "masked_spec_embed" in dict(student.named_parameters()):
        student.masked_spec_embed.requires_grad_(False)  # in use only when CTC fine-tuning masks
    return Encoder(model=exact(student), normalise=teacher.normalise), fresh


def parameters(model: HubertModel) -> int:
    """Parameters that the model computes with; the embedding of masked frames is not one."""
    return sum(p.numel() for name, p in model.named_parameters() if name != "masked_spec_embed")


def save(student: Encoder, folder: Path, card: str) -> None:
    """Write a student as a Hugging Face folder that stock transformers loads.

    Config, weights (fp32), feature extractor, and `card` as the model card.
    """
    folder.mkdir(parents=True)
    shape = copy.deepcopy(student.model.config)
    shape.architectures = ["HubertModel"]
    shape.dtype = "float32"
    shape.save_pretrained(folder)
    weights = {
        name: tensor.detach().float().cpu().contiguous()
        for name, tensor in student.model.state_dict().items()
    }
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    Wav2Vec2FeatureExtractor(
        feature_size=1,
        sampling_rate=SAMPLE_RATE,
        padding_value=0.0,
        do_normalize=student.normalise,
        return_attention_mask=shape.feat_extract_norm == "layer",
    ).save_pretrained(folder)
    (folder / "README.md").write_text(card, encoding="utf-8")
