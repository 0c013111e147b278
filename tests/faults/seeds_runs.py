"""State that distilkit goes on from, made once: runs, journals and copies in the midst of it, and finished runs."""

import gzip
import os
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import chdir, redirect_stderr, redirect_stdout, suppress
from dataclasses import replace
from functools import partial
from io import StringIO
from pathlib import Path
from typing import Any

import conftest
import soundfile
from mutate import Seed
from test_recognisers import made

from distilkit import (
    cli,
    ctc,
    data,
    distill,
    files,
    models,
    recognisers,
    runs,
    teachers,
    tokenizers,
    transcribe,
    units,
)
from distilkit import embed as embedding
from distilkit.config import CtcRecipe, Data, Recipe, Text, Tokenizer
from distilkit.encoder import Encoder, exact
from distilkit.report import measure
from distilkit.runs import Run
from distilkit.students import save

STOPPED = 4  # the optimizer step after which runs are stopped, of 6; checkpoints are of 2 and 4
CLIPS = 6
LAYERS = 4  # of the teacher
TRAIN = ["batches.seconds=3", "batches.micro_seconds=3", "train.memory_gib=4"]


def seeds(folder: Path) -> list[Seed]:
    """State of every kind: stopped in the midst of it, or finished."""
    measure.CLIP_SECONDS, measure.ROUNDS = 1.0, 1  # type: ignore[misc]  # of reports, quick
    units.MICRO_SECONDS = 3.0  # type: ignore[misc]  # several batches
    os.environ["DISTILKIT_CACHE"] = "cache"  # in the folder where a case runs
    with redirect_stdout(StringIO()), redirect_stderr(StringIO()):
        return _seeds(folder)


def _seeds(folder: Path) -> list[Seed]:
    given, found = folder / "given", list[Seed]()
    _given(given)

    def add(name: str, reader: str, make: Callable[[], object], **facts: Any) -> Seed:
        inner = folder / f"{len(found):02d}"
        inner.mkdir()
        with chdir(inner):
            make()
        _here(inner)
        found.append(
            Seed(name=name, folder=inner, reader=reader, facts={"given": str(given), **facts})
        )
        return found[-1]

    runs_of = {
        "distill": lambda: _distil(given, "targets.store=none"),
        "distill, fp16": lambda: _distil(given, "targets.store=fp16"),
        "distill, int8": lambda: _distil(given, "targets.store=int8"),
        "distill, units": lambda: _distil(
            given, "objective.name=units", "objective.layers=[2]", "objective.clusters=4"
        ),
        "finetune-ctc": lambda: _tune(given),
        "finetune-ctc, LoRA": lambda: _tune(given, "lora.rank=2", merge=True),
    }
    for name, make in runs_of.items():
        by = name.partition(",")[0]
        place = len(found)
        seed = add(name, "resumed", make, command=by)
        ended = folder / f"{place:02d}-ended"
        shutil.copytree(seed.folder, ended)
        with chdir(ended):
            assert command(by, "--resume", "--out", "run") == 0
            facts = seed.facts | {"digest": weights(Run(Path("run")))}
        found[place] = replace(seed, facts=facts)
        if name in ("distill", "distill, fp16", "finetune-ctc", "finetune-ctc, LoRA"):
            again = partial(shutil.copytree, ended, ".", dirs_exist_ok=True)
            add(f"{name}, finished", "looked at", again, command=by)
    for form in ("npy", "npz", "safetensors"):
        add(f"embed, {form}", "embedded", partial(_embed, given, form), format=form)
    add("transcribe", "transcribed", lambda: _transcribe(given))
    add("units", "units", lambda: _units(given))
    copies = {clip.id: clip.digest for clip in clips(found[0].folder, given)}
    add("decoded copies", "copies", lambda: clips(Path(), given), digests=copies)
    return found


def _given(given: Path) -> None:
    """What no campaign damages: a teacher, a recogniser, recordings."""
    for index in range(CLIPS):
        rate, name = ((16_000, "a/{}.wav"), (22_050, "b/{}.flac"))[index % 2]
        path = given / "speech" / name.format(index)
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, conftest.voice(0.7 + 0.2 * index, index, rate), rate, "PCM_16")
    rows = ["file_name,transcription,speaker"]
    (given / "said").mkdir()
    for index in range(8):
        wave = conftest.voice(1.2 + 0.1 * index, index)
        soundfile.write(given / "said" / f"{index}.flac", wave, 16_000, "PCM_16")
        rows.append(f'{index}.flac,"{conftest.SAYINGS[index % 4]}",who{index // 4}')
    (given / "said" / "metadata.csv").write_text("\n".join(rows) + "\n")
    model = exact(conftest.make_model(num_hidden_layers=LAYERS))
    save(Encoder(model=model, normalise=False), given / "teacher", "#\n")
    tokens = tokenizers.train(conftest.SAYINGS, Tokenizer(), Text())
    tokenizers.save(tokens, given / "letters")
    recognisers.save(made(given / "teacher", given / "letters"), given / "hears", "#\n")


def _here(inner: Path) -> None:
    """The decoded copies that a run names are those of the folder where a case runs."""
    for path in inner.rglob("audio.jsonl.gz"):
        plain = gzip.decompress(path.read_bytes()).replace(f"{inner}/".encode(), b"")
        path.write_bytes(gzip.compress(plain, mtime=0))


def _distil(given: Path, *changes: str) -> None:
    recipe = conftest.quick("objective.layers=[2,4]", "student.layers=1", *TRAIN, *changes)
    assert isinstance(recipe, Recipe)
    asked = {"teacher": str(given / "teacher"), "out": Path("run"), "recipe": recipe}
    job = distill.prepare([given / "speech"], **asked)
    _stop(lambda stop: distill.train(job, stop), job.run)


def _tune(given: Path, *changes: str, merge: bool = False) -> None:
    recipe = conftest.fine(*TRAIN, *changes)
    assert isinstance(recipe, CtcRecipe)
    asked = {"model": str(given / "teacher"), "tokenizer": given / "letters", "recipe": recipe}
    job = ctc.prepare([given / "said"], **asked, out=Path("run"), merge=merge)
    _stop(lambda stop: ctc.train(job, stop), job.run)


def _stop(train: Callable[[Callable[[], bool]], Iterable[Any]], run: Run) -> None:
    done = list[int]()
    for step in train(lambda: len(done) + 1 >= STOPPED):
        done.append(step.number)
    assert run.done == STOPPED
    assert len(list((run.folder / "checkpoints").iterdir())) == 2


class Stopped(Exception):
    """Raised in the midst of work, as a kill would end it."""


def _until(count: int) -> Callable[..., Iterator[Any]]:
    """Progress that ends everything after so many things."""

    def track(items: Iterable[Any], *, description: str, total: int) -> Iterator[Any]:
        for number, item in enumerate(items):
            if number == count and description in ("embedding", "units"):
                raise Stopped
            yield item

    return track


def _embed(given: Path, form: str) -> None:
    opened = models.encoder(str(given / "teacher"))
    with suppress(Stopped):
        embedding.embed(
            [given / "speech"],
            opened.listener,
            out=Path("vectors" if form == "npy" else f"vectors.{form}"),
            format=form,  # type: ignore[arg-type]
            name=str(Path(opened.source).resolve()),
            track=_until(3),
        )


def _units(given: Path) -> None:
    encoder, checkpoint = teachers.load(str(given / "teacher"))
    called = (str(given / "teacher"), checkpoint.source)
    with suppress(Stopped):
        units.units(
            [given / "speech"], Path("units"), model=encoder, called=called, clusters=4, track=_until(2)
        )  # fmt: skip
    assert Path(".units.parts/units/part-0.jsonl").is_file()


def _transcribe(given: Path) -> None:
    opened = models.recogniser(str(given / "hears"))
    found = list(data.find([given / "speech"]))
    place = transcribe.targets(Path("texts"), "json", True)
    depend = transcribe.settings(opened.source, None, None, "json", False)
    begun = transcribe.Begun(Path("texts"), depend, found)
    for number, item in enumerate(transcribe.transcribe([given / "speech"], opened.listener)):
        assert isinstance(item, transcribe.Transcript)
        if number == 3:
            break
        begun.write(item, place(item.file), "json")


def clips(where: Path, given: Path) -> list[data.Clip]:
    with chdir(where):
        clips, skipped = data.survey([given / "speech"], Data())
    assert not skipped
    return clips


def command(*words: str) -> int:
    """A command as it is typed; what goes wrong with it is raised, as it would be shown."""
    sys.argv = ["distilkit", *words]
    try:
        return int(cli.app(prog_name="distilkit", standalone_mode=False) or 0)
    except Exception as error:
        if (told := cli._of_the_machine(error)) is not None:
            raise told from error
        raise


def weights(run: Run) -> dict[str, str]:
    """Of every file of weights that came out."""
    found = [folder for name in runs.RESULTS if (folder := run.folder / name).is_dir()]
    return {
        str(path): files.digest(path)
        for folder in found
        for path in sorted(folder.glob("*.safetensors"))
    }
