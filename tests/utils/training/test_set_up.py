"""The steps before the first epoch."""

import pytest

from tests.networks import tiny_model
from tests.saying import assert_says
from utils.errors import SettingsError
from utils.hyperparameters import Hyperparameters
from utils.precision import choose_precision
from utils.training.options import TrainOptions
from utils.training.set_up import fitting_batch, run_loss, with_sizes


def test_batch_size_of_a_cpu_is_the_users() -> None:
    with pytest.raises(SettingsError) as caught:
        fitting_batch(tiny_model(), choose_precision("cpu", "off"), 64, Hyperparameters())
    assert_says(caught.value, "--batch -1", "GPU", "CPU", "--batch 16")


def test_sizes_are_settled_in_a_copy_of_the_options() -> None:
    model, options = tiny_model(), TrainOptions(img=max(tiny_model().stride) * 2 + 1, batch=3)
    settled = with_sizes(options, model, choose_precision("cpu", "off"), Hyperparameters())
    assert (settled.img, settled.batch) == (max(model.stride) * 3, 3)
    assert options.img == max(model.stride) * 2 + 1


def test_settling_the_loss_leaves_the_given_hyperparameters_alone() -> None:
    hyp, model = Hyperparameters(), tiny_model()
    loss, settled = run_loss(hyp, model, TrainOptions(), quiet=True)
    assert hyp == Hyperparameters()
    assert settled.loss == loss.settings.as_dict()
    assert settled.loss != hyp.loss
