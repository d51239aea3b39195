"""The networks: the U-Net that denoises, the classifiers and guides, and their weights on disk."""

from purify_engine.models.checkpoints import load_safetensors, save_safetensors
from purify_engine.models.checkpoints.diffusers_folder import from_diffusers
from purify_engine.models.classifiers import Classifier
from purify_engine.models.denoiser import Denoiser
from purify_engine.models.own import OwnDenoiser, OwnGuide
from purify_engine.models.unet import UNet

__all__ = ["Classifier", "Denoiser", "OwnDenoiser", "OwnGuide", "UNet", "from_diffusers", "load_safetensors", "save_safetensors"]
