# %% 1 solution
try:
    rerun("step = 0.5  # which share", ("step = 0.5", "step = 3"))
except (AssertionError, ValueError) as error:
    print(type(error).__name__)
trained_loss = lm.losses(task.loss_fn, task.params, forty).mean()
rise = {"ascent": losses_after[1].mean() - trained_loss, "descent": losses_after[-1].mean() - trained_loss}
answer = max(rise, key=rise.get)
# %% 1 wrong
try:
    rerun("step = 0.5  # which share", ("step = 0.5", "step = 3"))
except (AssertionError, ValueError) as error:
    print(type(error).__name__)
trained_loss = lm.losses(task.loss_fn, task.params, forty).mean()
rise = {"ascent": losses_after[-1].mean() - trained_loss, "descent": losses_after[1].mean() - trained_loss}  # swapped
answer = max(rise, key=rise.get)
# %% 2 solution
signed, outputs = chapter.scores("bgo_diagonal")[test], truth.outputs[:, :, test]
ranked_by = {"signed": signed, "absolute": np.abs(signed)}
by_hand = {ranking: float(lds(s, truth.subsets, outputs).mean()) for ranking, s in ranked_by.items()}
# %% 2 wrong
signed, gain = chapter.scores("bgo_diagonal")[test], -truth.outputs[:, :, test].mean(1).T
sums = signed @ truth.subsets.T
predicted = {"signed": sums, "absolute": np.abs(sums)}  # of the sum, not of the scores
by_hand = {
    ranking: np.mean([spearmanr(*pair).statistic for pair in zip(p, gain, strict=True)])
    for ranking, p in predicted.items()
}
# %% 3 solution
K, c = empirical.gram(task, bed.train), empirical.cross(task, bed.train, chapter.test_queries)
eigenvalues, eigenvectors = torch.linalg.eigh(K)
largest, u = eigenvalues[-2:], eigenvectors[:, -2:]
two = (c - (c @ u) * (largest / (largest + K.trace() / len(K))) @ u.T).numpy()
remains = mean_lds(two, test)
# %% 3 wrong
K, c = empirical.gram(task, bed.train), empirical.cross(task, bed.train, chapter.test_queries)
eigenvalues, eigenvectors = torch.linalg.eigh(K)  # in ascending order: these are the two smallest
largest, u = eigenvalues[:2], eigenvectors[:, :2]
two = (c - (c @ u) * (largest / (largest + K.trace() / len(K))) @ u.T).numpy()
remains = mean_lds(two, test)
# %% 4 solution
ascent, descent = up - base, base - down
of_sum = lds(ascent + descent, truth.subsets, truth.outputs[:, :, positions]).mean()
# %% 4 wrong
ascent, descent = up - base, down - base  # positive where learning the query hurts
of_sum = lds(ascent + descent, truth.subsets, truth.outputs[:, :, positions]).mean()
