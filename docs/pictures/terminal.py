"""Make terminal.svg: a distillation in a terminal, as it looks while it runs.

It runs for real, in tmux, which has to be installed, on a few minutes of the built-in speech with the
built-in teacher.

python docs/pictures/terminal.py
"""

import io
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.text import Text

from distilkit import demo

HERE = Path(__file__).parent
WIDTH, HEIGHT = 116, 30
VOICES = 24  # folders of the built-in speech
SHOWN = "step 24/30"  # when the picture is taken
COMMAND = "distilkit distill ./my_audio --teacher tiny --recipe smoke --steps 30"
# rich's own form, without the fonts that it would fetch from a network
FORM = """\
<svg class="rich-terminal" viewBox="0 0 {width} {height}" xmlns="http://www.w3.org/2000/svg">
<style>
.{unique_id}-matrix {{ font-family: ui-monospace, Menlo, Consolas, "DejaVu Sans Mono", monospace;
  font-size: {char_height}px; line-height: {line_height}px; font-variant-east-asian: full-width; }}
.{unique_id}-title {{ font-size: 18px; font-weight: bold; font-family: sans-serif; }}
{styles}
</style>
<defs>
<clipPath id="{unique_id}-clip-terminal">
<rect x="0" y="0" width="{terminal_width}" height="{terminal_height}" />
</clipPath>
{lines}
</defs>
{chrome}
<g transform="translate({terminal_x}, {terminal_y})" clip-path="url(#{unique_id}-clip-terminal)">
{backgrounds}
<g class="{unique_id}-matrix">
{matrix}
</g>
</g>
</svg>
"""


def recordings(folder: Path) -> None:
    """Lay a few minutes of the built-in speech into `my_audio`, and a file that is no audio."""
    for voice in sorted(path for path in demo.SPEECH.iterdir() if path.is_dir())[:VOICES]:
        shutil.copytree(voice, folder / "my_audio" / voice.name)
    (folder / "my_audio" / "notes.txt").write_text("who is who\n")


def tmux(*words: str) -> str:
    """What a tmux of our own answers."""
    command = ["tmux", "-L", "distilkit-pictures", *words]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def screen(folder: Path) -> str:
    """The terminal with its colours, once the step has come that is to be shown."""
    python = Path(sys.executable).parent
    typed = f"cd {shlex.quote(str(folder))}; PATH={shlex.quote(str(python))}:$PATH; {COMMAND}; sleep 600"
    tmux("new-session", "-d", "-x", str(WIDTH), "-y", str(HEIGHT), typed)
    try:
        while True:
            time.sleep(0.2)
            seen = tmux("capture-pane", "-p")
            if SHOWN in seen:
                return tmux("capture-pane", "-p", "-e")
            if "done in" in seen or "error:" in seen:
                sys.exit(f"no `{SHOWN}` was seen\n\n{seen}")
    finally:
        tmux("kill-session")


def main() -> None:
    """Run, take the screen, write the picture."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        recordings(folder)
        seen = screen(folder)
    console = Console(width=WIDTH, record=True, file=io.StringIO(), force_terminal=True)
    console.print(Text.from_ansi(f"$ {COMMAND}\n{seen.rstrip()}"))
    svg = console.export_svg(title="", code_format=FORM, unique_id="terminal")
    (HERE / "terminal.svg").write_text(svg, encoding="utf-8")


if __name__ == "__main__":
    main()
