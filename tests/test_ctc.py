"""Fine-tuning: the loss is CTC's, only what shall be trained is, resume is exact, adapters are small."""

import gzip
import json
import shutil
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
import soundfile
import torch
from conftest import SAYINGS, fine, make_model, voice
from huggingface_hub.utils import filter_repo_objects
from safetensors.torch import load_file, save_file

from distilkit import config, ctc, loop, plan, recognisers, teachers, tokenizers
from distilkit.batches import load
from distilkit.cards import training_text
from distilkit.ctc.loss import _hidden, _speeds, sped, told
from distilkit.ctc.loss import ctc as ctc_loss
from distilkit.ctc.trainee import assemble, groups
from distilkit.encoder import Encoder, exact
from distilkit.errors import DistilkitError
from distilkit.hub import FILES
from distilkit.students import save


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of two layers, with a layer norm in front, so that stock batches are exact too."""
    folder = tmp_path_factory.mktemp("small") / "model"
    model = make_model(num_hidden_layers=2)
    save(Encoder(model=exact(model), normalise=False), folder, "# small\n")
    return folder


def prepared(
    transcribed: Path, letters: Path, small: Path, out: Path, *changes: str, **options: object
) -> ctc.Job:
    return ctc.prepare(
        [transcribed], tokenizer=letters, model=str(small), out=out, recipe=fine(*changes), **options  # type: ignore[arg-type]
    )  # fmt: skip


def finish(job: ctc.Job) -> list[loop.Step]:
    return list(ctc.train(job))


# ---------------------------------------------------------------------------------------- the loss


def test_the_loss_is_that_of_stock_transformers(small: Path, letters: Path) -> None:
    tokenizer = tokenizers.load(letters)
    _, checkpoint = teachers.load(str(small))
    made = recognisers.build(checkpoint, tokenizer, config.Recogniser(dropout=0.0))
    made.model.eval()
    said = ["a bee sees a tree", "no book keeper knows"]
    total = 0.0
    clips = [voice(1.5, 1), voice(2.2, 2)]
    for text, clip in zip(said, clips, strict=True):
        with torch.no_grad():
            labels = torch.tensor([tokenizer.encode(text)])
            stock = made.model(torch.from_numpy(clip)[None], labels=labels).loss
        total += float(stock) * labels.shape[1]  # theirs is the mean for each token
    rows = recognisers.hear(made, clips, "cpu")
    padded = torch.nn.utils.rnn.pad_sequence([torch.from_numpy(r) for r in rows], batch_first=True)
    ours = ctc_loss(padded, [len(c) for c in clips], [tokenizer.encode(t) for t in said], 0)
    assert float(ours.sum()) == pytest.approx(total, rel=1e-4)


def test_the_loss_by_hand_and_where_there_is_no_room() -> None:
    """Two frames, tokens 1 or blank: the paths for `1` are 1-, -1 and 11."""
    probabilities = torch.tensor([[[0.4, 0.6], [0.3, 0.7]]])
    found = ctc_loss(probabilities.log(), [720], [[1]], 0)
    assert float(found[0]) == pytest.approx(-np.log(0.6 * 0.3 + 0.4 * 0.7 + 0.6 * 0.7), rel=1e-5)
    assert (
        float(ctc_loss(probabilities.log(), [720], [[1, 1]], 0)[0]) == 0.0
    )  # it needs three frames


def test_a_split_into_micro_batches_changes_nothing(
    transcribed: Path, letters: Path, small: Path, tmp_path: Path
) -> None:
    still = (
        "model.dropout=0.0",
        "augment.speeds=[1.0]",
        "augment.mask_probability=0.0",
        "train.steps=3",
    )
    losses = []
    for seconds in (2.5, 12.0):
        job = prepared(
            transcribed,
            letters,
            small,
            tmp_path / str(seconds),
            *still,
            f"batches.micro_seconds={seconds}",
        )
        losses.append([step.loss for step in finish(job)])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_it_learns(transcribed: Path, letters: Path, small: Path, tmp_path: Path) -> None:
    job = prepared(
        transcribed, letters, small, tmp_path / "run", "train.steps=60", "train.learning_rate=3e-3",
        "train.head_learning_rate=1e-2", "train.validate_every=60", "train.head_fraction=0.0",
    )  # fmt: skip
    steps = finish(job)
    assert np.mean([s.loss for s in steps[-5:]]) < 0.5 * np.mean([s.loss for s in steps[:3]])
    assert set(steps[-1].valid) == {"loss", "wer", "cer", "empty", "blank"}


def test_counts_become_rates() -> None:
    counts = {
        "loss": 0.5, "word_errors": 3.0, "words": 12.0, "character_errors": 2.0, "characters": 40.0,
        "empty": 1.0, "utterances": 4.0, "blank": 0.8,
    }  # fmt: skip
    assert told(counts) == {"loss": 0.5, "wer": 0.25, "cer": 0.05, "empty": 0.25, "blank": 0.8}


# ---------------------------------------------------------------------------------- varied clips


def test_speed_perturbation_changes_length_and_pitch_and_nothing_else() -> None:
    torch.manual_seed(0)
    time = torch.arange(16_000) / 16_000
    tone = torch.sin(2 * np.pi * 400 * time)
    waves, lengths = sped(
        tone.repeat(40, 1), [16_000] * 40, _speeds([0.9, 1.0, 1.1], torch.device("cpu"))
    )
    assert set(lengths) == {14_546, 16_000, 17_778}
    for wave, length in zip(waves, lengths, strict=True):
        peak = float(torch.fft.rfft(wave[:length]).abs().argmax() * 16_000 / length)
        assert peak == pytest.approx(400 * 16_000 / length, abs=2)
        assert not wave[length:].any()
    same, kept = sped(tone[None], [16_000], _speeds([1.0], torch.device("cpu")))
    assert torch.equal(same, tone[None])
    assert kept == [16_000]


def test_masks_are_safe_for_clips_shorter_than_a_span() -> None:
    settings = config.Augment(mask_probability=0.3, mask_frames=10)
    hidden = _hidden([400, 720, 1600, 16_000], settings, torch.device("cpu"))
    assert hidden.shape == (4, 49)
    for row, frames in zip(hidden, (1, 2, 4, 49), strict=True):
        assert not row[frames:].any()  # padding is never masked
        assert frames == 1 or row[:frames].sum() < frames  # nor a clip as a whole
    off = _hidden([16_000], config.Augment(mask_probability=0.0), torch.device("cpu"))
    assert not off.any()


def test_twenty_milliseconds_of_sound_train_without_an_error(small: Path, letters: Path) -> None:
    recipe = fine("augment.mask_probability=1.0", "augment.mask_widths=0.5")
    _, checkpoint = teachers.load(str(small))
    trainee = assemble(checkpoint, tokenizers.load(letters), recipe).train()
    scores = trainee(torch.randn(1, 400), [400], torch.ones(1, 1, dtype=torch.bool))
    assert scores.shape[:2] == (1, 1)


def test_widths_are_hidden_in_training_only_the_same_in_all_frames(
    small: Path, letters: Path
) -> None:
    _, checkpoint = teachers.load(str(small))
    trainee = assemble(checkpoint, tokenizers.load(letters), fine("augment.mask_widths=0.5"))
    project = trainee.recogniser.encoder.model.feature_projection
    torch.manual_seed(1)
    features = torch.randn(3, 7, 16)
    trainee.eval()
    whole = project(features)
    assert (whole != 0).all()
    project.eval()
    trainee.training = True  # dropout stays off, so that zeros are the mask's
    masked = project(features)
    zero = masked == 0
    assert torch.equal(zero, zero[:, :1].expand_as(zero))
    assert zero.any()
    assert zero[:, 0].sum(1).max() <= 16
    assert torch.equal(masked[~zero], whole[~zero])


# ------------------------------------------------------------------------------ what is trained


def test_what_is_frozen_stays_as_it_was_and_the_head_goes_first(
    transcribed: Path, letters: Path, small: Path, tmp_path: Path
) -> None:
    job = prepared(
        transcribed, letters, small, tmp_path / "run", "train.head_fraction=0.5", "train.validate_every=1",
        "train.checkpoint_every=1",
    )  # fmt: skip
    loop.seed_step(0, 0)
    before = load_file(small / "model.safetensors")
    seen = {}
    for step in ctc.train(job):
        tensors, _ = job.run.load_checkpoint() or ({}, {})
        seen[step.number] = {
            k.removeprefix("module.model.hubert."): v for k, v in tensors.items() if "hubert" in k
        }
    front = [name for name in before if name.startswith("feature_extractor.")]
    layer = "encoder.layers.1.attention.q_proj.weight"
    assert front
    after = load_file(tmp_path / "run" / "model" / "model.safetensors")
    assert all(torch.equal(after[f"hubert.{name}"], before[name]) for name in front)
    for number, weights in seen.items():
        assert not any(name in weights for name in front)  # a checkpoint holds what is trained
        assert torch.equal(weights[layer], before[layer]) == (number <= 3)


def test_learning_rates_by_layer(small: Path, letters: Path) -> None:
    _, checkpoint = teachers.load(str(small))
    recipe = fine(
        "train.layer_decay=0.5", "train.learning_rate=1e-3", "train.head_learning_rate=4e-3",
        "train.head_fraction=0.1", "train.freeze_front_end=false",
    )  # fmt: skip
    trainee = assemble(checkpoint, tokenizers.load(letters), recipe)
    names = {id(value): name for name, value in trainee.named_parameters()}
    found = {}
    for group in groups(trainee, recipe, 100):
        for parameter in group.params:
            found[names[id(parameter)].removeprefix("model.")] = (group.scale, group.after)
    assert found["lm_head.weight"] == (4.0, 0)
    assert found["hubert.encoder.layers.1.attention.q_proj.weight"] == (1.0, 10)
    assert found["hubert.encoder.layers.0.attention.q_proj.weight"] == (0.5, 10)
    assert found["hubert.feature_projection.projection.weight"] == (0.25, 10)
    assert found["hubert.feature_extractor.conv_layers.0.conv.weight"] == (0.125, 10)
    assert set(found) == {
        n.removeprefix("model.") for n, p in trainee.named_parameters() if p.requires_grad
    }  # every one of them once


def test_random_weights_are_others_and_pretrained_ones_are_kept(small: Path, letters: Path) -> None:
    _, checkpoint = teachers.load(str(small))
    layer = "model.hubert.encoder.layers.0.attention.q_proj.weight"
    theirs = checkpoint.model.state_dict()["encoder.layers.0.attention.q_proj.weight"]
    kept = assemble(checkpoint, tokenizers.load(letters), fine()).state_dict()[layer]
    drawn = assemble(checkpoint, tokenizers.load(letters), fine("model.start=random")).state_dict()[
        layer
    ]
    assert torch.equal(kept, theirs)
    assert not torch.equal(drawn, theirs)
    again = assemble(checkpoint, tokenizers.load(letters), fine("model.start=random")).state_dict()[
        layer
    ]
    assert torch.equal(drawn, again)  # by the seed


# ------------------------------------------------------------------------------------- adapters


def test_adapters_are_trained_alone_and_gradients_flow_with_checkpointing(
    small: Path, letters: Path
) -> None:
    _, checkpoint = teachers.load(str(small))
    gradients = []
    for recompute in (False, True):
        trainee = assemble(
            checkpoint, tokenizers.load(letters), fine("lora.rank=4", "model.dropout=0.0")
        )
        for name, value in trainee.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(value, generator=torch.Generator().manual_seed(1))
        if recompute:
            trainee.model.activation_checkpointing_enable(
                activation_checkpointing_kwargs={"use_reentrant": False}
            )
        trainee.train()
        clip = torch.from_numpy(voice(1.0, 1))[None]
        trainee(clip, [16_000], torch.zeros(1, 49, dtype=torch.bool)).square().sum().backward()
        gradients.append({n: p.grad for n, p in trainee.named_parameters() if p.requires_grad})
        frozen = [n for n, p in trainee.named_parameters() if not p.requires_grad]
        assert all(p.grad is None for n, p in trainee.named_parameters() if n in frozen)
    plain, recomputed = gradients
    assert len(plain) == 2 * 6 * 2 + 2  # two layers, six maps, A and B; the head
    for name, gradient in plain.items():
        assert gradient is not None, name
        assert gradient.abs().sum() > 0, name
        assert torch.allclose(recomputed[name], gradient, rtol=1e-4, atol=1e-6), name


@pytest.mark.parametrize(
    "changes", [(), ("lora.rank=2",), ("lora.rank=2", "train.freeze_front_end=false")]
)
def test_nothing_is_kept_for_the_gradient_of_a_front_end_that_stays_as_it_is(
    small: Path, letters: Path, changes: tuple[str, ...]
) -> None:
    _, checkpoint = teachers.load(str(small))
    trainee = assemble(checkpoint, tokenizers.load(letters), fine(*changes)).train()
    kept = []
    front = trainee.recogniser.encoder.model.feature_extractor
    front.register_forward_hook(lambda *given: kept.append(given[-1].requires_grad))
    trainee(torch.from_numpy(voice(1.0, 1))[None], [16_000])
    assert kept == [False]


@pytest.mark.parametrize(
    ("changes", "frozen"),
    [
        ((), True),
        (("train.freeze_front_end=false",), False),
        (("lora.rank=2", "train.freeze_front_end=false"), True),
        (("lora.rank=2", "lora.front_end=true"), False),
    ],
)
def test_a_plan_knows_whether_the_front_end_keeps_activations(
    small: Path, changes: tuple[str, ...], frozen: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan, "bytes_begun", lambda *_: 0.0)  # the model is too small for it
    encoder, _ = teachers.load(str(small))
    room = (
        "train.memory_gib=0.001",
        "batches.micro_seconds=auto",
        "train.gradient_checkpointing=false",
    )
    asked = [changes, *([f"train.freeze_front_end={to}"] for to in ("true", "false"))]
    fits = [
        plan.micro_seconds(fine(*room, *each), encoder, None, "cpu", "fp32", 0.1)[0]
        for each in asked
    ]
    assert fits[1] > fits[2] > 0.1
    assert fits[0] == fits[1 if frozen else 2]


@pytest.fixture(scope="module")
def adapted(
    tmp_path_factory: pytest.TempPathFactory, transcribed: Path, letters: Path, small: Path
) -> Path:
    out = tmp_path_factory.mktemp("adapted") / "run"
    job = prepared(
        transcribed, letters, small, out, "lora.rank=4", "lora.learning_rate=0.01", "train.head_fraction=0.0",
        merge=True,
    )  # fmt: skip
    finish(job)
    return out


def test_an_adapter_loads_to_what_was_trained_and_merged_is_the_same(
    adapted: Path, small: Path, letters: Path
) -> None:
    from peft import PeftModel

    assert {path.name for path in (adapted / "adapter").iterdir()} >= {
        "adapter_model.safetensors", "adapter_config.json", "base.json", "config.json", "README.md", "text.json",
    }  # fmt: skip
    clip = voice(2.0, 9)
    job = ctc.prepare([], out=copied(adapted), resume=True)
    trainee = assemble(job.checkpoint, job.tokenizer, job.recipe)
    trainee.load_state_dict(load_file(adapted / "best.safetensors"), strict=False)
    trainee.eval()
    (trained_TK,) = recognisers.hear(trainee.recogniser, [clip], "cpu")
    _, checkpoint = teachers.load(str(small))
    plain = recognisers.build(checkpoint, job.tokenizer, config.Recogniser())
    plain = type(plain)(model=plain.model, tokenizer=plain.tokenizer, normalise=plain.normalise)
    unmerged = PeftModel.from_pretrained(plain.model, adapted / "adapter").eval()
    (reloaded_TK,) = recognisers.hear(
        recognisers.Recogniser(model=unmerged.base_model.model, tokenizer=job.tokenizer, normalise=False),
        [clip], "cpu",
    )  # fmt: skip
    assert np.abs(reloaded_TK - trained_TK).max() < 1e-5
    (merged_TK,) = recognisers.hear(recognisers.load(str(adapted / "model")), [clip], "cpu")
    assert np.abs(merged_TK - trained_TK).max() < 1e-4
    (loaded_TK,) = recognisers.hear(recognisers.load(str(adapted / "adapter")), [clip], "cpu")
    assert np.abs(loaded_TK - trained_TK).max() < 1e-4
    fresh = recognisers.build(checkpoint, job.tokenizer, config.Recogniser())
    fresh.model.eval()
    (before_TK,) = recognisers.hear(fresh, [clip], "cpu")
    assert np.abs(before_TK - trained_TK).max() > 0.05  # the adapter does something


@pytest.mark.parametrize("damage", ["a bit", "the end", "other weights"])
def test_damaged_best_weights_are_noticed(adapted: Path, tmp_path: Path, damage: str) -> None:
    run = tmp_path / "run"
    shutil.copytree(copied(adapted), run)
    best = run / ctc.BEST
    content = bytearray(best.read_bytes())
    if damage == "other weights":
        save_file({"a": torch.zeros(1)}, best)
    else:
        content[-9] ^= 1
        best.write_bytes(content if damage == "a bit" else content[:-9])
    with pytest.raises(DistilkitError, match=r"best.safetensors` is damaged") as caught:
        finish(ctc.prepare([], out=run, resume=True))
    assert caught.value.hint == f"rm {best}, and --resume: the last step's weights are taken then"
    best.unlink()
    finish(ctc.prepare([], out=run, resume=True))
    assert recognisers.load(str(run / "model"))


def test_an_adapter_is_found_by_its_hub_id(
    adapted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As it lies in the hub's cache once it was downloaded; all of it is asked for."""
    repository = tmp_path / "hub" / "models--owner--name"
    snapshot = repository / "snapshots" / ("0123456789" * 4)
    shutil.copytree(adapted / "adapter", snapshot)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(snapshot.name)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    found = recognisers.load("owner/name")
    own = recognisers.load(str(adapted / "adapter"))
    assert torch.equal(found.model.lm_head.weight, own.model.lm_head.weight)
    names = [path.name for path in snapshot.iterdir()]
    assert set(names) == set(filter_repo_objects(names, allow_patterns=FILES))


def copied(run: Path) -> Path:
    """The run as it was before its recogniser was written."""
    to = run.with_name("copied")
    if not to.exists():
        shutil.copytree(run, to)
        shutil.rmtree(to / "model")
        shutil.rmtree(to / "adapter")
    return to


def test_an_adapter_is_a_twentieth_of_a_base_model(tmp_path: Path, letters: Path) -> None:
    """HuBERT base's size, random weights: adapters of rank 16 and everything else in the folder."""
    from transformers import HubertConfig, HubertModel

    model = HubertModel(HubertConfig(num_hidden_layers=12, layerdrop=0.0))
    save(Encoder(model=exact(model), normalise=False), tmp_path / "base", "#\n")
    _, checkpoint = teachers.load(str(tmp_path / "base"))
    trainee = assemble(checkpoint, tokenizers.load(letters), fine("lora.rank=16"))
    (adapters,) = trainee.adapters
    adapters.save_pretrained(tmp_path / "adapter", save_embedding_layers=False)
    tokenizers.save(trainee.recogniser.tokenizer, tmp_path / "adapter")
    size = sum(path.stat().st_size for path in (tmp_path / "adapter").rglob("*"))
    whole = (tmp_path / "base" / "model.safetensors").stat().st_size
    assert 0.005 < size / whole <= 0.05


def test_the_model_under_an_adapter_must_be_the_same(
    adapted: Path, small: Path, tmp_path: Path
) -> None:
    shutil.copytree(adapted / "adapter", tmp_path / "adapter")
    other = tmp_path / "other"
    save(Encoder(model=exact(make_model(1, num_hidden_layers=2)), normalise=False), other, "#\n")
    told = json.loads((tmp_path / "adapter" / "base.json").read_text())
    (tmp_path / "adapter" / "base.json").write_text(json.dumps({**told, "source": str(other)}))
    with pytest.raises(DistilkitError, match="is not the one that the adapter"):
        recognisers.load(str(tmp_path / "adapter"))
    for text in ('{"name": ["a"]}', "[" * 100_000, "[]"):
        (tmp_path / "adapter" / "base.json").write_text(text)
        with pytest.raises(DistilkitError, match=r"no base.json that names its model|is damaged"):
            recognisers.load(str(tmp_path / "adapter"))
    (tmp_path / "adapter" / "base.json").unlink()
    with pytest.raises(DistilkitError, match=r"no base.json that names its model"):
        recognisers.load(str(tmp_path / "adapter"))


def test_settings_of_adapters_import_no_modules_and_open_no_files(
    adapted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "evil_module.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    monkeypatch.syspath_prepend(tmp_path)
    folder = tmp_path / "adapter"
    shutil.copytree(adapted / "adapter", folder)
    told = json.loads((folder / "adapter_config.json").read_text())
    evil = {
        "megatron_config": {"a": 1},
        "megatron_core": "evil_module",
        "corda_config": {"cache_file": "/etc/passwd"},
        "auto_mapping": {"base_model_class": "A", "parent_library": "evil_module"},
        "base_model_name_or_path": "evil/model",
        "revision": "main",
    }
    (folder / "adapter_config.json").write_text(json.dumps(told | evil))
    clip = voice(1.0, 5)
    (wanted,) = recognisers.load(str(adapted / "adapter")).logprobs([clip])
    (got,) = recognisers.load(str(folder)).logprobs([clip])
    np.testing.assert_array_equal(got, wanted)
    assert not (tmp_path / "ran").exists()
    for wrong in (
        {"peft_type": "IA3"}, {"r": 10**9}, {"r": "a"}, {"target_modules": "(a+)+$"}, {"modules_to_save": 7}, {"lora_alpha": -1},
    ):  # fmt: skip
        (folder / "adapter_config.json").write_text(json.dumps(told | wrong))
        with pytest.raises(DistilkitError, match="is not as fine-tuning writes it: "):
            recognisers.load(str(folder))
    (folder / "adapter_model.safetensors").unlink()
    with pytest.raises(DistilkitError, match=r"holds no adapter_model.safetensors"):
        recognisers.load(str(folder))  # peft would ask the hub for it


# ---------------------------------------------------------------------------------------- a run


@pytest.mark.parametrize(
    "changes",
    [
        (),
        ("model.start=random",),
        ("lora.rank=2", "lora.norms=true", "lora.positions=true", "lora.front_end=true"),
    ],
    ids=["", "random", "adapters"],
)
def test_a_resumed_run_ends_as_an_unbroken_one(
    transcribed: Path, letters: Path, small: Path, tmp_path: Path, changes: tuple[str, ...]
) -> None:
    whole = prepared(transcribed, letters, small, tmp_path / "whole", *changes)
    finish(whole)
    broken = prepared(transcribed, letters, small, tmp_path / "broken", *changes)
    for step in ctc.train(broken):
        if step.number == 5:  # the checkpoint is of step 4
            break
    again = ctc.prepare([], out=tmp_path / "broken", resume=True)
    assert again.resumed
    finish(again)
    result = (
        ["adapter/adapter_model.safetensors", "adapter/vocab.json"]
        if whole.recipe.lora.rank
        else ["model/model.safetensors", "model/vocab.json"]
    )
    for name in ("metrics.jsonl", "best.safetensors", *result):
        assert (tmp_path / "broken" / name).read_bytes() == (
            tmp_path / "whole" / name
        ).read_bytes(), name
    with pytest.raises(
        DistilkitError, match=r"is finished: its recogniser is in .*(model|adapter)"
    ):
        ctc.prepare([], out=tmp_path / "broken", resume=True)


def test_a_run_with_another_tokenizer_is_not_gone_on_with(
    transcribed: Path, letters: Path, small: Path, tmp_path: Path
) -> None:
    """Its head would learn what the tokens meant before, and say what they mean now."""
    job = prepared(transcribed, letters, small, tmp_path / "run")
    for step in ctc.train(job):
        if step.number == 3:
            break
    path = tmp_path / "run" / "tokenizer" / "vocab.json"
    ids = json.loads(path.read_text())
    ids["a"], ids["b"] = ids["b"], ids["a"]
    path.write_text(json.dumps(ids))
    with pytest.raises(DistilkitError, match="tokenizer` is not the one that the run began with"):
        ctc.prepare([], out=tmp_path / "run", resume=True)


def test_the_best_validation_is_kept_and_patience_ends_a_run(
    transcribed: Path, letters: Path, small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rates = iter([0.9, 0.5, 0.7, 0.6, 0.4])
    monkeypatch.setattr(ctc, "told", lambda valid: {**told(valid), "wer": next(rates)})
    job = prepared(
        transcribed, letters, small, tmp_path / "run", "train.steps=9", "train.validate_every=1",
        "train.patience=2", "train.head_fraction=0.0",
    )  # fmt: skip
    kept = {}
    for step in ctc.train(job):
        kept[step.number] = load_file(tmp_path / "run" / "best.safetensors")["model.lm_head.weight"]
    assert step.number == 4  # two validations after the best
    final = load_file(tmp_path / "run" / "model" / "model.safetensors")["lm_head.weight"]
    assert torch.equal(final, kept[2])
    assert not torch.equal(kept[1], kept[2])
    assert torch.equal(kept[4], kept[2])


def test_a_run_that_ended_early_and_was_killed_before_it_was_written_takes_no_further_step(
    transcribed: Path, letters: Path, small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rates = iter([0.5, 0.7, 0.7, 0.1])
    monkeypatch.setattr(ctc, "told", lambda valid: {**told(valid), "wer": next(rates)})
    job = prepared(
        transcribed, letters, small, tmp_path / "run", "train.validate_every=1", "train.patience=2",
        "train.checkpoint_every=1",
    )  # fmt: skip
    finish(job)
    shutil.rmtree(tmp_path / "run" / "model")
    assert finish(ctc.prepare([], out=tmp_path / "run", resume=True)) == []
    assert (tmp_path / "run" / "model" / "model.safetensors").is_file()


def test_without_anything_held_out_the_last_weights_are_written(
    transcribed: Path, letters: Path, small: Path, tmp_path: Path
) -> None:
    finish(prepared(transcribed, letters, small, tmp_path / "run", "data.valid_fraction=0.0"))
    assert not (tmp_path / "run" / "best.safetensors").exists()
    assert "Nothing was held out" in (tmp_path / "run" / "model" / "README.md").read_text()


def test_speakers_are_held_out_whole_and_the_manifest_says_who(
    transcribed: Path, letters: Path, small: Path, tmp_path: Path
) -> None:
    job = prepared(transcribed, letters, small, tmp_path / "run")
    finish(job)
    with gzip.open(tmp_path / "run" / "audio.jsonl.gz", "rt") as file:
        rows = [json.loads(line) for line in file]
    by = {
        part: {row["supervisions"][0]["speaker"] for row in rows if row["custom"]["split"] == part}
        for part in ("train", "valid")
    }
    assert len(by["valid"]) == 1
    assert by["train"] | by["valid"] == {"who0", "who1", "who2", "who3"}
    assert not by["train"] & by["valid"]
    assert job.facts["valid_speakers"] == 1


def test_a_known_head_goes_on_and_another_models_is_new(
    transcribed: Path, letters: Path, small: Path, tmp_path: Path
) -> None:
    finish(prepared(transcribed, letters, small, tmp_path / "run"))
    again = prepared(
        transcribed, letters, tmp_path / "run", tmp_path / "again", "train.learning_rate=1e-9"
    )
    assert again.facts["head"] == "the model's own, for the same tokens"
    head = load_file(tmp_path / "run" / "model" / "model.safetensors")["lm_head.weight"]
    made = assemble(again.checkpoint, again.tokenizer, again.recipe)
    assert torch.equal(made.model.lm_head.weight, head)
    other = tmp_path / "other"
    tokenizers.save(tokenizers.train([*SAYINGS, "quiz"], config.Tokenizer(), config.Text()), other)
    new = prepared(transcribed, other, tmp_path / "run", tmp_path / "new")
    assert new.facts["head"] == "new"


def test_a_weighted_recogniser_is_trained_and_goes_on(
    transcribed: Path, letters: Path, small: Path, tmp_path: Path
) -> None:
    weighted = "model.layers=weighted"
    finish(prepared(transcribed, letters, small, tmp_path / "run", weighted))
    written = load_file(tmp_path / "run" / "model" / "model.safetensors")
    again = prepared(transcribed, letters, tmp_path / "run", tmp_path / "again", weighted)
    assert again.facts["head"] == "the model's own, for the same tokens"
    made = assemble(again.checkpoint, again.tokenizer, again.recipe)
    for name in ("lm_head.weight", "layer_mix.weight"):
        assert written[name].any()
        assert torch.equal(made.model.state_dict()[name], written[name])
    last = prepared(transcribed, letters, tmp_path / "run", tmp_path / "last")
    assert last.facts["head"] == "new"  # it read another sum


def test_the_model_must_be_the_one_the_run_began_with(
    transcribed: Path, letters: Path, small: Path, tmp_path: Path
) -> None:
    shutil.copytree(small, tmp_path / "base")
    job = prepared(transcribed, letters, tmp_path / "base", tmp_path / "run")
    for _ in ctc.train(job):
        break
    shutil.rmtree(tmp_path / "base")
    save(
        Encoder(model=exact(make_model(1, num_hidden_layers=2)), normalise=False),
        tmp_path / "base",
        "#\n",
    )
    with pytest.raises(DistilkitError, match="is not the one that .* began with"):
        ctc.prepare([], out=tmp_path / "run", resume=True)


# ------------------------------------------------------------------------------------- bad input


def corpus(folder: Path, rows: list[tuple[str, float, str]]) -> Path:
    folder.mkdir()
    lines = ["file_name,transcription"]
    for place, (name, seconds, text) in enumerate(rows):
        soundfile.write(folder / name, voice(seconds, place), 16_000, "PCM_16")
        lines.append(f'{name},"{text}"')
    (folder / "metadata.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def test_utterances_that_cannot_be_learned_are_listed(
    letters: Path, small: Path, tmp_path: Path
) -> None:
    folder = corpus(
        tmp_path / "said",
        [
            *((f"good{i}.wav", 2.0, SAYINGS[0]) for i in range(6)),
            ("strange.wav", 2.0, "a bee éß"),
            ("long.wav", 0.3, "a bee sees a tree"),
            ("points.wav", 1.0, "?!"),
        ],
    )
    job = ctc.prepare(
        [folder], tokenizer=letters, model=str(small), out=tmp_path / "run", recipe=fine()
    )
    assert job.collection is not None
    listed = {Path(item.path).name: (item.kind, item.reason) for item in job.collection.skipped}
    assert listed == {
        "strange.wav": ("unknown characters", "the tokenizer has no `é`, `ß`"),
        # 17 characters, ee three times; 0.3 s at speed 1.1 are 13 frames
        "long.wav": ("text too long", "20 tokens for 13 frames of 20 ms at speed 1.1"),
        "points.wav": ("empty text", "nothing is left of `?!`"),
    }
    finish(job)
    assert "strange.wav" in (tmp_path / "run" / "skipped.tsv").read_text()


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("ξένος", "distilkit tokenizer DATA --out DIR makes one for these texts"),
        ("...", "write what is said, or distilkit tokenizer DATA --punctuation keep --out DIR"),
        (
            "no " * 30,
            "distilkit tokenizer DATA --kind unigram --out DIR makes fewer tokens of a text",
        ),
    ],
)
def test_a_tokenizer_for_other_texts_is_an_error(
    letters: Path, small: Path, tmp_path: Path, text: str, hint: str
) -> None:
    folder = corpus(tmp_path / "said", [(f"{i}.wav", 1.0, text) for i in range(3)])
    with pytest.raises(
        DistilkitError, match="3 of 3 utterances cannot be learned with this tokenizer"
    ) as caught:
        ctc.prepare(
            [folder], tokenizer=letters, model=str(small), out=tmp_path / "run", recipe=fine()
        )
    assert caught.value.hint == hint
    assert not (tmp_path / "run").exists()


def test_what_is_missing_is_said(
    transcribed: Path, letters: Path, small: Path, tmp_path: Path
) -> None:
    with pytest.raises(DistilkitError, match="no tokenizer given"):
        ctc.prepare([transcribed], model=str(small), out=tmp_path / "run", recipe=fine())
    with pytest.raises(DistilkitError, match="no tokenizer in"):
        prepared(transcribed, tmp_path / "none", small, tmp_path / "run")
    with pytest.raises(DistilkitError, match="holds no run to resume"):
        ctc.prepare([], out=tmp_path / "run", recipe=fine(), resume=True)
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "x").touch()
    with pytest.raises(DistilkitError, match="is not empty and not a run"):
        prepared(transcribed, letters, small, tmp_path / "taken")


def test_a_run_of_another_command_is_not_resumed(
    tmp_path: Path, speech: Path, teacher_folder: Path
) -> None:
    from conftest import quick

    from distilkit import distill

    job = distill.prepare(
        [speech], teacher=str(teacher_folder), out=tmp_path / "run", recipe=quick()
    )
    for _ in distill.train(job):
        break
    with pytest.raises(DistilkitError, match="is a run of `distilkit distill`") as caught:
        ctc.prepare([], out=tmp_path / "run", resume=True)
    assert caught.value.hint == f"distilkit distill --resume --out {tmp_path / 'run'}"


def test_a_collapse_to_blanks_is_named_with_a_remedy(
    transcribed: Path, letters: Path, small: Path, tmp_path: Path
) -> None:
    job = prepared(transcribed, letters, small, tmp_path / "run")

    def row(step: int, empty: float, loss: float = 1.0) -> dict[str, object]:
        valid = {"loss": 1.0, "wer": 1.0, "cer": 1.0, "empty": empty, "blank": 0.99}
        return {"step": step, "loss": loss, "valid": valid}

    few = job.plan
    many = type(few)(**{**vars(few), "steps": 5000})
    said = ctc.diagnosis([row(1, 0.5), row(2, 1.0), row(3, 0.96)], few, job.recipe)
    assert said is not None
    assert "the model says nothing: 96% of the held-out transcripts are empty" in said[0]
    assert said[1].startswith("--steps 18")
    flat = ctc.diagnosis([row(n, 1.0) for n in range(1, 60)], many, job.recipe)
    assert flat is not None
    assert flat[1].startswith("--set train.learning_rate=0.003;")
    adapted = ctc.diagnosis(
        [row(n, 1.0) for n in range(1, 60)], many, fine("lora.rank=4", "lora.learning_rate=0.002")
    )
    assert adapted is not None
    assert adapted[1].startswith("--set lora.learning_rate=0.006;")
    falling = ctc.diagnosis([row(n, 1.0, 1 / n) for n in range(1, 60)], many, job.recipe)
    assert falling is not None
    assert falling[1].startswith("--steps 15000")
    assert ctc.diagnosis([row(1, 1.0), row(2, 0.5)], few, job.recipe) is None
    assert ctc.diagnosis([], few, job.recipe) is None


def test_a_batch_is_read_with_its_text(
    transcribed: Path, letters: Path, small: Path, tmp_path: Path
) -> None:
    job = prepared(transcribed, letters, small, tmp_path / "run")
    batch = load(job.train[:2])
    assert batch.ids == tuple(cut.id for cut in job.train[:2])
    assert {cut.supervisions[0].text for cut in job.train} <= set(SAYINGS)


@pytest.mark.parametrize("also", ["", "positions", "front_end"])
def test_norms_biases_and_convolutions_may_be_trained_beside_adapters(
    small: Path, letters: Path, tmp_path: Path, also: str
) -> None:
    from peft import PeftModel

    _, checkpoint = teachers.load(str(small))
    changes = ["lora.rank=2", "lora.norms=true", *([f"lora.{also}=true"] if also else [])]
    trainee = assemble(checkpoint, tokenizers.load(letters), fine(*changes))
    trained = {name for name, value in trainee.named_parameters() if value.requires_grad}
    assert any("encoder.layer_norm.modules_to_save" in name for name in trained)
    assert any("layers.0.final_layer_norm.modules_to_save" in name for name in trained)
    assert any("q_proj.base_layer.bias" in name for name in trained)
    front = {name for name in trained if ".feature_extractor." in name}
    assert all(".conv.modules_to_save." in name for name in front)
    assert len({name.split(".conv.")[0] for name in front}) == (7 if also == "front_end" else 0)
    assert any("pos_conv_embed" in name for name in trained) == (also == "positions")
    clip = torch.from_numpy(voice(1.0, 1))[None]
    trainee.train()(clip, [16_000]).square().sum().backward()
    for name, value in trainee.named_parameters():
        assert (value.grad is not None) == (name in trained), name
    with torch.no_grad():
        for name, value in trainee.named_parameters():
            if name in trained:
                value.add_(0.05 * torch.randn_like(value))
    trainee.eval()
    (adapters,) = trainee.adapters
    adapters.save_pretrained(tmp_path / "adapter", save_embedding_layers=False)
    clip = voice(1.5, 3)
    (ours_TK,) = recognisers.hear(trainee.recogniser, [clip], "cpu")
    fresh = recognisers.build(checkpoint, trainee.recogniser.tokenizer, config.Recogniser())
    with recognisers.quiet_peft():
        merged = PeftModel.from_pretrained(fresh.model, tmp_path / "adapter").merge_and_unload()
    again = recognisers.Recogniser(model=merged.eval(), tokenizer=fresh.tokenizer, normalise=False)
    (theirs_TK,) = recognisers.hear(again, [clip], "cpu")
    assert np.abs(ours_TK - theirs_TK).max() < 1e-4


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ((), "all weights but the conv front end"),
        (("train.freeze_front_end=false",), "all weights, the head alone"),
        (("lora.rank=2", "train.freeze_front_end=false"), "adapters of rank 2 (LoRA) and the head"),
        (("lora.rank=2", "lora.front_end=true"), "(LoRA), the conv front end and the head"),
        (("lora.rank=2", "lora.norms=true"), "(LoRA), norms and biases and the head"),
    ],
)
def test_what_is_trained_is_said(changes: tuple[str, ...], said: str) -> None:
    assert said in training_text(fine("train.head_fraction=0.05", *changes))


def test_peft_says_nothing_to_users(adapted: Path, recwarn: pytest.WarningsRecorder) -> None:
    recognisers.load(str(adapted / "adapter"))
    assert [str(item.message) for item in recwarn] == []


def test_a_run_of_fine_tuning_is_not_resumed_as_a_distillation(
    transcribed: Path, letters: Path, small: Path, tmp_path: Path
) -> None:
    from distilkit import distill

    for _ in ctc.train(prepared(transcribed, letters, small, tmp_path / "run")):
        break
    with pytest.raises(DistilkitError, match="is a run of `distilkit finetune-ctc`"):
        distill.prepare([], out=tmp_path / "run", resume=True)
