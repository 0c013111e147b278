"""Make report.png: the top of a distillation's report in a browser.

The run is a real one, on the speech of `terminal.py` with the built-in teacher, unless a finished run is
given. Chromium has to be installed.

python docs/pictures/report.py [RUN]
"""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from terminal import recordings

HERE = Path(__file__).parent
WIDTH, HEIGHT = 1000, 1115  # down to the end of the first curves
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
COMMAND = "distill ./my_audio --teacher tiny --recipe smoke --steps 60 --set train.validate_every=5"


def run(folder: Path) -> Path:
    """A run in a folder."""
    recordings(folder)
    subprocess.run([sys.executable, "-m", "distilkit", *COMMAND.split()], cwd=folder, check=True)
    return folder / "runs" / "my_audio"


def shoot(page: Path, picture: Path) -> None:
    """Write what a browser shows of a page first."""
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        sys.exit("no Chromium here")
    with tempfile.TemporaryDirectory() as profile:
        command = [browser, "--headless", "--disable-gpu", "--disable-background-networking"]
        command += ["--no-sandbox"] if os.geteuid() == 0 else []
        command += [f"--user-data-dir={profile}", f"--window-size={WIDTH},{HEIGHT}"]
        command += ["--hide-scrollbars", f"--screenshot={picture}", page.resolve().as_uri()]
        subprocess.run(command, check=True, capture_output=True)


def main() -> None:
    """Train if need be, and take the picture."""
    with tempfile.TemporaryDirectory() as place:
        made = Path(sys.argv[1]) if len(sys.argv) > 1 else run(Path(place))
        shoot(made / "report.html", HERE / "report.png")


if __name__ == "__main__":
    main()
