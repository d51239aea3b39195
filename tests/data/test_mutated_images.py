"""Damaged images of ten formats; the full count is `make soak`'s."""

from tests.data.mutated_images import FORMATS, became, damaged, whole


def test_no_damaged_image_crashes_hangs_or_takes_the_memory(count=500):
    results, memory = became(0, count, timeout=120)
    assert [one.index for one in results] == list(range(count))
    assert {one.outcome for one in results} == {"ok", "refused"}
    assert max(one.seconds for one in results) < 5 and memory < 2**30


def test_the_same_images_are_damaged_every_time_and_all_of_them_are():
    sound = {content for kind in FORMATS for content in whole(kind)}
    drawn = [damaged(index) for index in range(50)]
    assert drawn == [damaged(index) for index in range(50)] and len(set(drawn)) > 45
    assert sum(content in sound for content in drawn) <= 5  # damage may cancel out
