"""Teachers: what is read is exact, what is refused says why, and nothing in a file can run."""

import copy
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub.constants
import pytest
import torch
from conftest import LARGE, make_model, tiny_config, voice
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
)
from safetensors.torch import load_file, save_file
from transformers import (
    HubertConfig,
    HubertForCTC,
    HubertForSequenceClassification,
    HubertModel,
    PreTrainedModel,
)

from distilkit import config, hub, students, teachers
from distilkit.encoder import Encoder, encode, exact, fingerprint
from distilkit.errors import DistilkitError
from distilkit.teachers import huggingface

Edit = Callable[[Path], None]
XLARGE = {
    "hidden_size": 1280,
    "num_hidden_layers": 48,
    "num_attention_heads": 16,
    "intermediate_size": 5120,
    "feat_extract_norm": "layer",
    "conv_bias": True,
    "do_stable_layer_norm": True,
}


def outputs(model: HubertModel, normalise: bool = False) -> torch.Tensor:
    """All layers of two clips of unequal length."""
    clips = [torch.from_numpy(voice(seconds, 1)) for seconds in (0.7, 1.1)]
    wave_BS = torch.nn.utils.rnn.pad_sequence(clips, batch_first=True)
    depth = model.config.num_hidden_layers
    encoder = Encoder(model=model, normalise=normalise)
    with torch.no_grad():
        return torch.stack(encode(encoder, wave_BS, [len(c) for c in clips], range(depth + 1)))


def wanted(model: HubertModel, normalise: bool = False) -> torch.Tensor:
    return outputs(exact(copy.deepcopy(model).eval()), normalise)


def save(model: PreTrainedModel, folder: Path, normalise: bool | None = False) -> Path:
    model.save_pretrained(folder, save_original_format=False)
    if normalise is not None:
        write(folder / "preprocessor_config.json", {"do_normalize": normalise})
    return folder


def write(path: Path, content: object) -> None:
    path.write_text(json.dumps(content))


def configure(**changes: object) -> Edit:
    def edit(folder: Path) -> None:
        path = folder / "config.json"
        write(path, {**json.loads(path.read_text()), **changes})

    return edit


def weights(change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> Edit:
    """Change the tensors of model.safetensors."""

    def edit(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        save_file(change(tensors), folder / "model.safetensors", metadata={"format": "pt"})

    return edit


def without(*names: str) -> Edit:
    return weights(lambda t: {name: tensor for name, tensor in t.items() if name not in names})


def both(*edits: Edit) -> Edit:
    def edit(folder: Path) -> None:
        for one in edits:
            one(folder)

    return edit


def text(name: str, content: str | bytes) -> Edit:
    def edit(folder: Path) -> None:
        (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)

    return edit


def pickled(content: Callable[[dict[str, torch.Tensor]], object]) -> Edit:
    def edit(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        (folder / "model.safetensors").unlink()
        torch.save(content(tensors), folder / "pytorch_model.bin")

    return edit


def refused(folder: Path | str) -> tuple[str, str]:
    with pytest.raises(DistilkitError) as caught:
        teachers.load(str(folder))
    assert caught.value.hint
    assert "\n" not in caught.value.problem
    return caught.value.problem, caught.value.hint


@pytest.fixture(scope="session")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(make_model(), tmp_path_factory.mktemp("teachers") / "plain")


@pytest.fixture
def edited(plain: Path, tmp_path: Path) -> Callable[[Edit], Path]:
    """A copy of a good folder with something changed."""

    def make(edit: Edit) -> Path:
        folder = tmp_path / "teacher"
        shutil.copytree(plain, folder)
        edit(folder)
        return folder

    return make


# ----------------------------------------------------------------------------------- what is read


def old_names(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Weight norm as before torch 2: `weight_g` and `weight_v`."""
    renamed = {
        name.replace("parametrizations.weight.original0", "weight_g").replace(
            "parametrizations.weight.original1", "weight_v"
        ): tensor
        for name, tensor in tensors.items()
    }
    assert len(set(renamed) - set(tensors)) == 2
    return renamed


def sharded(folder: Path) -> None:
    model = HubertModel.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="50KB", save_original_format=False)
    assert len(list(folder.glob("model-*.safetensors"))) > 2


FORMS: dict[str, Edit] = {
    "safetensors": lambda _: None,
    "safetensors, old weight norm": weights(old_names),
    "shards": sharded,
    "pickle": pickled(lambda tensors: tensors),
    "pickle, old weight norm": pickled(old_names),
    "no mask embedding": without("masked_spec_embed"),
    "a mask embedding nobody needs": configure(mask_time_prob=0.0, mask_feature_prob=0.0),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_to_the_bit(edited: Callable[[Edit], Path], form: str) -> None:
    encoder, checkpoint = teachers.load(str(edited(FORMS[form])))
    assert torch.equal(outputs(encoder.model), wanted(make_model()))
    assert (checkpoint.format, checkpoint.notes, encoder.normalise) == ("huggingface", (), False)


KINDS: dict[str, dict[str, object]] = {
    "base": {},
    "large": LARGE,
    "xlarge": {**LARGE, "num_hidden_layers": 6, "num_attention_heads": 8, "layer_norm_eps": 1e-4},
    "batch norm": {"conv_pos_batch_norm": True},
    "large with batch norm": {**LARGE, "conv_pos_batch_norm": True},
    "no norm before the projection": {"feat_proj_layer_norm": False},
    "layerdrop": {"layerdrop": 0.1},
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_hubert(tmp_path: Path, kind: str) -> None:
    model = make_model(**KINDS[kind])
    encoder, _ = teachers.load(str(save(model, tmp_path / "teacher", normalise=True)))
    assert encoder.normalise
    assert torch.equal(outputs(encoder.model, True), wanted(model, True))
    assert not any(module.training for module in encoder.model.modules())
    assert encoder.model.config.layerdrop == 0
    assert all(p.requires_grad and p.grad is None for p in encoder.model.parameters())


def test_xlarge_fits_its_configuration(tmp_path: Path) -> None:
    HubertConfig(**XLARGE).save_pretrained(tmp_path)
    shape = huggingface.configuration(tmp_path)
    teachers._check_frames("xlarge", shape)
    with torch.device("meta"):
        model = exact(HubertModel(shape))
    assert students.parameters(model) == pytest.approx(964e6, rel=0.003)  # as published


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_read_as_fp32(edited: Callable[[Edit], Path], dtype: torch.dtype) -> None:
    folder = edited(weights(lambda t: {name: tensor.to(dtype) for name, tensor in t.items()}))
    configure(dtype=str(dtype).removeprefix("torch."))(folder)
    encoder, _ = teachers.load(str(folder))
    assert {p.dtype for p in encoder.model.parameters()} == {torch.float32}
    assert torch.equal(outputs(encoder.model), wanted(make_model().to(dtype).float()))


@pytest.mark.parametrize(
    ("model_class", "changes", "head"),
    [
        (HubertForCTC, {"vocab_size": 7}, "lm_head.bias, lm_head.weight"),
        (
            HubertForSequenceClassification,
            {"num_labels": 3, "use_weighted_layer_sum": True},
            "classifier.bias, classifier.weight, layer_weights, projector.bias, projector.weight",
        ),
    ],
)
@pytest.mark.parametrize("form", ["safetensors", "pickle, old weight norm"])
def test_a_head_is_left_out_and_noted(
    tmp_path: Path,
    model_class: type[PreTrainedModel],
    changes: dict[str, object],
    head: str,
    form: str,
) -> None:
    torch.manual_seed(0)
    model = model_class(tiny_config(**changes)).eval()
    folder = save(model, tmp_path / "teacher")
    FORMS[form](folder)
    encoder, checkpoint = teachers.load(str(folder))
    assert checkpoint.notes == (f"left out the head ({head})",)
    assert torch.equal(outputs(encoder.model), wanted(model.hubert))


def test_our_student_is_a_teacher(tmp_path: Path, plain: Path) -> None:
    teacher, _ = teachers.load(str(plain))
    student, _ = students.build(teacher, config.Student())
    students.save(student, tmp_path / "student", "# card\n")
    encoder, checkpoint = teachers.load(str(tmp_path / "student"))
    assert (encoder.depth, checkpoint.notes) == (2, ())
    assert torch.equal(outputs(encoder.model), wanted(student.model))
    grandchild, fresh = students.build(encoder, config.Student(layers=1))
    assert (grandchild.depth, fresh.fresh) == (1, ())


@pytest.mark.parametrize("changes", [{}, LARGE])
def test_a_student_of_a_teacher_with_batch_norm(tmp_path: Path, changes: dict[str, object]) -> None:
    folder = save(make_model(conv_pos_batch_norm=True, **changes), tmp_path / "teacher")
    student, fresh = students.build(teachers.load(str(folder))[0], config.Student())
    assert fresh.fresh == ()
    students.save(student, tmp_path / "student", "# card\n")
    again, found = HubertModel.from_pretrained(tmp_path / "student", output_loading_info=True)
    assert not any(found.values())
    wave_BS = torch.from_numpy(voice(1.0, 1))[None]
    with torch.no_grad():
        (got,) = encode(
            Encoder(model=student.model.eval(), normalise=False), wave_BS, [16_000], [2]
        )
        wanted = again.eval()(wave_BS).last_hidden_state
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)


def test_the_published_distilhubert_layout(tmp_path: Path) -> None:
    """Its config.json as the hub has it, but narrow; weights as the conversion script named them."""
    shape = {
        "activation_dropout": 0.1, "apply_spec_augment": False, "architectures": ["HubertModel"],
        "attention_dropout": 0.1, "bos_token_id": 1, "classifier_proj_size": 256, "conv_bias": False,
        "conv_dim": [16] * 7, "conv_kernel": [10, 3, 3, 3, 3, 2, 2], "conv_stride": [5, 2, 2, 2, 2, 2, 2],
        "ctc_loss_reduction": "sum", "ctc_zero_infinity": False, "do_stable_layer_norm": False,
        "eos_token_id": 2, "feat_extract_activation": "gelu", "feat_extract_norm": "group",
        "feat_proj_dropout": 0.0, "feat_proj_layer_norm": False, "final_dropout": 0.0, "hidden_act": "gelu",
        "hidden_dropout": 0.1, "hidden_size": 32, "initializer_range": 0.02, "intermediate_size": 64,
        "layer_norm_eps": 1e-05, "layerdrop": 0.0, "mask_feature_length": 10, "mask_feature_min_masks": 0,
        "mask_feature_prob": 0.0, "mask_time_length": 10, "mask_time_min_masks": 2, "mask_time_prob": 0.05,
        "model_type": "hubert", "num_attention_heads": 4, "num_conv_pos_embedding_groups": 4,
        "num_conv_pos_embeddings": 16, "num_feat_extract_layers": 7, "num_hidden_layers": 2,
        "pad_token_id": 0, "torch_dtype": "float32", "transformers_version": "4.10.0.dev0",
        "use_weighted_layer_sum": False, "vocab_size": 32,
    }  # fmt: skip
    model = make_model(num_hidden_layers=2, feat_proj_layer_norm=False, apply_spec_augment=False)
    tensors = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    torch.save(old_names(tensors), tmp_path / "pytorch_model.bin")
    write(tmp_path / "config.json", shape)
    preprocessor = {
        "do_normalize": False,
        "feature_size": 1,
        "padding_side": "right",
        "padding_value": 0,
    }
    write(tmp_path / "preprocessor_config.json", {**preprocessor, "return_attention_mask": False, "sampling_rate": 16_000})  # fmt: skip
    encoder, checkpoint = teachers.load(str(tmp_path))
    assert (encoder.depth, encoder.normalise, checkpoint.notes) == (2, False, ())
    assert torch.equal(outputs(encoder.model), wanted(model))


def test_loading_twice_is_the_same(plain: Path) -> None:
    prints = [fingerprint(teachers.load(str(plain))[0].model) for _ in range(2)]
    assert prints[0] == prints[1] == fingerprint(make_model())
    assert prints[0] != fingerprint(make_model(seed=1))


# ---------------------------------------------------------------------------------- normalisation


ASSUMED = "no preprocessor_config.json: waveform normalisation assumed {}, as usual for `feat_extract_norm` {}"
LACKING = "no `do_normalize` in the preprocessor's file: on, as transformers takes it"


@pytest.mark.parametrize(
    ("files", "norm", "normalise", "notes"),
    [
        ({"preprocessor": {"do_normalize": True}}, "group", True, ()),
        ({"preprocessor": {"do_normalize": False}}, "layer", False, ()),
        ({"processor": {"feature_extractor": {"do_normalize": True}}}, "group", True, ()),
        ({"processor": {"feature_extractor": {"do_normalize": False}}}, "layer", False, ()),
        ({"processor": {"processor_class": "Wav2Vec2Processor"}, "preprocessor": {"do_normalize": True}}, "group", True, ()),
        ({}, "group", False, (ASSUMED.format("off", "group"),)),
        ({}, "layer", True, (ASSUMED.format("on", "layer"),)),
        ({"processor": {"feature_extractor": None}}, "group", False, (ASSUMED.format("off", "group"),)),
        ({"preprocessor": {"feature_size": 1}}, "group", True, (LACKING,)),
    ],
)  # fmt: skip
def test_whether_waveforms_are_normalised(
    tmp_path: Path, files: dict[str, object], norm: str, normalise: bool, notes: tuple[str, ...]
) -> None:
    model = make_model(num_hidden_layers=1, feat_extract_norm=norm)
    folder = save(model, tmp_path / "teacher", normalise=None)
    for name, content in files.items():
        write(folder / f"{name}_config.json", content)
    encoder, checkpoint = teachers.load(str(folder))
    assert (encoder.normalise, checkpoint.normalise) == (normalise, normalise)
    assert checkpoint.notes == notes


# -------------------------------------------------------------------------------- what is refused


AGAIN = "download it again; in a git clone: git lfs pull"
FITS = "the weights in `FOLDER` do not fit its config.json: "
Q_PROJ = "encoder.layers.0.attention.q_proj"
REFUSED: dict[str, tuple[Edit, str, str]] = {
    "one weight missing": (
        without(f"{Q_PROJ}.bias"), f"{FITS}missing `{Q_PROJ}.bias`", AGAIN,
    ),
    "many weights missing": (
        weights(lambda t: {name: t[name] for name in sorted(t)[10:]}),
        f"{FITS}missing `encoder.layer_norm.bias`, `encoder.layer_norm.weight`, "
        "`encoder.layers.0.attention.k_proj.bias`, `encoder.layers.0.attention.k_proj.weight`, "
        "`encoder.layers.0.attention.out_proj.bias`, `encoder.layers.0.attention.out_proj.weight` and 4 more",
        AGAIN,
    ),
    "unexpected weights": (
        weights(lambda t: t | {f"decoder.{i}": torch.zeros(2) for i in range(9)}),
        f"{FITS}unexpected `decoder.0`, `decoder.1`, `decoder.2`, `decoder.3`, `decoder.4`, `decoder.5` and 3 more",
        AGAIN,
    ),
    "missing and unexpected": (
        weights(lambda t: t | {"x.weight": t.pop(f"{Q_PROJ}.weight")}),
        f"{FITS}missing `{Q_PROJ}.weight`; unexpected `x.weight`",
        AGAIN,
    ),
    "other shapes": (
        weights(lambda t: t | {f"{Q_PROJ}.weight": torch.zeros(5, 4), f"{Q_PROJ}.bias": torch.zeros(5)}),
        f"{FITS}of another shape `{Q_PROJ}.bias` (5,) instead of (32,), `{Q_PROJ}.weight` (5, 4) instead of (32, 32)",
        AGAIN,
    ),
    "another size in the config": (
        configure(intermediate_size=48),
        f"{FITS}of another shape `encoder.layers.0.feed_forward.intermediate_dense.bias` (64,) instead of (48,), ",
        AGAIN,
    ),
    "more layers in the config": (
        configure(num_hidden_layers=13), f"{FITS}missing `encoder.layers.12.attention.k_proj.bias`, ", AGAIN,
    ),
    "fewer layers in the config": (
        configure(num_hidden_layers=2), f"{FITS}unexpected `encoder.layers.10.attention.k_proj.bias`, ", AGAIN,
    ),
    "truncated": (
        lambda f: os.truncate(f / "model.safetensors", 60_000),
        "`FOLDER` cannot be loaded: Error while deserializing header: incomplete metadata, file not fully covered",
        AGAIN,
    ),
    "empty": (text("model.safetensors", b""), "`FOLDER` cannot be loaded: Error while deserializing header", AGAIN),
    "a pointer of git lfs": (
        text("model.safetensors", "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"),
        "`FOLDER` cannot be loaded: Error while deserializing header",
        AGAIN,
    ),
    "a truncated pickle": (
        both(pickled(lambda t: t), lambda f: os.truncate(f / "pytorch_model.bin", 3_000)),
        "the settings in `FOLDER` are of a model with 111,632 weights, and its files hold 3,000 bytes",
        AGAIN,
    ),
    "a shard gone": (
        both(sharded, lambda f: sorted(f.glob("model-*"))[1].unlink()),
        "`FOLDER/model-00002-of-00010.safetensors` is gone",
        AGAIN,
    ),
    "no weights": (
        lambda f: (f / "model.safetensors").unlink(),
        "`FOLDER` holds no weights: none of model.safetensors, model.safetensors.index.json, pytorch_model.bin, ",
        AGAIN,
    ),
    "no JSON": (text("config.json", '{"model_type": '), "`FOLDER/config.json` is damaged: Expecting value", AGAIN),
    "no text": (text("config.json", b"\xff\xfe"), "`FOLDER/config.json` is damaged: 'utf-8' codec", AGAIN),
    "no object": (text("config.json", "[]"), "`FOLDER/config.json` is damaged: not a JSON object", AGAIN),
    "another family": (
        configure(model_type="wav2vec2-conformer"),
        "`FOLDER` is a `wav2vec2-conformer` model; only `hubert`, `wav2vec2`, `wavlm`, `data2vec-audio` can be read",
        "facebook/hubert-base-ls960, or another model of these families",
    ),
    "a text model": (configure(model_type="bert"), "`FOLDER` is a `bert` model; only `hubert`, `wav2vec2`, ", "facebook/hubert-base-ls960, or"),
    "a setting of the wrong type": (
        configure(hidden_size="wide"), "`FOLDER/config.json` is not valid: ", AGAIN,
    ),
    "lists of unequal length": (
        configure(conv_dim=[16] * 6), "`FOLDER/config.json` is not valid: ", AGAIN,
    ),
    "heads that do not fit": (
        configure(num_attention_heads=5), "the settings in `FOLDER` do not fit: embed_dim must be divisible by num_heads", AGAIN,
    ),
    "less than no heads": (
        configure(num_attention_heads=-1), "the settings in `FOLDER` do not fit: -1 attention heads", AGAIN,
    ),
    "other frames": (
        configure(conv_stride=[5, 2, 2, 2, 2, 2, 1]),
        "`FOLDER` makes a frame of 400 samples every 160; only models with frames of 400 every 320 can be read",
        "facebook/hubert-base-ls960, or another HuBERT",
    ),
    "another sampling rate": (
        text("preprocessor_config.json", '{"do_normalize": true, "sampling_rate": 8000}'),
        "`FOLDER` wants audio at `8000` Hz; only models for 16000 Hz can be read",
        "facebook/hubert-base-ls960, or",
    ),
    "a damaged preprocessor": (
        text("preprocessor_config.json", '{"do_norm'), "`FOLDER/preprocessor_config.json` is damaged: ", AGAIN,
    ),
    "a preprocessor that is no object": (
        text("preprocessor_config.json", "[1]"), "`FOLDER/preprocessor_config.json` is damaged: not a JSON object", AGAIN,
    ),
    "a damaged processor": (
        text("processor_config.json", ""), "`FOLDER/processor_config.json` is damaged: ", AGAIN,
    ),
    "do_normalize in words": (
        text("preprocessor_config.json", '{"do_normalize": "false"}'),
        "`do_normalize` of `FOLDER` cannot be `false`",
        "write true or false there",
    ),
    "a size that would fill the memory": (
        configure(hidden_size=60_000, intermediate_size=60_000),
        "the settings in `FOLDER` are of a model with 273,608,464,336 weights, and its files hold ",
        AGAIN,
    ),
    "more positions than anybody has": (
        configure(num_conv_pos_embeddings=2**40),  # in data2vec as many convolutions
        "the settings in `FOLDER` do not fit: 1099511627776 positions",
        AGAIN,
    ),
    "a million layers": (
        configure(num_hidden_layers=10**6),
        "the settings in `FOLDER` do not fit: 1000000 layers and 7 convolutions",
        AGAIN,
    ),
    "brackets without end": (
        text("config.json", "[" * 100_000),
        "`FOLDER/config.json` is damaged: brackets within brackets without end",
        AGAIN,
    ),
    "weights that are not finite": (
        weights(lambda t: t | {f"{Q_PROJ}.bias": torch.full((32,), torch.inf)}),
        f"weights in `FOLDER` are not finite numbers (NaN or inf): `{Q_PROJ}.bias`",
        AGAIN,
    ),
    "a shard outside": (
        both(
            sharded,
            lambda f: write(f / "model.safetensors.index.json", {"metadata": {}, "weight_map": {"a": "../b.safetensors"}}),
        ),
        "`FOLDER/model.safetensors.index.json` names files that are not in its folder, or none",
        AGAIN,
    ),
    "a link out of the folder": (
        lambda f: (f / "vocab.json").symlink_to("/etc/passwd"),
        "`FOLDER/vocab.json` is a link to `/etc/passwd`, outside its folder, and was not followed",
        "cp --remove-destination /etc/passwd FOLDER/vocab.json",
    ),
    "convolutions behind the encoder": (
        configure(model_type="wav2vec2", add_adapter=True),
        "`FOLDER` is a wav2vec 2.0 with convolutions behind it (`add_adapter`): its frames are longer",
        "give the model that it was fine-tuned from",
    ),
    "an adapter": (
        text("adapter_config.json", '{"peft_type": "LORA", "base_model_name_or_path": "x/y"}'),
        "`FOLDER` holds a PEFT adapter beside its weights, which is not read",
        "merge it",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_says_why(edited: Callable[[Edit], Path], name: str) -> None:
    edit, problem, hint = REFUSED[name]
    folder = edited(edit)
    said, hinted = refused(folder)
    assert said.startswith(problem.replace("FOLDER", str(folder)))
    assert hinted.startswith(hint.replace("FOLDER", str(folder)))


def test_a_width_that_would_fill_the_memory_is_refused(edited: Callable[[Edit], Path]) -> None:
    """Before anything is made of it: one vector of that width takes 4 GB."""
    folder = edited(configure(hidden_size=10**9))
    said, hinted = refused(folder)
    assert said.startswith(f"the settings in `{folder}` do not fit: a width of 1000000000")
    assert hinted.startswith(AGAIN)


def test_only_settings_of_the_model_are_taken(edited: Callable[[Edit], Path], plain: Path) -> None:
    """Not code to import, kernels to fetch from a hub, or a way to quantise."""
    evil = {
        "auto_map": {"AutoConfig": "evil.Config", "AutoModel": "evil.Model"},
        "quantization_config": {"quant_method": "gptq", "bits": 4},
        "_attn_implementation": "evil/kernel",
        "attn_implementation": "evil/kernel",
        "output_hidden_states": True,
        "return_dict": False,
        "dtype": "float16",
    }
    folder = edited(configure(**evil))
    (folder / "evil.py").write_text("raise SystemExit('ran')\n")
    encoder, _ = teachers.load(str(folder))
    assert type(encoder.model).__module__.startswith("transformers.")
    assert not set(evil) & set(encoder.model.config.to_diff_dict()) - {"dtype"}
    assert fingerprint(encoder.model) == fingerprint(teachers.load(str(plain))[0].model)
    assert torch.equal(outputs(encoder.model), outputs(teachers.load(str(plain))[0].model))


def test_links_as_the_hubs_cache_has_them_are_followed(plain: Path, tmp_path: Path) -> None:
    cached = tmp_path / "models--a--b"
    snapshot = cached / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    shutil.copytree(plain, cached / "blobs")
    for path in (cached / "blobs").iterdir():
        (snapshot / path.name).symlink_to(f"../../blobs/{path.name}")
    assert teachers.load(str(snapshot))[0].depth == teachers.load(str(plain))[0].depth


class Malicious:
    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch {self.proof}",)


@pytest.mark.parametrize("shards", [False, True])
def test_a_pickle_that_would_run_code_is_refused(
    edited: Callable[[Edit], Path], tmp_path: Path, shards: bool
) -> None:
    proof = tmp_path / "it-ran"
    folder = edited(pickled(lambda t: t | {"evil": Malicious(proof)}))
    if shards:
        (folder / "pytorch_model.bin").rename(folder / "pytorch_model-00001-of-00001.bin")
        names = {"evil": "pytorch_model-00001-of-00001.bin"}
        write(folder / "pytorch_model.bin.index.json", {"metadata": {}, "weight_map": names})
    problem, hint = refused(folder)
    assert problem == (
        f"`{folder}` holds a pickle with more than weights (it calls `posix.system`); "
        "it may run code when loaded, so it was not"
    )
    assert hint == "give a checkpoint with model.safetensors"
    assert not proof.exists()
    file = next(folder.glob("pytorch_model*.bin"))
    torch.load(file, weights_only=False)
    assert proof.exists(), "the trap was not armed"


def test_code_beside_the_weights_is_not_run(edited: Callable[[Edit], Path], tmp_path: Path) -> None:
    folder = edited(configure(auto_map={"AutoModel": "evil.Evil", "AutoConfig": "evil.Evil"}))
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'it-ran')!r}, 'w')")
    teachers.load(str(folder))
    assert not (tmp_path / "it-ran").exists()


# ------------------------------------------------------------------------------------------ names


def test_a_run_is_its_student(plain: Path, tmp_path: Path) -> None:
    run = tmp_path / "runs" / "mine"
    run.mkdir(parents=True)
    (run / "run.json").write_text("{}")
    problem, hint = refused(run)
    assert problem == f"run `{run}` has no student yet"
    assert hint == f"distilkit distill --resume --out {run}"
    shutil.copytree(plain, run / "student")
    assert teachers.load(str(run))[1].source == str(run / "student")


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("./techer", "did you mean `teacher`?"),
        ("techer", "did you mean `teacher`?"),
        ("models/larg", "did you mean `models/large`?"),
        ("ROOT/models/larg", "did you mean `ROOT/models/large`?"),
        ("~/models/larg", "did you mean `ROOT/models/large`?"),
        ("a/b/c", "give a folder with a model, a run, or a hub id such as facebook/hubert-base-ls960"),
        ("~nobody-of-this-name/x", "give a folder with a model"),
        ("../nothing/at/all", "give a folder with a model"),
    ],
)  # fmt: skip
def test_a_path_that_is_not_there(
    plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, hint: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    Path("teacher").mkdir()
    Path("models/large").mkdir(parents=True)
    name, hint = (value.replace("ROOT", str(tmp_path)) for value in (name, hint))
    problem, hinted = refused(name)
    assert problem == (
        f"no such model: `{name}` is neither a path that exists nor a hub id (`owner/name`)"
    )
    assert hinted.startswith(hint)


def test_a_path_under_home(plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    shutil.copytree(plain, tmp_path / "teacher")
    assert teachers.load("~/teacher")[1].source == str(tmp_path / "teacher")


def test_a_folder_of_something_else(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    problem, hint = refused(tmp_path)
    formats = "huggingface, s3prl, lighthubert, fairseq, torchaudio"
    assert problem == (
        f"`{tmp_path}` is not a checkpoint of a known format ({formats}); it holds notes.txt"
    )
    assert hint == "give a Hugging Face folder, a checkpoint of one of these formats, or a hub id"
    assert refused(tmp_path / "notes.txt") == (
        f"`{tmp_path / 'notes.txt'}` is empty",
        "download it again; in a git clone: git lfs pull",
    )


def test_a_name_no_file_can_have() -> None:
    name = "x" * 5_000
    assert refused(name) == (f"cannot open `{name}`: File name too long", "give a folder that you may read")  # fmt: skip


# -------------------------------------------------------------------------------------------- hub


@pytest.fixture
def cached(plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A hub cache with `owner/name` in it; its snapshot's folder."""
    repository = tmp_path / "hub" / "models--owner--name"
    snapshot = repository / "snapshots" / ("0123456789" * 4)
    shutil.copytree(plain, snapshot)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(snapshot.name)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return snapshot


def test_a_hub_id_comes_from_the_cache(cached: Path) -> None:
    encoder, checkpoint = teachers.load("owner/name")
    assert checkpoint.source == str(cached)
    assert torch.equal(outputs(encoder.model), wanted(make_model()))


@pytest.mark.parametrize("gone", ["model.safetensors", "config.json"])
def test_half_of_a_model_in_the_cache_is_not_enough(
    cached: Path, plain: Path, monkeypatch: pytest.MonkeyPatch, gone: str
) -> None:
    """As after `AutoFeatureExtractor.from_pretrained`, which fetches what it needs only."""
    (cached / gone).unlink()
    assert refused("owner/name") == (
        "`owner/name` is only partly in the local cache, and the hub cannot be reached",
        "go online once, or name what is here: a folder, a checkpoint, or `tiny`, which is built in",
    )
    real = hub.snapshot_download

    def online(name: str, **options: object) -> str:
        if not options.get("local_files_only"):
            shutil.copy(plain / gone, cached / gone)
        return real(name, **{**options, "local_files_only": True})

    monkeypatch.setattr(hub, "snapshot_download", online)
    assert teachers.load("owner/name")[1].source == str(cached)


RESPONSE = SimpleNamespace(headers={}, request=None)


def answered(status: int, wrapped: bool) -> Exception:
    """What the hub library raises where the hub answers with another status than 200."""
    error = HfHubHTTPError(
        "", response=SimpleNamespace(headers={}, request=None, status_code=status)
    )
    outer = LocalEntryNotFoundError("An error happened while trying to locate the files")
    outer.__cause__ = error
    return outer if wrapped else error


@pytest.mark.parametrize(
    ("error", "problem", "hint"),
    [
        (GatedRepoError("", response=RESPONSE), "`owner/other` asks for permission on the hub", "hf auth login"),
        (RepositoryNotFoundError("", response=RESPONSE), "the hub has no model `owner/other`, or it is private", "check the name, or hf auth login"),
        (OSError(28, "No space left on device"), "`owner/other` cannot be downloaded: No space left on device", "distilkit doctor"),
        (answered(401, wrapped=False), "`owner/other` is not in the local cache, and the hub answers with HTTP status 401", "hf auth login"),
        (answered(403, wrapped=True), "`owner/other` is not in the local cache, and the hub answers with HTTP status 403", "hf auth login"),
        (answered(502, wrapped=True), "`owner/other` is not in the local cache, and the hub answers with HTTP status 502", "the same again, later"),
        (LocalEntryNotFoundError("offline"), "`owner/other` is not in the local cache, and the hub cannot be reached", "go online once"),
        (RuntimeError("of the HTTP library"), "`owner/other` is not in the local cache, and the hub cannot be reached", "go online once"),
        (json.JSONDecodeError("a captive portal", "<html>", 0), "`owner/other` is not in the local cache, and the hub cannot be reached", "go online once"),
    ],
)  # fmt: skip
def test_a_download_that_fails(
    cached: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, problem: str, hint: str
) -> None:
    real = hub.snapshot_download

    def failing(name: str, **options: object) -> str:
        if options.get("local_files_only"):
            return real(name, **options)
        raise error

    monkeypatch.setattr(hub, "snapshot_download", failing)
    said, hinted = refused("owner/other")
    assert said == problem
    assert hinted.startswith(hint)


def test_a_hub_id_that_cannot_be_one() -> None:
    problem, hint = refused("owner/na me")
    assert problem.startswith("`owner/na me` is not a hub id: ")
    assert hint == "give a hub id such as facebook/hubert-base-ls960"


def test_loading_prints_nothing(tmp_path: Path) -> None:
    """In a process of its own, where nobody has quietened transformers; also when it is refused."""
    torch.manual_seed(0)
    save(HubertForCTC(tiny_config()), tmp_path / "ctc")
    shutil.copytree(tmp_path / "ctc", tmp_path / "bad")
    configure(intermediate_size=48)(tmp_path / "bad")
    code = (
        "import sys; from distilkit.teachers import load; from distilkit.errors import DistilkitError\n"
        "load(sys.argv[1])\n"
        "try: load(sys.argv[2])\n"
        "except DistilkitError: sys.exit(7)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "ctc"), str(tmp_path / "bad")],
        capture_output=True, text=True,
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (7, "", "")


def test_what_is_noted_of_a_model_finds_it_from_any_folder(
    teacher_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(teacher_folder.parent)
    _, checkpoint = teachers.load(teacher_folder.name)
    told = checkpoint.facts(teacher_folder.name)
    monkeypatch.chdir(tmp_path)
    assert teachers.again(told, "is asked for")[1].source == str(teacher_folder)
    gone = {**told, "source": str(tmp_path / "gone"), "name": str(teacher_folder)}
    assert teachers.again(gone, "is asked for")[1].source == str(teacher_folder)
    with pytest.raises(
        DistilkitError, match=f"`{teacher_folder.name}` is not the one that is asked for"
    ):
        teachers.again({**told, "fingerprint": "another"}, "is asked for")
