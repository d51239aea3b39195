"""diffusers' scheduler_config.json of DDPM and DDIM, read as our noise schedule and as fields of `PurifierConfig`.

Keys of other schedulers, which diffusers carries along from one to the next, are not read.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from purify_engine.config import Prediction, ScheduleConfig, Spacing, ddim_landings, one_of, require, spaced_timesteps
from purify_engine.models.checkpoints.diffusers_unet import completed

KINDS = {"linear": "linear", "scaled_linear": "scaled_linear", "squaredcos_cap_v2": "cosine", "sigmoid": "sigmoid"}
MOST_TIMESTEPS = 100_000  # a number of a file decides how much memory the schedule takes
PREDICTIONS = {"epsilon": "eps", "sample": "x0", "v_prediction": "v"}
# DDPM's variances by their names; their _log is the same number by another way, but for fixed_large_log, which is not a number.
SAMPLERS = {
    "fixed_small": "ddpm", "fixed_small_log": "ddpm", "fixed_large": "ddpm_large", "learned_range": "ddpm_learned"
}  # fmt: skip
READ: Mapping[str, Any] = {  # what the schedulers take where their scheduler_config.json is silent
    "num_train_timesteps": 1000,
    "beta_start": 1e-4,
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "trained_betas": None,
    "variance_type": "fixed_small",
    "clip_sample": True,
    "clip_sample_range": 1.0,
    "prediction_type": "epsilon",
    "thresholding": False,
    "timestep_spacing": "leading",
    "steps_offset": 0,
    "set_alpha_to_one": True,
    "rescale_betas_zero_snr": False,
}


@dataclass(frozen=True)
class Scheduler:
    """A DDPMScheduler or DDIMScheduler, by its configuration."""

    is_ddim: bool
    schedule: ScheduleConfig  # the noise that the network was trained on
    prediction: Prediction  # what the network puts out, as `UNetConfig.prediction` says it
    said: Mapping[str, Any]  # every key of READ

    def __post_init__(self) -> None:
        one_of("timestep_spacing", self.said["timestep_spacing"], Spacing)
        self._sampler(), self._clip_x0()  # refuse what they must before anyone waits for weights

    def sampling(self, num_steps: int | None = None, t_star: int | None = None) -> dict[str, Any]:
        """Fields of `PurifierConfig` that sample as this scheduler does: its sampler, variance, clipping, timesteps.

        num_steps: as `set_timesteps` is told, over all T; None: every timestep. t_star: start inside that list, at its first
        timestep below t_star; None: at its beginning, unless every timestep is walked, which leaves t_star open. DDIM's eta is an
        argument of diffusers' step: 0 here unless it is set beside these fields. ValueError where we cannot do what is said.
        """
        fields: dict[str, Any] = {"schedule": self.schedule, "sampler": self._sampler(), "clip_x0": self._clip_x0()}
        stops, landings = self._walk(num_steps)
        if not self._is_every_step(stops, landings):
            kept = [place for place, stop in enumerate(stops) if t_star is None or stop < t_star]
            require(bool(kept), "t_star", f"above {stops[-1]}, the last timestep of {len(stops)}", t_star)
            fields["timesteps"] = tuple(stops[place] for place in kept)
            if self.is_ddim:
                fields["landings"] = tuple(landings[place] for place in kept)
            fields["t_star"] = fields["timesteps"][0] + 1
            fields |= self._last_noise(fields["sampler"], stops[-1])
        elif t_star is not None:
            fields["t_star"] = t_star
        return fields

    def _walk(self, num_steps: int | None) -> tuple[tuple[int, ...], tuple[int, ...]]:
        said, total = self.said, self.said["num_train_timesteps"]
        offset = said["steps_offset"] if said["timestep_spacing"] == "leading" and num_steps is not None else 0
        num_steps = total if num_steps is None else num_steps
        stops = spaced_timesteps(num_steps, said["timestep_spacing"], steps_offset=offset, num_timesteps=total)
        if not self.is_ddim:
            return stops, (*stops[1:], -1)
        landings = ddim_landings(stops, num_steps, num_timesteps=total, set_alpha_to_one=said["set_alpha_to_one"])
        if landings[-1] == stops[-1]:  # at timestep 0, where set_alpha_to_one=False would have it stay: no step, but for clipping
            clip = said["clip_sample"]
            require(not clip, "set_alpha_to_one", "True, or clip_sample False, where the last timestep is 0", False)
            return stops[:-1], landings[:-1]
        return stops, landings

    def _is_every_step(self, stops: tuple[int, ...], landings: tuple[int, ...]) -> bool:
        total = self.said["num_train_timesteps"]
        return stops == tuple(range(total - 1, -1, -1)) and landings == tuple(stop - 1 for stop in stops)

    def _sampler(self) -> str:
        return "ddim" if self.is_ddim else _translated(self.said, "variance_type", SAMPLERS)

    def _clip_x0(self) -> str:
        if not self.said["clip_sample"]:
            return "never"
        most = self.said["clip_sample_range"]
        require(most == 1, "clip_sample_range", "1, where clip_sample is True", most)
        return "x0_only" if self.is_ddim else "consistent"

    def _last_noise(self, sampler: str, last: int) -> dict[str, bool]:
        """diffusers' DDPM draws noise wherever it starts from above timestep 0, in the last step, too."""
        ok = last == 0 or sampler != "ddpm_learned"
        spacing = self.said["timestep_spacing"]
        require(ok, "timestep_spacing", "one that ends at timestep 0, where variance_type is learned_range", spacing)
        return {"last_noise": True} if last > 0 and sampler == "ddpm_large" else {}


def read_scheduler(said: Mapping[str, Any]) -> Scheduler:
    """What a scheduler_config.json says, or the `.config` of a scheduler with its class as `_class_name`.

    ValueError, in one line, naming the key and its value, where we cannot sample so.
    """
    require(isinstance(said, Mapping), "scheduler_config.json", "an object of settings", said)
    name = said.get("_class_name")
    require(name in ("DDPMScheduler", "DDIMScheduler"), "_class_name", "DDPMScheduler or DDIMScheduler", name)
    told = completed(said, READ)
    for key, only in (("trained_betas", None), ("thresholding", False), ("rescale_betas_zero_snr", False)):
        require(told[key] == only, key, repr(only), _short(told[key]))
    return Scheduler(name == "DDIMScheduler", _schedule(told), _translated(told, "prediction_type", PREDICTIONS), told)


def _schedule(told: Mapping[str, Any]) -> ScheduleConfig:
    kind, total = _translated(told, "beta_schedule", KINDS), told["num_train_timesteps"]
    require(1 <= total <= MOST_TIMESTEPS, "num_train_timesteps", f"1 to {MOST_TIMESTEPS}", total)
    if kind == "cosine":
        return ScheduleConfig(kind=kind, num_timesteps=total)
    return ScheduleConfig(kind=kind, num_timesteps=total, beta_start=told["beta_start"], beta_end=told["beta_end"])


def _translated(said: Mapping[str, Any], key: str, known: Mapping[str, str]) -> Any:
    require(said[key] in tuple(known), key, f"one of {', '.join(known)}", said[key])
    return known[said[key]]


def _short(value: Any) -> Any:
    return value[:3] if isinstance(value, list) else value
