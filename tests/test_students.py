"""Students: their size, what they start from, and that stock transformers loads them."""

import shlex
from pathlib import Path

import pytest
import torch
from conftest import LARGE, make_model, voice
from formats import FAMILIES, family
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


# --------------------------------------------------------------------------------- architectures


@pytest.mark.parametrize(
    ("name", "size", "form"),
    [
        ("paper", 23_491_200, (2, 768, 12, 3_072)),
        ("paper-ln", 23_492_224, (2, 768, 12, 3_072)),
        ("deep-thin", 23_329_408, (12, 384, 6, 1_152)),
        ("thin-conv", 20_767_872, (2, 768, 12, 3_072)),
        ("hubert", 94_370_944, (12, 768, 12, 3_072)),
    ],
)
def test_sizes_beside_a_base_teacher(
    name: config.Architecture, size: int, form: tuple[int, ...]
) -> None:
    for teacher in (HubertConfig(), None):
        shape = students.shape(teacher, config.Student(architecture=name), masks=False)
        with torch.device("meta"):
            assert students.parameters(HubertModel(shape)) == size
        assert form == (
            shape.num_hidden_layers,
            shape.hidden_size,
            shape.num_attention_heads,
            shape.intermediate_size,
        )
        assert shape.conv_dim == (students.THIN_CONV if name == "thin-conv" else [512] * 7)
        assert shape.feat_proj_layer_norm is (name != "paper")


def test_every_architecture_is_tested() -> None:
    assert set(students.ARCHITECTURES) == {"paper", "paper-ln", "deep-thin", "thin-conv", "hubert"}


def test_sizes_by_numbers() -> None:
    settings = config.Student(
        architecture="thin-conv", layers=3, width=320, heads=10, feed_forward=500,
        conv_widths=[8, 16, 16, 16, 24, 24, 32], position_frames=64, dropout=0.25,
    )  # fmt: skip
    shape = students.shape(HubertConfig(), settings, masks=False)
    wanted = {
        "num_hidden_layers": 3, "hidden_size": 320, "num_attention_heads": 10, "intermediate_size": 500,
        "conv_dim": [8, 16, 16, 16, 24, 24, 32], "num_conv_pos_embeddings": 64, "hidden_dropout": 0.25,
        "attention_dropout": 0.25, "activation_dropout": 0.25, "layerdrop": 0.0,
        "feat_proj_dropout": 0.0, "final_dropout": 0.0, "apply_spec_augment": False,
    }  # fmt: skip
    assert {name: getattr(shape, name) for name in wanted} == wanted
    assert HubertModel(shape)(torch.randn(1, 4_000)).last_hidden_state.shape == (1, 12, 320)


@pytest.mark.parametrize(
    ("architecture", "width", "heads", "inside"),
    [("paper", 384, 6, 1_536), ("paper", 512, 8, 2_048), ("deep-thin", 512, 8, 1_536)],
)
def test_another_width_keeps_the_form(
    architecture: config.Architecture, width: int, heads: int, inside: int
) -> None:
    settings = config.Student(architecture=architecture, width=width)
    shape = students.shape(HubertConfig(), settings, masks=False)
    assert (shape.num_attention_heads, shape.intermediate_size) == (heads, inside)


def test_hints_keep_heads_wide_where_that_goes() -> None:
    with pytest.raises(DistilkitError) as caught:
        students.shape(HubertConfig(), config.Student(width=400, heads=7), masks=False)
    assert caught.value.hint == "--set student.heads=5"
    with pytest.raises(DistilkitError) as caught:
        students.shape(HubertConfig(), config.Student(width=200), masks=False)
    assert caught.value.hint == "--set student.heads=2"


def test_the_teachers_configuration_is_not_touched() -> None:
    teacher = HubertConfig()
    before = teacher.to_dict()
    students.shape(teacher, config.Student(architecture="deep-thin"), masks=True)
    assert teacher.to_dict() == before


WRONG = [
    ({"width": 768, "heads": 7}, "`student.width` 768 is not a multiple of `student.heads` 7"),
    ({"width": 200}, "`student.width` 200 is not a multiple of `student.heads` 3"),
    ({"width": 136, "heads": 8}, "`student.width` 136 is not a multiple of 16, the groups of"),
    ({"conv_widths": [8, 16]}, "`student.conv_widths` names 2 widths for 7 convolutions"),
    ({"layers": 13}, "`student.layers` is 13, but the teacher has 12"),
    ({"start_layers": [4, 8], "start": "random"}, "`student.start_layers` [4, 8] of no teacher"),
    ({"start_layers": [4]}, "`student.start_layers` [4] does not name one of the teacher's 12"),
    ({"start_layers": [4, 13]}, "`student.start_layers` [4, 13] does not name one of the"),
    ({"layers": 14, "start_layers": [1]}, "`student.start_layers` [1] does not name one of the"),
]


@pytest.mark.parametrize(("changes", "said"), WRONG)
def test_what_does_not_fit_is_said_and_the_hint_works_when_typed(
    changes: dict[str, object], said: str
) -> None:
    """Each hint, split as a shell does, mends what it is about; others may follow."""
    teacher = encoder(num_conv_pos_embedding_groups=16, hidden_size=128, num_attention_heads=2)
    typed = [f"student.{name}={value}" for name, value in changes.items()]
    seen = []
    for _ in range(3):
        settings = config.load_recipe("smoke", typed).student
        try:
            students.build(teacher, settings)
        except DistilkitError as error:
            seen.append(error.problem)
            words = shlex.split((error.hint or "").partition(", or ")[0])
            assert words[0] == "--set"
            assert len(words) == 2, words
            typed.append(words[1])
        else:
            break
    else:
        pytest.fail(f"the hints do not mend it: {typed}, {seen}")
    assert seen[0].startswith(said)
    assert len(set(seen)) == len(seen)


# ----------------------------------------------------------------------------------------- starts


def hidden(student: Encoder, layers: list[int], seconds: float = 0.8) -> list[torch.Tensor]:
    clip = torch.from_numpy(voice(seconds, 5))
    student.model.eval()
    with torch.no_grad():
        return encode(student, clip[None], [len(clip)], layers)


def test_the_student_with_the_norm_starts_as_its_teachers_first_layers() -> None:
    teacher = encoder()
    wanted = hidden(teacher, [0, 1, 2])
    student, begins = students.build(teacher, config.Student(architecture="paper-ln"))
    assert begins.fresh == ()
    for one, other in zip(hidden(student, [0, 1, 2]), wanted, strict=True):
        assert torch.equal(one, other)
    without, _ = students.build(teacher, config.Student(architecture="paper"))
    for one, other in zip(hidden(without, [0, 1, 2]), wanted, strict=True):
        assert not torch.allclose(one, other, atol=1e-2)


def test_beside_a_large_teacher_the_final_norm_comes_after_its_second_layer() -> None:
    teacher = encoder(**LARGE)
    wanted = hidden(teacher, [0, 1, 2])
    student, _ = students.build(teacher, config.Student(architecture="paper-ln"))
    found = hidden(student, [0, 1, 2])
    assert torch.equal(found[0], wanted[0])
    assert torch.equal(found[1], wanted[1])
    with torch.no_grad():
        torch.testing.assert_close(found[2], teacher.model.encoder.layer_norm(wanted[2]))


def test_chosen_layers_are_where_they_should_be() -> None:
    teacher = encoder()
    student, begins = students.build(teacher, config.Student(start_layers=[8, 4]))
    assert begins.layers == (8, 4)
    assert "layers 8, 4" in begins.text
    for place, layer in enumerate((8, 4)):
        there = teacher.model.encoder.layers[layer - 1].state_dict()
        here = student.model.encoder.layers[place].state_dict()
        assert all(torch.equal(here[name], there[name]) for name in there)


def test_a_random_start_copies_nothing() -> None:
    teacher = encoder()
    settings = config.Student(start="random", layers=13)
    student, begins = students.build(teacher, settings)
    assert (begins.copied, begins.layers, begins.text) == ((), (), "random weights")
    assert len(begins.fresh) == len(student.model.state_dict()) - 1
    weights = teacher.model.state_dict()
    for name, tensor in student.model.state_dict().items():
        if "layer_norm" not in name and "bias" not in name and name in weights:
            assert not torch.equal(tensor, weights[name]), name


def test_no_teacher_is_a_random_start_of_a_base_model() -> None:
    student, begins = students.build(
        None, config.Student(layers=1, width=16, conv_widths=[8] * 7, feed_forward=16)
    )
    assert begins.text == "random weights"
    assert not student.normalise
    assert student.model.config.num_conv_pos_embeddings == 128


def test_what_is_said_of_a_start() -> None:
    teacher = encoder()
    _, begins = students.build(teacher, config.Student())
    assert begins.text == (
        "100% of its weights are the teacher's: front end, projection, positional convolution, layers 1, 2"
    )
    _, begins = students.build(teacher, config.Student(layers=1))
    assert begins.text.endswith(", layer 1")
    _, begins = students.build(teacher, config.Student(position_frames=8))
    assert begins.text.endswith(": front end, projection, layers 1, 2")
    assert any("pos_conv_embed" in name for name in begins.fresh)
    _, begins = students.build(teacher, config.Student(feed_forward=48))
    assert begins.text.endswith(": front end, projection, positional convolution")
    assert "encoder.layers.0.attention.k_proj.weight" in begins.copied
    _, begins = students.build(teacher, config.Student(width=16))
    assert begins.text.endswith("the teacher's: front end")
    share = int(begins.text.partition("%")[0])
    assert 5 < share < 70
    _, begins = students.build(teacher, config.Student(width=16, conv_widths=[8] * 7))
    assert "front end" not in begins.text


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("architecture", ["paper-ln", "hubert"])
def test_other_families_have_hubert_students(
    tmp_path: Path, name: str, architecture: config.Architecture
) -> None:
    teacher = Encoder(model=exact(family(name)), normalise=True)
    student, begins = students.build(teacher, config.Student(architecture=architecture))
    layers = {"paper-ln": 2, "hubert": 3}[architecture]
    assert isinstance(student.model, HubertModel)
    assert student.normalise
    assert begins.layers == tuple(range(1, layers + 1))
    assert all(("pos_conv_embed" in name) for name in begins.fresh)
    assert bool(begins.fresh) is name.startswith("data2vec")
    weights = teacher.model.state_dict()
    for key in begins.copied:
        assert torch.equal(student.model.state_dict()[key], weights[key]), key
    left = {key for key in weights if "gru_rel" not in key and "rel_attn" not in key}
    left -= {key for key in left if "pos_conv_embed" in key or key.startswith("encoder.layers.2")}
    assert left <= set(begins.copied)
    clip = torch.from_numpy(voice(0.5, 5))[None]
    with torch.no_grad():  # the front end computes what the teacher's does
        mine, theirs = (e.model.feature_extractor(clip) for e in (student, teacher))
    torch.testing.assert_close(mine, theirs)
    folder = tmp_path / "student"
    students.save(Encoder(model=student.model.eval(), normalise=True), folder, "# card\n")
    model, found = AutoModel.from_pretrained(folder, output_loading_info=True)
    assert isinstance(model, HubertModel)
    assert not found["missing_keys"]
    assert not found["unexpected_keys"]
    with torch.no_grad():
        wanted = hidden(student, [layers], 0.5)[0]
        normal = (clip - clip.mean()) / (clip.var(correction=0) + 1e-7).sqrt()
        torch.testing.assert_close(model(normal).last_hidden_state, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["wav2vec 2.0", "wav2vec 2.0, large"])
def test_a_wav2vec_student_starts_as_its_teachers_first_layers(name: str) -> None:
    """The two families differ in their training, not in their form."""
    teacher = Encoder(model=exact(family(name)), normalise=True)
    student, _ = students.build(teacher, config.Student(architecture="paper-ln"))
    for one, other in zip(hidden(student, [0, 1]), hidden(teacher, [0, 1]), strict=True):
        assert torch.equal(one, other)


# -------------------------------------------------------------------------------------- going on


@pytest.mark.parametrize("changes", [{}, LARGE])
def test_going_on_keeps_sizes_and_weights_and_takes_the_dropout(changes: dict[str, object]) -> None:
    model = make_model(**{**changes, "layerdrop": 0.2})
    first = Encoder(model=exact(model), normalise=bool(changes))
    wanted = hidden(first, [1, first.depth])
    settings = config.Student(architecture="deep-thin", dropout=0.3)
    student, begins = students.resume_from(first, settings)
    assert student.model is not first.model
    assert student.normalise is bool(changes)
    assert begins.fresh == ()
    assert begins.text.startswith("100% of its weights are the student's: front end, projection")
    for one, other in zip(hidden(student, [1, first.depth]), wanted, strict=True):
        assert torch.equal(one, other)
    shape = student.model.config
    assert (shape.hidden_dropout, shape.attention_dropout, shape.activation_dropout) == (0.3,) * 3
    assert (shape.layerdrop, shape.apply_spec_augment) == (0.0, False)
    assert first.model.config.hidden_dropout != 0.3


def test_going_on_refuses_other_sizes_and_takes_its_own() -> None:
    first = encoder()
    shape = first.model.config
    own = {
        "layers": 12, "width": 32, "heads": 4, "feed_forward": 64, "position_frames": 16,
        "conv_widths": list(shape.conv_dim),
    }  # fmt: skip
    assert students.resume_from(first, config.Student(**own))[0].depth == 12
    for name, value in own.items():
        other = [n + 8 for n in value] if isinstance(value, list) else value + 8
        with pytest.raises(DistilkitError) as caught:
            students.check_existing(first, config.Student(**own | {name: other}))
        assert caught.value.problem == (
            f"`student.{name}` is {other}, but the student to go on with has {value}"
        )
        assert caught.value.hint == f"--set student.{name}=auto"
    with pytest.raises(
        DistilkitError, match=r"`student.start_layers` \[1, 2\] is for a new student"
    ):
        students.check_existing(first, config.Student(start_layers=[1, 2]))


# -------------------------------------------------------------------------------------- masking


def mask(student: Encoder) -> torch.nn.Parameter:
    return dict(student.model.named_parameters())["masked_spec_embed"]


@pytest.mark.parametrize("masks", [True, False])
@pytest.mark.parametrize("probability", [0.05, 0.0])
def test_the_embedding_of_masked_frames_is_trained_where_frames_are_masked(
    masks: bool, probability: float
) -> None:
    """Also where the teacher's or the student's configuration has none."""
    teacher = encoder(mask_time_prob=probability, mask_feature_prob=10 * probability)
    for student in (
        students.build(teacher, config.Student(dropout=0.0), masks=masks)[0],
        students.resume_from(teacher, config.Student(dropout=0.0), masks=masks)[0],
    ):
        if masks or probability:  # else transformers makes none
            assert mask(student).requires_grad is masks
        assert student.model.config.apply_spec_augment is masks
        others = [p for n, p in student.model.named_parameters() if n != "masked_spec_embed"]
        assert all(p.requires_grad for p in others)
        if masks:
            wave_BS, hide = torch.randn(1, 8_000), torch.zeros(1, 24, dtype=torch.bool)
            student.model.train()
            (seen,) = encode(student, wave_BS, [8_000], [0], hide)
            hide[0, 5:9] = True
            (unseen,) = encode(student, wave_BS, [8_000], [0], hide)
            assert not torch.equal(seen, unseen)
            unseen.sum().backward()
            assert mask(student).grad is not None


def test_only_the_frames_that_are_named_are_masked() -> None:
    """transformers would hide features at random, where a teacher's configuration says so."""
    teacher = encoder(mask_feature_prob=0.9, mask_feature_length=2)
    hide = torch.zeros(1, 24, dtype=torch.bool)
    wave_BS = torch.randn(1, 8_000)
    for student in (
        students.build(teacher, config.Student(dropout=0.0), masks=True)[0],
        students.resume_from(teacher, config.Student(dropout=0.0), masks=True)[0],
    ):
        student.model.train()
        found = [encode(student, wave_BS, [8_000], [2], hide)[0] for _ in range(3)]
        assert torch.equal(found[0], found[1])
        assert torch.equal(found[0], found[2])
