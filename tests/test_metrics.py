"""Metrics of predictions, against scikit-learn."""

import pytest
import torch
from sklearn.metrics import f1_score

from sslpl.learn.metrics import macro_f1


@pytest.mark.parametrize("classes", [2, 7, 40])
def test_macro_f1_is_that_of_scikit_learn(classes: int) -> None:
    generator = torch.Generator().manual_seed(classes)
    # 60 examples: with 40 classes some are absent, and some are only guessed
    guess, labels = torch.randint(classes, (2, 60), generator=generator)
    expected = f1_score(labels.numpy(), guess.numpy(), average="macro", zero_division=0.0)
    assert macro_f1(guess, labels) == pytest.approx(expected, abs=1e-12)


def test_macro_f1_of_no_correct_guess_is_zero() -> None:
    assert macro_f1(torch.tensor([0, 0]), torch.tensor([1, 3])) == 0
