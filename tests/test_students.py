"""Students: their size, what they start from, and that stock transformers loads them."""

from pathlib import Path

import pytest
import torch
from conftest import LARGE, make_model, voice
from transformers import (
    AutoFeatureExtractor,
    AutoModel,
    HubertConfig,
    HubertForCTC,
    HubertModel,
)

from distilkit import config, students
from distilkit.encoder import Encoder, encode, exact
from distilkit.errors import DistilkitError


def encoder(**changes: object) -> Encoder:
    return Encoder(model=exact(make_model(**changes)), normalise=False)


def test_the_paper_student_has_the_published_size() -> None:
    with torch.device("meta"):
        teacher = HubertModel(HubertConfig())
        student = HubertModel(students.paper(HubertConfig(), config.Student()))
    assert students.parameters(student) == 23_491_200
    assert students.parameters(teacher) == 94_370_944
    assert 1 - students.parameters(student) / students.parameters(teacher) > 0.75


def test_the_paper_student_has_the_published_configuration() -> None:
    shape = students.paper(HubertConfig(), config.Student())
    wanted = {
        "num_hidden_layers": 2,
        "feat_proj_layer_norm": False,
        "apply_spec_augment": False,
        "layerdrop": 0.0,
        "final_dropout": 0.0,
        "feat_proj_dropout": 0.0,
        "hidden_dropout": 0.1,
        "attention_dropout": 0.1,
        "activation_dropout": 0.1,
        "feat_extract_norm": "group",
        "do_stable_layer_norm": False,
    }
    assert {name: getattr(shape, name) for name in wanted} == wanted


@pytest.mark.parametrize("changes", [{}, LARGE])
def test_a_student_starts_from_its_teacher(changes: dict[str, object]) -> None:
    teacher = encoder(**changes)
    student, begins = students.build(teacher, config.Student())
    assert begins.fresh == ()
    weights = teacher.model.state_dict()
    for name, tensor in student.model.state_dict().items():
        assert torch.equal(tensor, weights[name]), name
        assert tensor.data_ptr() != weights[name].data_ptr(), name
    assert teacher.model.config.num_hidden_layers == (4 if changes else 12)


def test_the_embedding_of_masked_frames_is_not_trained() -> None:
    """Nothing in distillation masks; a parameter without a gradient would stop several processes."""
    student, _ = students.build(encoder(), config.Student())
    frozen = [name for name, p in student.model.named_parameters() if not p.requires_grad]
    assert frozen == ["masked_spec_embed"]


def test_a_student_deeper_than_its_teacher_is_refused() -> None:
    with pytest.raises(DistilkitError, match="`student.layers` is 13, but the teacher has 12"):
        students.build(encoder(), config.Student(layers=13))


@pytest.mark.parametrize("changes", [{}, LARGE])
def test_stock_transformers_loads_a_student(tmp_path: Path, changes: dict[str, object]) -> None:
    student, _ = students.build(encoder(**changes), config.Student())
    student = Encoder(model=student.model.eval(), normalise=bool(changes))
    folder = tmp_path / "student"
    students.save(student, folder, "# card\n")
    assert sorted(path.name for path in folder.iterdir()) == [
        "README.md",
        "config.json",
        "model.safetensors",
        "preprocessor_config.json",
    ]
    extractor = AutoFeatureExtractor.from_pretrained(folder)
    assert extractor.do_normalize is bool(changes)
    assert extractor.return_attention_mask is bool(changes)
    model, found = AutoModel.from_pretrained(folder, output_loading_info=True)
    assert not found["missing_keys"]
    assert not found["unexpected_keys"]
    clip = voice(1.3, 5)
    inputs = extractor(clip, sampling_rate=16_000, return_tensors="pt")
    with torch.no_grad():
        wanted = model.eval()(**inputs).last_hidden_state
        (got,) = encode(student, torch.from_numpy(clip)[None], [len(clip)], [2])
    torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5)
    recogniser, found = HubertForCTC.from_pretrained(folder, output_loading_info=True, vocab_size=7)
    assert set(found["missing_keys"]) == {"lm_head.weight", "lm_head.bias"}
    assert recogniser(**inputs).logits.shape == (1, wanted.shape[1], 7)
