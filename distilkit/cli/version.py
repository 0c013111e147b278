"""`distilkit --version`: distilkit and what it stands on, as installed."""

from distilkit import __version__

PACKAGES = (
    "torch",
    "torchaudio",
    "transformers",
    "accelerate",
    "peft",
    "lhotse",
    "soundfile",
    "av",
    "huggingface_hub",
    "numpy",
    "onnx",
    "onnxruntime",
    "openvino",
    "executorch",
)


def versions() -> dict[str, str]:
    """Name and version of distilkit, Python and those packages that are there; imports none of them."""
    import importlib.metadata
    import platform

    found = {"distilkit": __version__, "python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
