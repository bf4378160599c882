# %% 1 solution
wanted_ranks = -outputs.mean(1).T
sharp = {s: rank_correlation(pooled(s * on_test["airrep"], truth.subsets), wanted_ranks).mean() for s in (0.1, 1, 10)}
# %% 1 wrong
sharp = dict.fromkeys((0.1, 1, 10), found["airrep +"].value.value)
# %% 2 solution
changed = labels.subsets.copy()
changed[0, 0, labels.document[0, 0]] = True
leaky = replace(labels, subsets=changed)
try:
    leaky.check()
    complaint = ""
except ValueError as error:
    complaint = str(error)
# %% 2 wrong
leaky, complaint = labels, "in its own pool"
# %% 3 solution
members = truth.subsets[0]
exponents = np.exp(np.abs(on_test["airrep"][:, members].astype(float)))
effective = exponents.sum(1) ** 2 / (exponents**2).sum(1)
# %% 3 wrong
members = truth.subsets[0]
exponents = np.exp(on_test["airrep"][:, members].astype(float))
effective = exponents.sum(1) ** 2 / (exponents**2).sum(1)
# %% 4 solution
r_of_first = torch.tensor(labels.responses[0, :, :1].T)
shifted = float(ranking_loss(torch.tensor(np.array([f])) + 100, r_of_first))
flipped = float(ranking_loss(-torch.tensor(np.array([f])), r_of_first))
# %% 4 wrong
shifted = float(package)
flipped = -float(package)
