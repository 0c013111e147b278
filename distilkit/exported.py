"""Exported models: a folder with `model.onnx`, checked and run without torch.

Letters in names: B clips in a batch, S samples, T frames, L layers, D width, K tokens.
"""

import os
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from distilkit import config
from distilkit.audio import SAMPLE_RATE, Samples, frames
from distilkit.errors import DistilkitError, enclosed
from distilkit.files import digest, read_object
from distilkit.hub import EXPORTED
from distilkit.listeners import Frames, LogProbs
from distilkit.tokenizers import DELIMITER, SPACE, Tokenizer
from distilkit.wording import first_line

MODEL = "model.onnx"
FORMAT = 1
LOGPROBS = "logprobs"  # a recogniser's output; those of layers are `layer_0` and so on
WAVE = "wave"  # the input, (B, S)
INSTALL = "pip install 'distilkit[export]'"
MOST_LAYERS = 1000
FIRST, SECOND = 10, 35  # frames of `known_sound`
NEAR = 0.9  # the least cosine of what sets them apart
CHOICE = "DISTILKIT_RUNTIME"  # an environment variable that names one of RUNTIMES
COUNTING = "ORT_DISABLE_TELEMETRY"  # one of onnxruntime's: with it, it does not count its use for its maker

FLAGS = (
    "avx2",
    "avx512_vnni",
    "avx512_bf16",
    "amx_bf16",
    "bf16",
)  # of processors, that speed depends on

Waves = npt.NDArray[np.float32]  # (B, S)
Given = npt.NDArray[np.float32]  # (B, T, D) or (B, T, K)
Run = Callable[[Waves, Sequence[str]], list[Given]]


@dataclass(frozen=True, kw_only=True)
class Runtime:
    """Something that runs ONNX files on a processor."""

    package: str
    load: Callable[[Path], Run]
    low: bool = False  # whether it computes in less than fp32


@dataclass(frozen=True, kw_only=True)
class Exported:
    """An exported model, ready to run: gives hidden states, and text where it is a recogniser."""

    folder: Path
    facts: dict[str, Any]  # of export.json
    runtime: str  # key of RUNTIMES
    run: Run
    notes: tuple[str, ...] = ()  # what the user should read about it

    @property
    def depth(self) -> int:
        """Transformer layers."""
        return int(self.facts["layers"])

    @property
    def width(self) -> int:
        """Size of a frame's vector, D."""
        return int(self.facts["width"])

    @property
    def digest(self) -> str:
        """That of the file."""
        return str(self.facts["sha256"])

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """Of a recogniser's head."""
        stock = Tokens(self.facts["tokens"], int(self.facts["blank"]))
        return Tokenizer(stock=stock, text=config.Text.model_validate(self.facts["text"]))

    def to(self, device: str) -> "Exported":
        """The same: an exported model runs on the processor."""
        return self

    def states(self, clips: Sequence[Samples], layers: Sequence[int]) -> list[Frames]:
        """Chosen layers of whole clips, (L, T, D) each, one clip at a time."""
        names = [f"layer_{layer}" for layer in layers]
        return [np.concatenate(self._ask(clip, names, self.width)) for clip in clips]

    def logprobs(self, clips: Sequence[Samples]) -> list[LogProbs]:
        """Logarithms of the tokens' probabilities, (T, K) for each clip, one clip at a time."""
        tokens = len(self.facts["tokens"])
        return [self._ask(clip, [LOGPROBS], tokens)[0][0] for clip in clips]

    def is_known(self) -> bool:
        """Whether it gives here what the model itself gave where it was exported.

        A runtime may go wrong on one processor and not on another.
        """
        wanted = np.asarray(self.facts["known"], np.float32)
        if not len(wanted):
            return True
        (states,) = self.states([known_sound()], [self.depth])
        found = contrast(states)
        return bool(found @ wanted >= NEAR * np.linalg.norm(found) * np.linalg.norm(wanted))

    def _ask(self, clip: Samples, names: Sequence[str], width: int) -> list[Given]:
        """What the file computes of a clip, (1, T, D) each.

        Raises:
            DistilkitError: it computes nothing, or something else than export.json says.
        """
        try:
            found = self.run(_one(clip), names)
        except Exception as error:  # the runtimes raise what they like
            said = first_line(error)
            raise DistilkitError(
                f"{self.runtime} cannot run `{self.folder / MODEL}`: {said}",
                _again(self.facts, self.folder),
            ) from error
        if not all(np.isfinite(given).all() for given in found):
            raise DistilkitError(
                f"what `{self.folder / MODEL}` computes is not finite numbers (NaN or inf)",
                _again(self.facts, self.folder),
            )
        shapes = {name: given.shape for name, given in zip(names, found, strict=True)}
        for name, shape in shapes.items():
            if shape != (1, frames(len(clip)), width):
                raise DistilkitError(
                    f"`{self.folder / MODEL}` gives `{name}` as {shape}, and {EXPORTED} says "
                    f"{(1, frames(len(clip)), width)}",
                    _again(self.facts, self.folder),
                )
        return found


def contrast(states: Frames) -> npt.NDArray[np.float32]:
    """What sets two frames of a layer apart, (D,): what all frames share does not count.

    Args:
        states: one layer of `known_sound`, (1, T, D).
    """
    return np.asarray(states[0, FIRST] - states[0, SECOND], np.float32)


def known_sound() -> Samples:
    """A second that is the same everywhere: a tone that rises from 100 to 4,100 Hz."""
    seconds = np.arange(SAMPLE_RATE) / SAMPLE_RATE
    return np.asarray(0.1 * np.sin(2 * np.pi * (100 * seconds + 2000 * seconds**2)), np.float32)


def _one(clip: Samples) -> npt.NDArray[np.float32]:
    return np.ascontiguousarray(clip, np.float32)[None]


class Tokens:
    """What `Tokenizer` asks of transformers' tokenizers, which would import torch."""

    def __init__(self, names: Sequence[str], blank: int) -> None:
        self.names, self.pad_token_id = list(names), blank
        self.all_special_tokens = [
            name for name in names if name.startswith(("<", "[")) and name.endswith((">", "]"))
        ]

    def __len__(self) -> int:
        """How many there are."""
        return len(self.names)

    def convert_ids_to_tokens(self, ids: Iterable[int]) -> list[str]:
        """Tokens by their ids."""
        return [self.names[token] for token in ids]

    def decode(self, ids: Sequence[int], group_tokens: bool = True, **_: object) -> str:
        """Text of tokens; with `group_tokens` those of frames, where repeats are one and blanks none."""
        kept = [
            token
            for place, token in enumerate(ids)
            if token != self.pad_token_id
            and not (group_tokens and place and token == ids[place - 1])
        ]
        text = "".join(self.names[token] for token in kept)
        return text.replace(DELIMITER if DELIMITER in self.names else SPACE, " ").strip()


# --------------------------------------------------------------------------------------- loading


class _Origin(BaseModel):
    """The model that an export was made of."""

    model_config = ConfigDict(extra="allow")
    name: str


class _Facts(BaseModel):
    """What export.json has to say."""

    model_config = ConfigDict(strict=True, extra="ignore")
    format: Literal[1]  # FORMAT
    kind: Literal["encoder", "recogniser"]
    made_by: str
    precision: config.ExportPrecision
    sha256: str
    bytes: int
    parameters: int
    layers: Annotated[int, Field(ge=1, le=MOST_LAYERS)]
    width: Annotated[int, Field(ge=1)]
    source: _Origin
    milliseconds: dict[str, float] = {}
    known: list[float] = []  # `contrast` as the model itself has it; older exports do not say

    @model_validator(mode="after")
    def _known_is_a_vector(self) -> Self:
        if self.known and len(self.known) != self.width:
            raise ValueError(f"`known` has {len(self.known)} numbers, not {self.width}")
        return self


class _RecogniserFacts(_Facts):
    """What it has to say of a recogniser too."""

    tokens: Annotated[list[str], Field(min_length=1)]
    blank: Annotated[int, Field(ge=0)]
    text: config.Text

    @model_validator(mode="after")
    def _blank_is_a_token(self) -> Self:
        if self.blank >= len(self.tokens):
            raise ValueError(f"there is no token {self.blank}")
        return self


def load(name: str, path: Path, *, recogniser: bool = False, runtime: str = "") -> Exported:
    """Check an exported model and make it ready.

    Args:
        name: what the user calls it.
        path: its folder.
        recogniser: whether it has to be one.
        runtime: key of RUNTIMES; empty for the fastest of those that are installed and right here.

    Raises:
        DistilkitError: no recogniser where one is wanted; a damaged folder, or a model file that is not
            the one that was exported; no runtime, or none that gives what the model gave.
    """
    facts = read(path)
    if recogniser and facts["kind"] != "recogniser":
        raise DistilkitError(
            f"`{name}` is no recogniser: it is an exported encoder",
            "distilkit export RECOGNISER --out DIR",
        )
    file = path / MODEL
    if not file.is_file():
        raise DistilkitError(f"`{path}` has no {MODEL}", _again(facts, path))
    if digest(file) != facts["sha256"]:
        raise DistilkitError(
            f"`{file}` is not the file that was exported: damaged, or another one in its place",
            _again(facts, path),
        )
    notes: list[str] = []
    names = [runtime] if runtime else _order(facts)
    for chosen in names:
        made = Exported(
            folder=path, facts=facts, runtime=chosen, run=_run(name, chosen, file), notes=(*notes,)
        )
        if made.is_known():
            return made
        notes.append(f"{chosen} is not used: on this processor it gives something else")
    raise DistilkitError(
        f"`{name}` gives something else here than when it was exported, with {' and '.join(names)}",
        f"{CHOICE}={DEVICE}, or {_again(facts, path)}",
    )


def _run(name: str, runtime: str, file: Path) -> Run:
    """A file, ready to be run.

    Raises:
        DistilkitError: the runtime is missing, or cannot load it.
    """
    try:
        return RUNTIMES[runtime].load(file)
    except ImportError as error:
        raise DistilkitError(
            f"`{name}` is an exported model, and {RUNTIMES[runtime].package} is missing", INSTALL
        ) from error
    except DistilkitError:
        raise
    except Exception as error:  # the runtimes raise what they like
        said = first_line(error)
        raise DistilkitError(f"{runtime} cannot load `{file}`: {said}", INSTALL) from error


def read(path: Path) -> dict[str, Any]:
    """What an exported folder says of itself.

    Raises:
        DistilkitError: it says nothing that can be read, is of a later version, or a link leads out of it.
    """
    hint = "export the model again"
    if path.is_dir():
        enclosed(path)  # who has the folder from elsewhere may not have come by `locate`
    facts = read_object(path / EXPORTED, hint)
    if isinstance(facts.get("format"), int) and facts["format"] > FORMAT:
        raise DistilkitError(
            f"`{path}` was exported by a later distilkit, {facts.get('made_by')}",
            "pip install --upgrade distilkit",
        )
    try:
        kind = _RecogniserFacts if facts.get("kind") == "recogniser" else _Facts
        told = kind.model_validate(facts)
    except ValidationError as error:
        wrong = error.errors()[0]
        lost = ", ".join(str(x["loc"][0]) for x in error.errors() if x["type"] == "missing")
        said = f"`{'.'.join(map(str, wrong['loc']))}`: {wrong['msg'].lower()}"
        problem = f"it does not say {lost}" if lost else said
        raise DistilkitError(f"`{path / EXPORTED}` is damaged: {problem}", hint) from error
    return facts | told.model_dump()


def _again(facts: dict[str, Any], path: Path) -> str:
    flag = "" if facts["precision"] == "fp32" else f" --{facts['precision']}"
    return f"distilkit export {facts['source']['name']} --out {path.name}-again{flag}"


# -------------------------------------------------------------------------------------- runtimes


def installed() -> list[str]:
    """Keys of RUNTIMES whose packages are there."""
    return [name for name, runtime in RUNTIMES.items() if find_spec(runtime.package)]


def _order(facts: dict[str, Any]) -> list[str]:
    """The runtime that was asked for, else those that were verified and are installed, the fastest first.

    Which is fastest is known on the processor that the model was exported on; on others it is the first of
    RUNTIMES.
    """
    if asked := os.environ.get(CHOICE):
        if asked not in RUNTIMES:
            raise DistilkitError(
                f"`{CHOICE}={asked}`: no such runtime",
                " or ".join(f"{CHOICE}={x}" for x in RUNTIMES),
            )
        return [asked]
    timed = facts.get("milliseconds", {})
    there = [name for name in installed() if name in timed]
    if facts.get("processor") == processor():
        there.sort(key=timed.__getitem__)
    return there or [DEVICE]


def processor() -> str:
    """What this machine computes with, as its system says it; what runs fastest differs between them."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        import platform

        return platform.processor() or platform.machine()
    told = dict(line.split(":", 1) for line in lines if ":" in line)
    said = {key.strip(): value.strip() for key, value in told.items()}
    flags = said.get("flags", said.get("Features", "")).split()
    name = said.get("model name", said.get("CPU part", ""))
    return " ".join([name, *(flag for flag in FLAGS if flag in flags)])


def threads() -> int:
    """As many as `OMP_NUM_THREADS` says; 0 leaves it to the runtime."""
    asked = os.environ.get("OMP_NUM_THREADS", "")
    return int(asked) if asked.isdecimal() else 0


def bf16_is_fast() -> bool:
    """Whether OpenVINO is installed and finds bf16 instructions in this processor."""
    if find_spec("openvino") is None:
        return False
    return "BF16" in _core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def _core() -> Any:
    """What OpenVINO begins with.

    Its telemetry would tell its maker of every import, and number the machine in the home folder; with the
    module set to None its import fails, and a stand-in that openvino brings does nothing.
    """
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    import openvino

    return openvino.Core()


def _openvino(file: Path, arithmetic: str = "f32") -> Run:
    """OpenVINO on the processor."""
    core = _core()
    settings: dict[str, Any] = {
        "INFERENCE_PRECISION_HINT": arithmetic,
        "PERFORMANCE_HINT": "LATENCY",
        **({"INFERENCE_NUM_THREADS": threads()} if threads() else {}),
    }
    compiled = core.compile_model(core.read_model(file), "CPU", settings)
    places = {output.get_any_name(): place for place, output in enumerate(compiled.outputs)}
    request = compiled.create_infer_request()

    def run(wave_BS: Waves, names: Sequence[str]) -> list[Given]:
        request.infer({0: wave_BS})
        return [np.array(request.get_output_tensor(places[name]).data) for name in names]

    return run


def _onnxruntime(file: Path) -> Run:
    """onnxruntime on the processor."""
    os.environ.setdefault(COUNTING, "1")  # read when it is imported
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.enable_mem_pattern = False  # clips have many lengths
    settings.intra_op_num_threads = threads()
    settings.log_severity_level = 3
    session = onnxruntime.InferenceSession(file, settings, providers=["CPUExecutionProvider"])

    def run(wave_BS: Waves, names: Sequence[str]) -> list[Given]:
        given: list[Given] = session.run(list(names), {WAVE: wave_BS})
        return given

    return run


DEVICE = "onnxruntime"  # what the folder's own script runs it with
RUNTIMES = {
    "openvino-bf16": Runtime(
        package="openvino", load=partial(_openvino, arithmetic="bf16"), low=True
    ),
    "openvino": Runtime(package="openvino", load=_openvino),
    DEVICE: Runtime(package="onnxruntime", load=_onnxruntime),
}  # those that were faster where we measured first
