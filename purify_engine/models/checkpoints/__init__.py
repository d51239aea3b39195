"""Reading and writing weights, one file a published layout. Nothing here ever unpickles."""

from purify_engine.models.checkpoints.safetensors import built_from_safetensors, load_safetensors, save_safetensors

__all__ = ["built_from_safetensors", "load_safetensors", "save_safetensors"]
