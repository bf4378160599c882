# %% 1 solution
def offered(restricted, wanted):
    return {
        "params": bool(restricted.params),
        "outputs": restricted.outputs_fn is not None and restricted.model is not None,
        "checkpoints": restricted.run is not None and bool(restricted.run.checkpoints),
    }.get(wanted, wanted in restricted.encode)


may_run = {
    name: {m for m, chosen in attribution.METHODS.items() if all(offered(restricted, need) for need in chosen.needs)}
    for name, restricted in seen.items()
}

# %% 1 wrong
may_run = {  # a method that says nothing of outputs may still need weights
    name: {m for m, chosen in attribution.METHODS.items() if "outputs" not in chosen.needs or restricted.outputs_fn}
    for name, restricted in seen.items()
}

# %% 2 solution
teacher = proxies.taught(seen["S1"], four)
hot = proxies.soft_loss(bed, student, 1000.0)(proxies.values(student), teacher, "example").detach().numpy()
centred = [x - x.mean(-1, keepdims=True) for x in (said.astype(float), logits.numpy().astype(float))]
there = targets.numpy() >= 0
limit = (np.square(centred[0] - centred[1]).mean(-1) / 2 * there).sum(1) / there.sum(1)

# %% 2 wrong
teacher = proxies.taught(seen["S1"], four)
hot = proxies.soft_loss(bed, student, 1000.0)(proxies.values(student), teacher, "example").detach().numpy()
apart = said.astype(float) - logits.numpy().astype(float)  # a constant added to all logits changes no probability
there = targets.numpy() >= 0
limit = (np.square(apart).mean(-1) / 2 * there).sum(1) / there.sum(1)

# %% 3 solution
two = attribution.attribute("loss_covariance", task, few_documents, few_queries, models=2, steps=4, batch=6)
rank, least = int(np.linalg.matrix_rank(two, tol=1e-4 * np.abs(two).max())), 4

# %% 3 wrong
two = attribution.attribute("loss_covariance", task, few_documents, few_queries, models=2, steps=4, batch=6)
rank, least = int(np.linalg.matrix_rank(two, tol=1e-4 * np.abs(two).max())), 3  # the mean is taken off

# %% 4 solution
sums, alone = 0, []
for column in ("S2", "S4", "S5 untrained"):
    part = scores[column, "influence"][0]
    alone.append(measuring.lds_of({"one": part}, truth.subsets, outputs)["one"].per_query.mean())
    sums = sums + part / np.abs(part).mean(1, keepdims=True)
together = measuring.lds_of({"sum": sums}, truth.subsets, outputs)["sum"].per_query.mean()

# %% 4 wrong
sums, alone = 0, []
for column in ("S2", "S4", "S5 untrained"):
    part = scores[column, "influence"][0]
    alone.append(measuring.lds_of({"one": part}, truth.subsets, outputs)["one"].per_query.mean())
    sums = sums + part  # the untrained network's scores are of another size
together = measuring.lds_of({"sum": sums}, truth.subsets, outputs)["sum"].per_query.mean()
