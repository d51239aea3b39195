"""Reading and writing weights, one file a published layout. Nothing here ever unpickles."""

from purify_engine.models.checkpoints.safetensors import load_safetensors, save_safetensors

__all__ = ["load_safetensors", "save_safetensors"]
