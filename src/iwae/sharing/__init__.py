"""Trained models for others: a folder that says what it is, and the Hugging Face hub."""

from iwae.sharing.export import export_run
from iwae.sharing.hub import from_pretrained, push_to_hub

__all__ = ["export_run", "from_pretrained", "push_to_hub"]
