"""Fixtures: small random teachers, synthesised speech, and what is shared beside a checkout."""

import os
import sys
import sysconfig
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

os.environ["OMP_NUM_THREADS"] = "1"  # read when numpy is imported; tests run side by side
os.environ["OPENBLAS_NUM_THREADS"] = "1"

import numpy as np
import pytest
import soundfile
import torch
import transformers
from transformers import HubertConfig, HubertModel

from distilkit import cli, config
from distilkit.encoder import Encoder, exact
from distilkit.students import save

os.environ["HF_HUB_OFFLINE"] = "1"  # read when huggingface_hub is imported
torch.set_num_threads(1)
transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()


def pytest_report_header() -> str:
    shared = os.environ.get("DISTILKIT_SHARED", "not set: tests on real speech are skipped")
    return f"torch {torch.__version__}, transformers {transformers.__version__}, DISTILKIT_SHARED {shared}"


def tiny_config(**changes: object) -> HubertConfig:
    """A HuBERT of base's form: 12 layers, group norm, narrow."""
    settings: dict[str, object] = {
        "hidden_size": 32,
        "num_hidden_layers": 12,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "conv_dim": [16] * 7,
        "num_conv_pos_embeddings": 16,
        "num_conv_pos_embedding_groups": 4,
        "layerdrop": 0.0,
    }
    return HubertConfig(**{**settings, **changes})


LARGE = {
    "feat_extract_norm": "layer",
    "conv_bias": True,
    "do_stable_layer_norm": True,
    "num_hidden_layers": 4,
}


def make_model(seed: int = 0, **changes: object) -> HubertModel:
    """A random model whose norms are not the identity, so that a forgotten one shows."""
    torch.manual_seed(seed)
    model = HubertModel(tiny_config(**changes))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.add_(0.3 * torch.randn_like(parameter))
        for name, buffer in model.named_buffers():
            if "running_mean" in name:
                buffer.add_(0.3 * torch.randn_like(buffer))
    return model.eval()


@pytest.fixture(scope="session")
def base_model() -> HubertModel:
    return make_model()


@pytest.fixture(scope="session")
def large_model() -> HubertModel:
    return make_model(**LARGE)


@pytest.fixture(scope="session")
def teacher_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "teacher"
    save(Encoder(model=exact(make_model()), normalise=False), folder, "# tiny\n")
    return folder


@pytest.fixture(scope="session")
def large_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "large"
    save(Encoder(model=exact(make_model(**LARGE)), normalise=True), folder, "# tiny\n")
    return folder


def voice(seconds: float, seed: int, rate: int = 16_000) -> np.ndarray:
    """Something like a voice: a gliding buzz in syllables, with a little noise. float32."""
    rng = np.random.default_rng(seed)
    count = int(seconds * rate)
    time = np.arange(count) / rate
    pitch = 110 + 60 * rng.random() + 20 * np.sin(2 * np.pi * 0.7 * time + rng.random() * 6)
    phase = 2 * np.pi * np.cumsum(pitch) / rate
    buzz = sum(np.sin(k * phase) / k for k in range(1, 12))
    syllables = np.clip(np.sin(2 * np.pi * (2 + rng.random()) * time), 0, 1)
    sound = 0.15 * buzz * syllables + 0.003 * rng.standard_normal(count)
    return sound.astype(np.float32)


@pytest.fixture(scope="session")
def speech(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve clips of 0.6 to 3.4 s in two folders, wav and flac."""
    folder = tmp_path_factory.mktemp("speech")
    for index in range(12):
        name = f"{'ab'[index % 2]}/clip{index:02d}.{'wav' if index % 3 else 'flac'}"
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        soundfile.write(path, voice(0.6 + 0.25 * index, index), 16_000, "PCM_16")
    return folder


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DISTILKIT_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture
def shared() -> Path:
    if "DISTILKIT_SHARED" not in os.environ:
        pytest.skip("DISTILKIT_SHARED is not set")
    return Path(os.environ["DISTILKIT_SHARED"])


def quick(*changes: str) -> config.Recipe:
    """The smoke recipe made small: a few steps of 4 s, fp32."""
    return config.load_recipe(
        "smoke",
        [
            "train.precision=fp32",
            "train.device=cpu",
            "train.steps=6",
            "train.validate_every=3",
            "train.checkpoint_every=2",
            "batches.seconds=4",
            "batches.micro_seconds=4",
            "data.valid_fraction=0.2",
            "objective.layers=[4,8,12]",
            *changes,
        ],
    )


Result = tuple[int, str, str]  # exit status, standard output, standard error
Run = Callable[..., Result]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """Run a command in this process, in an empty folder."""
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.chdir(home)
    monkeypatch.setenv("COLUMNS", "200")

    def call(*arguments: object) -> Result:
        monkeypatch.setattr(sys, "argv", ["distilkit", *map(str, arguments)])
        capsys.readouterr()
        with mock.patch.dict(os.environ):  # --quiet and --verbose tell the processes to come
            try:
                cli.main()
                code = 0
            except SystemExit as end:
                code = int(end.code or 0)
        output = capsys.readouterr()
        return code, output.out, output.err

    return call


SAYINGS = (
    "a bee sees a tree",
    "no book keeper knows",
    "see the bee, keep it",
    "The tree is tall!",
)


@pytest.fixture(scope="session")
def transcribed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixteen clips of 1.2 to 2.7 s with text by four speakers, as an audiofolder."""
    folder = tmp_path_factory.mktemp("transcribed") / "said"
    folder.mkdir()
    rows = ["file_name,transcription,speaker"]
    for index in range(16):
        name = f"clip{index:02d}.flac"
        soundfile.write(folder / name, voice(1.2 + 0.1 * index, index), 16_000, "PCM_16")
        rows.append(f'{name},"{SAYINGS[index % 4]}",who{index // 4}')
    (folder / "metadata.csv").write_text("\n".join(rows) + "\n")
    return folder


@pytest.fixture(scope="session")
def letters(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer of the characters that are said in `transcribed`."""
    from distilkit import tokenizers

    folder = tmp_path_factory.mktemp("tokenizers") / "letters"
    folder.mkdir()
    made = tokenizers.train(SAYINGS, config.Tokenizer(), config.Text())
    tokenizers.save(made, folder, False)
    return folder


def fine(*changes: str) -> config.CtcRecipe:
    """The recipe `ctc` made small: a few steps of 6 s, fp32."""
    return config.load_recipe(
        "ctc",
        [
            "train.precision=fp32",
            "train.device=cpu",
            "train.steps=6",
            "train.validate_every=3",
            "train.checkpoint_every=2",
            "train.learning_rate=1e-3",
            "batches.seconds=6",
            "batches.micro_seconds=6",
            "data.valid_fraction=0.25",
            *changes,
        ],
        config.CtcRecipe,
    )


@pytest.fixture(scope="session")
def distilled(speech: Path, teacher_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of distillation and its report."""
    from distilkit import distill

    out = tmp_path_factory.mktemp("report") / "run"
    distill.distill([speech], teacher=str(teacher_folder), out=out, recipe=quick())
    return out


@pytest.fixture(scope="session")
def tuned(
    transcribed: Path, letters: Path, teacher_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A finished run of fine-tuning and its report."""
    from distilkit import ctc

    out = tmp_path_factory.mktemp("report") / "run"
    options = {"tokenizer": letters, "model": str(teacher_folder), "recipe": fine()}
    ctc.finetune([transcribed], **options, out=out)
    return out


@pytest.fixture
def public() -> Iterator[Path]:
    """A folder that every user can reach and write; pytest's own are for their owner alone."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o777)
        yield Path(folder)


@contextmanager
def unprivileged() -> Iterator[None]:
    """Root may read and write everything: be nobody for a while."""
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        if not os.access(sysconfig.get_path("purelib"), os.R_OK, effective_ids=True):
            pytest.skip("another user may not read the packages that are installed")
        yield
    finally:
        if root:
            os.seteuid(0)
