# %% 1 solution
by_mean = {name: standardised(raw[name]).mean(0) for name in (SIMULATED, GRADIENT, "BM25")}
caught_so = {name: in_bucket(values, BUCKET)[copies].mean() for name, values in by_mean.items()}
# %% 1 wrong
by_mean = {name: raw[name].mean(0) for name in (SIMULATED, GRADIENT, "BM25")}  # items of large scores outweigh the rest
caught_so = {name: in_bucket(values, BUCKET)[copies].mean() for name, values in by_mean.items()}
# %% 2 solution
either = np.maximum(shares_below(suspects[SIMULATED]), shares_below(suspects[GRADIENT]))
caught_either = in_bucket(either, BUCKET)[copies].mean()
# %% 2 wrong
either = np.maximum(suspects[SIMULATED], suspects[GRADIENT])  # in units that differ
caught_either = in_bucket(either, BUCKET)[copies].mean()
# %% 3 solution
two_sided, dearer = {}, {}
for name in (SIMULATED, GRADIENT, "BM25"):
    two_sided[name] = np.abs(standardised(raw[name])).max(0)
    one_end, both_ends = ((s >= np.median(s[copies])).sum() for s in (suspicion(raw[name]), two_sided[name]))
    dearer[name] = both_ends - one_end
# %% 3 wrong
two_sided, dearer = {}, {}
for name in (SIMULATED, GRADIENT, "BM25"):
    two_sided[name] = standardised(np.abs(raw[name])).max(0)  # standardised after the sign was lost
    one_end, both_ends = ((s >= np.median(s[copies])).sum() for s in (suspicion(raw[name]), two_sided[name]))
    dearer[name] = both_ends - one_end
# %% 4 solution
sizes_of_smoke = ("n_tasks, n_seeds = 2, 2", "n_tasks, n_seeds = 2, 1")
rerun("n_chosen = max(", sizes_of_smoke, ("pool_share, epochs = 0.05", "pool_share, epochs = 1"))
rerun("def wishes(")
rerun("by_task = outcomes.pivot_table")
largest = np.ptp(by_task.to_numpy(), axis=1).max()
# %% 4 wrong
sizes_of_smoke = ("n_tasks, n_seeds = 2, 2", "n_tasks, n_seeds = 2, 1")
rerun("n_chosen = max(", sizes_of_smoke, ("pool_share, epochs = 0.05", "pool_share, epochs = 0.2"))  # a part of it
rerun("def wishes(")
rerun("by_task = outcomes.pivot_table")
largest = np.ptp(by_task.to_numpy(), axis=1).max()
