"""The additive share of worlds whose share is known, because their losses were made."""

import numpy as np
import pytest

from tda.evaluation.additive import additive_share, kept, seed_noise
from tda.evaluation.lds import lds

NOISE = 0.3


def world(m, interaction, n=60, queries=32, seed=0, paired=False):
    """Scores that know the truth in part; halves with losses that are sums plus ``interaction`` of pairs plus noise;
    and the LDS of the true sum on new halves without noise.
    """
    rng = np.random.default_rng(seed)
    truth, other = rng.normal(size=(2, queries, n))
    pairs = rng.integers(0, n, (queries, 200, 2))

    def minus_loss(subsets):
        signs = np.where(subsets, 1.0, -1.0)
        both = np.stack([(signs[:, p[:, 0]] * signs[:, p[:, 1]]).sum(1) for p in pairs]) / np.sqrt(200)
        return truth @ subsets.T / np.sqrt(n / 4) + interaction * both

    own, fresh = (np.stack([rng.permutation(n) < n // 2 for _ in range(count)]) for count in (m, 400))
    own = np.concatenate([own[::2], ~own[::2]]) if paired else own
    y = minus_loss(own) + NOISE * rng.normal(size=(queries, m))
    known = float(lds(truth, fresh, (3 - minus_loss(fresh)).T[:, None]).mean())
    return truth + other, own, y, np.full(queries, NOISE**2), known


@pytest.mark.parametrize("n", [60, 200])
@pytest.mark.parametrize("interaction", [0.0, 0.5, 1.0])
def test_it_is_the_lds_of_the_true_sum(interaction, n):
    """With 160 models of 60 documents and of 200, where no regression could show it."""
    *given, known = world(160, interaction, n)
    found = additive_share(*given)
    assert abs(found.share.value - known) < 0.03
    assert found.share.low - 0.01 < known < found.share.high + 0.01
    assert {0.0: 0.99, 0.5: 0.8, 1.0: 0.6}[interaction] < known < {0.0: 1.01, 0.5: 0.93, 1.0: 0.75}[interaction]


def test_seeds_are_no_interactions():
    """Taken for interactions, the noise of seeds would lower the share."""
    scores, own, y, noise, known = world(160, 0.0)
    told, untold = (additive_share(scores, own, y, variance).share.value for variance in (noise, 0 * noise))
    assert abs(told - known) < 0.02 and untold < known - 0.03


def test_shared_seeds_take_nothing_from_the_share():
    scores, own, y, noise, known = world(160, 0.5)
    seeds = np.arange(160) % 10
    found = additive_share(scores, own, y + 20.0 * seeds, noise, seeds=seeds).share
    assert abs(found.value - known) < 0.03


def test_pairs_of_complements_mislead_it():
    """Both halves of a pair show the same interactions of two documents: no noise that is independent of each other."""
    scores, own, y, noise, known = world(160, 1.0, paired=True)
    assert additive_share(scores, own, y, noise).share.high < known - 0.05


def test_scores_that_know_nothing_only_cost_precision():
    scores, own, y, noise, known = world(200, 0.5)
    blind = additive_share(np.random.default_rng(9).normal(size=scores.shape), own, y, noise)
    assert abs(blind.share.value - known) < 0.1


def test_the_interval_grows_with_fewer_models_and_holds_groups_and_queries():
    few, many = (additive_share(*world(m, 1.0)[:-1]).share for m in (64, 512))
    assert many.high - many.low < few.high - few.low
    assert few.low < few.value < few.high


def test_seed_noise_by_hand_and_without_what_a_seed_does_to_all():
    rng = np.random.default_rng(0)
    logs = rng.normal(size=(2000, 3, 2)) * [0.5, 2.0] + 5 * rng.normal(size=(1, 3, 2))
    assert np.allclose(seed_noise(np.exp(logs)), [0.25, 4.0], rtol=0.1)
    three = np.log(np.array([[[1.0], [4.0]], [[9.0], [4.0]], [[2.0], [5.0]]]))
    alike = three - three.mean(0)
    assert np.allclose(seed_noise(np.exp(three)), 1.5 * alike.var(1, ddof=1).mean(0))
    with pytest.raises(ValueError, match="needs at least 2"):
        seed_noise(np.exp(logs[:, :1]))


def test_refusals():
    scores, own, y, noise, _ = world(64, 0.5)
    with pytest.raises(ValueError, match="63 extra models; at least 64"):
        additive_share(scores, own[:63], y[:, :63], noise)
    with pytest.raises(ValueError, match=r"noise \(3,\) for 32 queries"):
        additive_share(scores, own, y, noise[:3])


def test_what_chapter_25_keeps_is_read_where_it_is(tmp_path):
    assert kept(tmp_path, "people") is None
    (tmp_path / "tables").mkdir()
    path = tmp_path / "tables" / "25_ceilings_people.csv"
    path.write_text("what,value,low,high\nnoise ceiling,0.8,0.7,0.9\n")
    assert kept(tmp_path, "people") is None
    path.write_text(path.read_text() + "additive ceiling,0.6,0.5,0.7\n")
    assert kept(tmp_path, "people") == {"value": 0.6, "low": 0.5, "high": 0.7}
