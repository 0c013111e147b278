"""An installed wheel holds what a checkout has: recipes, built-in speech, commands."""

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.slow
def test_everything_works_from_a_wheel_in_any_folder(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pip", "wheel", str(ROOT), "--no-deps", "--no-build-isolation"]
    subprocess.run([*command, "--quiet", "--wheel-dir", str(tmp_path)], check=True)
    (wheel,) = tmp_path.glob("distilkit-*.whl")
    site, elsewhere = tmp_path / "site", tmp_path / "elsewhere"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
        names = archive.namelist()
    elsewhere.mkdir()
    assert {"distilkit/recipes/paper.toml", "distilkit/assets/speech/metadata.csv"} <= set(names)
    assert not [name for name in names if name.startswith(("tests/", "docs/", "recipes/"))]
    assert not [name for name in names if "assets" in name and name.endswith(".py")]
    assert wheel.stat().st_size < 12_500_000  # the teacher 7.5 MB, speech 4.9 MB, compressed
    environment = {**os.environ, "PYTHONPATH": str(site), "OMP_NUM_THREADS": "1"}

    def run(*arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, *arguments],
            cwd=elsewhere,
            env=environment,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert run("-c", "import distilkit; print(distilkit.__file__)").startswith(str(site))
    assert run("-m", "distilkit", "recipes", "show", "paper").startswith("# What:")
    made = json.loads(run("-m", "distilkit", "demo", "--steps", "1", "--json"))
    assert (elsewhere / made["student"] / "model.safetensors").is_file()
    assert (elsewhere / made["embedding"]).is_file()
