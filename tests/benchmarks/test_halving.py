"""Rates by halving against a grid, of losses that are made up."""

from __future__ import annotations

from benchmarks.halving import by_halving, rows_of


def test_the_worst_is_left_out_after_a_quarter_and_after_half():
    """The rate that is best at the end was the worst of the first quarter."""
    losses = {
        1e-3: {10: 0.9, 20: 0.5, 40: 0.1},
        3e-3: {10: 0.8, 20: 0.6, 40: 0.4},
        9e-3: {10: 0.7, 20: 0.65, 40: 0.65},
    }
    assert by_halving(losses) == 3e-3
    line = rows_of({("faces, 10", "full", 0): losses})[1]
    assert line[3:] == ["0.003", "0.001", "+300.0%"]


def test_a_loss_of_the_first_quarter_counts_to_the_end():
    losses = {1e-3: {10: 0.3, 20: 0.5, 40: 0.5}, 3e-3: {10: 0.4, 20: 0.31, 40: 0.31}}
    assert by_halving(losses) == 1e-3


def test_two_rates_are_halved_once():
    losses = {1e-3: {20: 0.5, 40: 0.1}, 3e-3: {20: 0.4, 40: 0.4}}
    assert by_halving(losses) == 3e-3
