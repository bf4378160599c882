# %% 1 solution
gap = {}
for direction, s in (("ascent", -1), ("descent", 1)):
    gap[direction] = float((elastic_steps(s, True) - elastic_steps(s, False)).abs().max())
same = min(gap, key=gap.get)
# %% 1 wrong
gap = {}
for direction, s in (("ascent", 1), ("descent", -1)):  # s is the sign of the loss that is minimised, not of the step
    gap[direction] = float((elastic_steps(s, True) - elastic_steps(s, False)).abs().max())
same = min(gap, key=gap.get)
# %% 2 solution
averaged = np.mean(drawn, axis=0)
repaired = spearmanr(averaged, clean).statistic
# %% 2 wrong
averaged = np.mean(drawn, axis=0)
repaired = np.mean([spearmanr(draw, clean).statistic for draw in drawn])  # of the single draws, not of their mean
# %% 3 solution
unsigned = 100 * np.abs(np.expm1(gain["random"]))
undeserved = unsigned[gain["random"] < 0].sum() / len(unsigned)
# %% 3 wrong
unsigned = 100 * np.abs(gain["random"])  # of log p, not of p
undeserved = unsigned[gain["random"] < 0].sum() / len(unsigned)
