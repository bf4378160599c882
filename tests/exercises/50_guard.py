# %% 1 solution
a_first = alignments[draws[0], main_share]["GUARD"]
w_first = given(draws[0], "GradDiff", main_share)
predicted = {name: float((w_first[name] * a_first).mean()) for name in CORE}

# %% 1 wrong
a_first = alignments[draws[0], main_share]["GUARD"]
predicted = {
    name: float((w_first * a_first).mean()) for name, w_first in given(draws[0], "GradDiff", main_share).items()
}
predicted["GUARD"], predicted["inverted"] = predicted["inverted"], predicted["GUARD"]  # gradient descent, not ascent

# %% 2 solution
gone, kept = curves["GPT-NeoX", "GradDiff", main_share, draws[0]]
target = references[draws[0], main_share]["forget probability"].mean()
half = {}
for place, name in enumerate(CORE):
    after = int((gone[:, place] <= target).argmax())
    (x0, y0), (x1, y1) = ((gone[i, place], kept[i, place]) for i in (after - 1, after))
    half[name] = y0 + (y1 - y0) * (x0 - target) / (x0 - x1)

# %% 2 wrong
gone, kept = curves["GPT-NeoX", "GradDiff", main_share, draws[0]]
target = references[draws[0], main_share].loc["oracle", "forget probability"] / 2  # half of the oracle's level
half = {}
for place, name in enumerate(CORE):
    after = int((gone[:, place] <= target).argmax())
    (x0, y0), (x1, y1) = ((gone[i, place], kept[i, place]) for i in (after - 1, after))
    half[name] = y0 + (y1 - y0) * (x0 - target) / (x0 - x1)

# %% 3 solution
from scipy.stats import ks_2samp

critical = {}
for n in (8, 80):
    sample = np.arange(n)
    critical[n] = next(k / n for k in range(1, n + 1) if ks_2samp(sample, sample + k - 0.5).pvalue < 0.05)

# %% 3 wrong
critical = {n: 1.36 / np.sqrt(n) for n in (8, 80)}  # the limit for one sample against a known distribution
