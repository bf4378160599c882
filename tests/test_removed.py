"""Lists of best images, what they share, and models that are trained without them."""

import numpy as np
import pytest
import torch
from test_images import make

from tda import denoisers, models
from tda.designs import bank_seeds
from tda.retrain import retrained
from tda.studies.diffusion import removed


def test_the_best_come_first_and_ties_keep_their_order():
    scores = np.array([[0.0, 2.0, 2.0, -1.0], [3.0, 0.0, 0.0, 5.0]])
    assert removed.best(scores, 3).tolist() == [[1, 2, 0], [3, 0, 1]]
    assert removed.best(scores[0], 1).tolist() == [1]


def test_overlap_counts_what_two_lists_share():
    lists = np.array([[1, 2, 3, 4], [4, 3, 9, 8], [5, 6, 7, 0]])
    wanted = [[1, 0.5, 0], [0.5, 1, 0], [0, 0, 1]]
    np.testing.assert_array_equal(removed.overlap(lists), wanted)


@pytest.fixture(scope="module")
def bed(tmp_path_factory):
    testbed = make(tmp_path_factory.mktemp("removed") / "bed")
    models.train_base(testbed)
    return testbed


def test_models_without_a_list_are_those_of_the_bank(bed):
    n, drawn, seeds = len(bed.documents), np.array([9, 0]), bank_seeds(bed, 2)
    lists, pixels = [np.array([], int), np.array([3, 4, 5])], bed.train["pixels"].shape[1]
    losses, pictures = removed.retrained(bed, lists, seeds, drawn)
    assert losses.shape == (2, 2, 16) and pictures.shape == (2, 2, 2, pixels)
    for i, ids in enumerate(lists):
        for r, seed in enumerate(seeds):
            again = retrained(bed, ~np.isin(np.arange(n), ids), seed, "mask").outputs[0]
            np.testing.assert_allclose(losses[i, r], again, rtol=1e-5)
    assert not np.allclose(losses[0], losses[1], rtol=1e-4)


def test_pictures_start_from_the_noise_that_made_the_query(bed):
    seeds, asked = bank_seeds(bed, 1), models.query_examples(bed)
    drawn = np.array([9, 0])
    _, pictures = removed.retrained(bed, [np.array([], int)], seeds, drawn)
    full = np.ones(len(bed.documents), bool)
    (model, params, _, _), *_ = bed.modality.train_models(bed, [(full, seeds[0])], "mask")
    start = denoisers.start([asked["noise_seed"][q] for q in drawn], pictures.shape[-1])
    again = denoisers.sample(model, params, start, asked["condition"][drawn])
    torch.testing.assert_close(pictures[0, 0], again, atol=1e-4, rtol=1e-4)
