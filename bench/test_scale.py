"""The cases of ``bench/scale.py``, tiny: ``python -m pytest bench/test_scale.py``."""

import scale


def test_a_step_is_timed_and_images_repeat():
    samples, memory = scale.training(scale.Case("images", images=300, points=9, batch=4, side=8))
    assert len(samples) == 11 and min(samples) > 0 and memory >= 0
    features = scale.RepeatedFeatures(300, 4)
    assert (features.read([5]) == features.read([5 + scale.DISTINCT])).all()


def test_one_quantity_changes_at_a_time():
    plain = scale.Case("images")
    for case in scale.cases(quick=False):
        changed = {name for name, value in vars(case).items() if value != getattr(plain, name)}
        assert changed <= {"axis", case.axis, "side"}
