"""TransferModel: what a block takes."""

from __future__ import annotations

import pytest

from headrace.core.costs.transfer import TransferModel


def test_the_prior_holds_until_something_was_seen():
    assert TransferModel(0.002).seconds(5) == pytest.approx(0.01)


def test_what_was_measured_replaces_the_prior():
    model = TransferModel(1.0)
    for _ in range(60):
        model.observe(10, 0.05)
    assert model.seconds(1) == pytest.approx(0.005, rel=0.05)


def test_a_tier_that_became_slow_is_felt_after_one_large_transfer():
    model = TransferModel(0.001)
    model.observe(20, 2.0)
    assert model.seconds(1) > 0.05


def test_an_estimate_that_only_refuses_fades():
    model = TransferModel(1.0)
    for _ in range(200):
        model.forgive()
    assert model.seconds(1) < 0.02
