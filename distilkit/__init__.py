"""Distil any HuBERT into a small speech model of your own, from a folder of recordings."""

__version__ = "0.1.0"
