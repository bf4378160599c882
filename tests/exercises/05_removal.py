# %% 1 solution
change = []
for q in queries:
    stays = np.ones(len(bed.documents), bool)
    stays[np.argsort(chapter.scores("gradient_dot")[q])[:k]] = False
    without = np.mean([retrained(bed, stays, seed, "mask").outputs[0, q] for seed in planned.seeds])
    change.append(without - outputs[0].mean(0)[q])
# %% 1 wrong
change = []
for q in queries:
    stays = np.ones(len(bed.documents), bool)
    stays[np.argsort(chapter.scores("gradient_dot")[q])[:k]] = False
    without = np.mean([retrained(bed, stays, seed, "mask").outputs[0, q] for seed in planned.seeds])
    change.append(without - original[q])  # against the original, not against the control
# %% 2 solution
count, change = [], []
for i, q in enumerate(planned.query):
    if q >= 0 and planned.k[i] == k:
        count.append(int(relevant[q][planned.removed[i]].sum()))
        change.append(outputs[i].mean(0)[q] - outputs[0].mean(0)[q])
# %% 2 wrong
count, change = [], []
for i, q in enumerate(planned.query):
    if q >= 0:  # the larger removals, too
        count.append(int(relevant[q][planned.removed[i]].sum()))
        change.append(outputs[i].mean(0)[q] - outputs[0].mean(0)[q])
# %% 3 solution
differences = changes[row_ids[0]] - changes[row_ids[1]]
needed = max(1, int(np.ceil((1.96 * differences.std(ddof=1) / 0.05) ** 2)))
# %% 3 wrong
one, other = changes[row_ids[0]], changes[row_ids[1]]
needed = int(np.ceil(1.96**2 * (one.var(ddof=1) + other.var(ddof=1)) / 0.05**2))  # as if the queries were others
