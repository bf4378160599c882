# %% 1 solution
from itertools import combinations

from scipy.stats import spearmanr

half, kept = banks["half"], []
for q in np.flatnonzero((banks["half"].query_set == "held_out") & (banks["half"].split == "test")):
    pairs = combinations(range(half.outputs.shape[1]), 2)
    kept.append(np.mean([spearmanr(half.outputs[:, a, q], half.outputs[:, b, q]).statistic for a, b in pairs]))
by_hand = np.mean(kept)
# %% 1 wrong
from scipy.stats import spearmanr

half = banks["half"]
every = range(half.outputs.shape[2])  # tune queries and generated ones as well
by_hand = np.mean([spearmanr(half.outputs[:, 0, q], half.outputs[:, 1, q]).statistic for q in every])
# %% 2 solution
half = banks["half"]
part = (half.query_set == "held_out") & (half.split == "test")
bound = ceiling(half.outputs[:, :, part], models.query_clusters(bed, part))
own = np.mean([spearman_brown_ceiling(r1, half.outputs.shape[1]) for r1 in bound.per_query])
answer = "too high" if bound.value > own else "too low"
# %% 2 wrong
half = banks["half"]
part = (half.query_set == "held_out") & (half.split == "test")
bound = ceiling(half.outputs[:, :, part], models.query_clusters(bed, part))
own = spearman_brown_ceiling(float(np.mean(bound.per_query)), half.outputs.shape[1])  # of the mean, not the mean
answer = "too high"
# %% 3 solution
from scipy.stats import spearmanr

value = spearmanr(np.ones(len(banks["half"].subsets)), banks["half"].outputs[:, 0, 0]).statistic
# %% 3 wrong
value = 0.0  # that is the convention of the package
