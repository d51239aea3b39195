"""A Python tracer sees what a purifier computes: AutoAttack's warning of dynamic defences comes from one."""

import contextlib
import sys

import pytest
import torch

from purify_engine.config import ClassifierConfig, GuidanceConfig, PurifierConfig, UNetConfig
from purify_engine.engine import trace_functions
from purify_engine.engine.trace_functions import TRACED, is_python_traced
from purify_engine.models import Classifier, Denoiser, UNet
from purify_engine.purifier import GuidedPurifier

UNET = UNetConfig(image_size=8, in_channels=1, base_channels=8, channel_mult=(1,), num_res_blocks=1, norm_groups=4)
GUIDE = ClassifierConfig(architecture="wide_resnet", depth=10, width=1, in_channels=1, activation="silu", mean=(0.3,), std=(0.4,))
IMAGES = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(1))


def purifier(kind="adversarial", execution="auto"):
    config = PurifierConfig(t_star=100, num_steps=2, guidance=GuidanceConfig(kind=kind, scale=1.0))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return GuidedPurifier(Denoiser(UNet(UNET)), Classifier(GUIDE), config, execution=execution)


@pytest.fixture(autouse=True)
def _untraced(monkeypatch):
    """As without a debugger or a coverage tool, which trace on their own."""
    monkeypatch.setattr(trace_functions, "_TOOLS", ())
    monkeypatch.setattr("purify_engine.engine.purification.is_python_traced", is_python_traced)
    before = sys.gettrace()
    sys.settrace(None)
    yield
    sys.settrace(before)


@contextlib.contextmanager
def traced():
    """The names of the functions that are called, as AutoAttack's check for dynamic defences counts them."""
    names = set()

    def called(frame, event, argument):
        names.add(frame.f_code.co_name)

    sys.settrace(called)
    try:
        yield names
    finally:
        sys.settrace(None)


def seen_by_a_tracer(model):
    """What a tracer sees of a call that would be replayed otherwise."""
    model(IMAGES, draw=0)
    with traced() as names:
        model(IMAGES, draw=0)
    return names


@pytest.mark.parametrize("kind", ["adversarial", "pixel"])
def test_a_tracer_sees_that_a_guided_purifier_is_dynamic(kind):
    assert "grad" in seen_by_a_tracer(purifier(kind))


def test_a_tracer_sees_the_networks_of_an_unguided_purifier_and_no_derivative():
    names = seen_by_a_tracer(purifier("none"))
    assert "forward" in names and "terms" in names
    assert not names & {"grad", "backward", "_make_grads"}


def test_under_a_tracer_a_purifier_runs_its_loop_says_why_and_gives_the_same_images():
    model = purifier()
    replayed = model(IMAGES, draw=0)
    assert model.execution_reason is None
    with traced():
        assert is_python_traced() and model.execution_reason == TRACED
        assert torch.equal(model(IMAGES, draw=0), replayed)
    assert model.execution_reason is None and not is_python_traced()


def test_who_insists_on_graphs_has_them_under_a_tracer_too():
    assert "grad" not in seen_by_a_tracer(purifier(execution="graph"))


class Monitoring:
    """`sys.monitoring` with one registered tool."""

    PROFILER_ID, OPTIMIZER_ID = 2, 5

    def __init__(self, tool):
        self.tool = tool

    def get_tool(self, number):
        return "a tool" if number == self.tool else None


@pytest.mark.parametrize(("tool", "traces"), [(0, True), (1, True), (2, False), (3, True), (5, False), (None, False)])
def test_tools_that_monitor_are_tracers_but_for_profilers(tool, traces, monkeypatch):
    monkeypatch.setattr(trace_functions, "_MONITORING", Monitoring(tool))
    monkeypatch.setattr(trace_functions, "_TOOLS", trace_functions.tools_of(Monitoring(tool)))
    assert is_python_traced() is traces


@pytest.mark.skipif(not hasattr(sys, "monitoring"), reason="Python before 3.12 has no sys.monitoring")
def test_pythons_own_monitoring_is_asked(monkeypatch):
    monkeypatch.setattr(trace_functions, "_TOOLS", (3,))  # a number that debuggers and coverage tools leave free
    before = is_python_traced()
    sys.monitoring.use_tool_id(3, "test")
    try:
        assert not before and is_python_traced()
    finally:
        sys.monitoring.free_tool_id(3)
