# %% 1 solution
try:
    rerun("moves, losses = 0.5", ("moves, losses = 0.5", "moves, losses = 3"))
except (AssertionError, ValueError) as error:
    print(type(error).__name__)
trained = lm.losses(task.loss_fn, task.params, few).mean()
rise = {"ascent": losses[1].mean() - trained, "descent": losses[-1].mean() - trained}
answer = max(rise, key=rise.get)
# %% 1 wrong
try:
    rerun("moves, losses = 0.5", ("moves, losses = 0.5", "moves, losses = 3"))
except (AssertionError, ValueError) as error:
    print(type(error).__name__)
trained = lm.losses(task.loss_fn, task.params, few).mean()
rise = {"ascent": losses[-1].mean() - trained, "descent": losses[1].mean() - trained}  # the signs swapped
answer = max(rise, key=rise.get)
# %% 2 solution
signed, outputs = scores.load(bed, "bgo_diagonal")[0][test], truth.outputs[:, :, test]
tried = {"signed": signed, "absolute": np.abs(signed)}
by_hand = {how: float(lds(s, truth.subsets, outputs).mean()) for how, s in tried.items()}
# %% 2 wrong
s, real = scores.load(bed, "bgo_diagonal")[0][test], -truth.outputs[:, :, test].mean(1).T
summed = {"signed": s @ truth.subsets.T, "absolute": np.abs(s @ truth.subsets.T)}  # of the sum, not of the scores
by_hand = {
    how: np.mean([spearmanr(*pair).statistic for pair in zip(p, real, strict=True)]) for how, p in summed.items()
}
# %% 3 solution
K, c = empirical.gram(task, bed.train), empirical.cross(task, bed.train, held_out)
values, vectors = torch.linalg.eigh(K)
largest, u = values[-2:], vectors[:, -2:]
two = (c - (c @ u) * (largest / (largest + K.trace() / len(K))) @ u.T).numpy()
remains = share(two)
# %% 3 wrong
K, c = empirical.gram(task, bed.train), empirical.cross(task, bed.train, held_out)
values, vectors = torch.linalg.eigh(K)  # in ascending order: these are the two smallest
largest, u = values[:2], vectors[:, :2]
two = (c - (c @ u) * (largest / (largest + K.trace() / len(K))) @ u.T).numpy()
remains = share(two)
# %% 4 solution
ascent, descent = up - base, base - down
of_sum = lds(ascent + descent, truth.subsets, truth.outputs[:, :, positions]).mean()
# %% 4 wrong
ascent, descent = up - base, down - base  # positive where learning the query hurts
of_sum = lds(ascent + descent, truth.subsets, truth.outputs[:, :, positions]).mean()
