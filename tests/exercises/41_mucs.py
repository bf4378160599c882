# %% 1 solution
half_way = [next(s for s, loss in enumerate(run.forgotten) if loss >= 0.5 * null) for run in runs["bounded"]]
share = np.mean([step / run.steps for step, run in zip(half_way, runs["bounded"], strict=True)])
# %% 1 wrong
half_way = [run.steps // 2 for run in runs["bounded"]]  # half of the steps, not half of the loss
share = 0.5
# %% 2 solution
lengths = train["pixels"].norm(dim=1).numpy()
orders = [np.argsort(-chapter.scores(row_id)[test[0]], kind="stable") for row_id in ("mucs", "mucs_difference")]
by_skew, by_difference = (lengths[order[:k]].mean() for order in orders)
# %% 2 wrong
lengths = train["pixels"].norm(dim=1).numpy()
orders = [np.argsort(chapter.scores(row_id)[test[0]], kind="stable") for row_id in ("mucs", "mucs_difference")]
by_skew, by_difference = (lengths[order[:k]].mean() for order in orders)  # the worst, not the best
# %% 3 solution
same = (train["condition"] == queries["condition"][test].unsqueeze(1)).all(2).numpy()
hits = np.take_along_axis(same, removed.best(chapter.scores("mucs")[test], k), 1).mean(1)
chance = same.mean()
# %% 3 wrong
same = (train["condition"] == queries["condition"][test].unsqueeze(1)).any(2).numpy()  # one token is enough
hits = np.take_along_axis(same, removed.best(chapter.scores("mucs")[test], k), 1).mean(1)
chance = same.mean()
# %% 4 solution
try:
    attribute("mucs", task, train, few_queries, **row_options | {"max_steps": 1})
except mucs.BoundNotReached as error:
    refusal = str(error)
# %% 4 wrong
try:
    attribute("mucs", task, train, take(queries, few[:1]), **row_options | {"max_steps": 1})  # only the first of them
except mucs.BoundNotReached as error:
    refusal = str(error)
