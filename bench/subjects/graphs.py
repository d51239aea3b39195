"""Calls as a CUDA graph: what is timed without the host's launches."""

from __future__ import annotations

from collections.abc import Callable

import torch


def captured(calls: list[Callable[[], object]]) -> Callable[[], None]:
    """The calls, one after the other, as a CUDA graph. (`torch.cuda.graph` collects garbage first: longer than all else here.)"""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.stream(torch.cuda.Stream()):
        torch.cuda.synchronize()
        calls[0]()
        torch.cuda.synchronize()
        graph.capture_begin()
        try:
            for call in calls:
                call()
        finally:
            graph.capture_end()
    return graph.replay
