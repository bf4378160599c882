# %% 1 solution
for_own = {}
for row_id in AUDITORS:
    clean, shares = planted.source < 0, []
    for i in copies:
        shares.append(suspicion.shares_above(raw[row_id][planted.source[i]], np.array([i]), clean)[0])
    for_own[row_id] = np.mean(shares)
# %% 1 wrong
for_own = {}
for row_id in AUDITORS:
    values = suspicion.pooled(raw[row_id])  # still the auditor who does not know
    for_own[row_id] = suspicion.shares_above(values, copies, planted.source < 0).mean()
# %% 2 solution
raw_mean = {}
for row_id in AUDITORS:
    raw_mean[row_id] = suspicion.shares_above(raw[row_id].mean(0), copies, planted.source < 0).mean()
# %% 2 wrong
raw_mean = {}
for row_id in AUDITORS:
    values = suspicion.pooled(raw[row_id], "mean")  # standardised
    raw_mean[row_id] = suspicion.shares_above(values, copies, planted.source < 0).mean()
# %% 3 solution
picked = {r: set(selection.chosen(suspicion.pooled(scores[r][development], "mean"), budget)) for r in SELECTORS}
overlap = {(a, b): len(picked[a] & picked[b]) / budget for a in SELECTORS for b in SELECTORS}
# %% 3 wrong
picked = {r: set(selection.chosen(suspicion.pooled(scores[r][development], "mean"), budget)) for r in SELECTORS}
overlap = {
    (a, b): len(picked[a] & picked[b]) / len(picked[a] | picked[b]) for a in SELECTORS for b in SELECTORS
}  # Jaccard
