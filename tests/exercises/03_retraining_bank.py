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
line = table[(table.design == "half") & (table.query_set == "held_out") & (table.output == "main")].iloc[0]
formula = np.sqrt(line.seeds * line.r1 / (1 + (line.seeds - 1) * line.r1))
answer = "above" if formula > line.ceiling else "below"
# %% 2 wrong
line = table[(table.design == "half") & (table.query_set == "held_out") & (table.output == "main")].iloc[0]
formula = np.sqrt(line.r1)  # of one seed, not of their mean
answer = "above"
# %% 3 solution
from scipy.stats import spearmanr

value = spearmanr(np.ones(len(banks["half"].subsets)), banks["half"].outputs[:, 0, 0]).statistic
# %% 3 wrong
value = 0.0  # that is the convention of the package
