"""Put a trained student into the package as the built-in model `tiny`, in fp16; its card stays.

python distilkit/assets/pack.py RUN
"""

import sys

import torch

from distilkit import hub, teachers
from distilkit.files import replacing
from distilkit.students import save


def main(name: str) -> None:
    """Write `assets/tiny`, and say how large it is."""
    target = hub.BUILT_IN["tiny"]
    encoder, _ = teachers.load(name)
    card = target / "README.md"
    text = card.read_text(encoding="utf-8") if card.is_file() else "# tiny\n"
    with replacing(target) as beside:
        save(encoder, beside, text, torch.float16)
    size = sum(path.stat().st_size for path in target.iterdir())
    print(f"{size / 1e6:.2f} MB in {target}")


if __name__ == "__main__":
    main(sys.argv[1])
