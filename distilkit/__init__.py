"""Distil any HuBERT into a small speech model of your own, from a folder of recordings."""

import logging
import os

# transformers imports torchao where it is installed, which makes torch tell of its own insides.
logging.getLogger("torch.utils._pytree").setLevel(logging.ERROR)
# huggingface_hub would tell the hub with every request which torch runs here, and what started it.
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")  # read when it is imported

__version__ = "0.1.0"
