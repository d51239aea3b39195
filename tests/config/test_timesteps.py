"""The timesteps of other samplers, held to lists written down from their own code's output."""

import pytest

from purify_engine.config import ddim_landings, respaced_timesteps, spaced_timesteps


def test_leading_timesteps_are_multiples_from_zero():
    assert spaced_timesteps(50) == tuple(range(980, -1, -20))
    assert spaced_timesteps(50, steps_offset=1) == tuple(range(981, 0, -20))
    assert spaced_timesteps(300)[:3] == (897, 894, 891)  # 1000 // 300 is 3: the last hundred is left out
    assert spaced_timesteps(1000) == tuple(range(999, -1, -1))


def test_linspace_timesteps_run_from_end_to_end():
    found = spaced_timesteps(50, "linspace")
    assert found[:4] == (999, 979, 958, 938) and found[-3:] == (41, 20, 0) and len(found) == 50
    assert spaced_timesteps(5, "linspace") == (999, 749, 500, 250, 0)  # 749.25, 499.5 to the even one, 249.75
    assert spaced_timesteps(1, "linspace") == (0,)


def test_trailing_timesteps_start_at_the_last_one():
    assert spaced_timesteps(50, "trailing") == tuple(range(999, 0, -20))
    assert spaced_timesteps(7, "trailing") == (999, 856, 713, 570, 428, 285, 142)
    assert spaced_timesteps(4, "trailing", num_timesteps=10) == (9, 7, 4, 1)  # 10, 7.5 and 2.5 to the even one


@pytest.mark.parametrize("spacing", ["leading", "linspace", "trailing"])
def test_timesteps_fall_and_are_as_many_as_asked_for(spacing):
    for num_steps in (1, 2, 3, 7, 49, 250, 333, 999, 1000):
        found = spaced_timesteps(num_steps, spacing)
        assert len(found) == num_steps and found[0] < 1000 and found[-1] >= 0
        assert all(j < i for i, j in zip(found, found[1:], strict=False))


def test_ddim_lands_a_whole_stride_below():
    assert ddim_landings((140, 120, 20, 0), 50) == (120, 100, 0, -1)
    assert ddim_landings(spaced_timesteps(50, "linspace")[-3:], 50) == (21, 0, -1)
    assert ddim_landings((21, 1), 50, set_alpha_to_one=False) == (1, 0)


def test_respacing_keeps_first_and_last_of_every_part():
    found = respaced_timesteps("250")
    assert len(found) == 250 and found[0] == 999 and found[-7:] == (24, 20, 16, 12, 8, 4, 0)
    assert found[-45:][:3] == (177, 173, 169)  # the first of 45 purification steps
    assert respaced_timesteps("3,2", 10) == respaced_timesteps([3, 2], 10) == (9, 5, 4, 2, 0)
    assert respaced_timesteps("10,20,30", 300)[::10] == (299, 265, 231, 199, 147, 99)
    assert respaced_timesteps("1,1", 10) == (5, 0)
    assert respaced_timesteps("4,3", 7) == (6, 5, 4, 3, 2, 1, 0)  # parts of 4 and 3


def test_ddim_respacing_takes_every_kth_from_zero():
    assert respaced_timesteps("ddim250") == tuple(range(996, -1, -4))
    assert respaced_timesteps("ddim7", 20) == (18, 15, 12, 9, 6, 3, 0)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: spaced_timesteps(0), "num_steps must be in [1, num_timesteps=1000], got 0"),
        (lambda: spaced_timesteps(11, num_timesteps=10), "num_steps must be in [1, num_timesteps=10], got 11"),
        (lambda: spaced_timesteps(5, "even"), "spacing must be one of leading, linspace, trailing, got 'even'"),
        (lambda: spaced_timesteps(50, steps_offset=20), "steps_offset must be in [0, 19] for this num_steps, got 20"),
        (lambda: spaced_timesteps(50, steps_offset=-1), "steps_offset must be in [0, 19] for this num_steps, got -1"),
        (lambda: respaced_timesteps("5,6", 10), "sections must be in [1, 5] for part 1 of 10 timesteps, got 6"),
        (lambda: respaced_timesteps("0"), "sections must be in [1, 1000] for part 0 of 1000 timesteps, got 0"),
        (
            lambda: respaced_timesteps("ddim300"),
            "sections must be ddim and a number of steps that every k-th of 1000 timesteps makes, got 'ddim300'",
        ),
    ],
)
def test_what_cannot_be_done_is_refused_by_name(call, said):
    with pytest.raises(ValueError) as wrong:
        call()
    assert str(wrong.value) == said
