# %% 1 solution
rerun("few, asked, rank = take(bed.train")
before, ranked = answers, solved
rerun("few, asked, rank = take(bed.train", ("stability=10.0", "stability=1000.0"))
factor = np.linalg.norm(before) / np.linalg.norm(answers)
# %% 1 wrong
rerun("few, asked, rank = take(bed.train")
before, ranked = answers, solved
rerun("few, asked, rank = take(bed.train", ("stability=10.0", "stability=1000.0"))
factor = np.linalg.norm(ranked) / np.linalg.norm(solved) / 2  # of other numbers
# %% 2 solution
costs, outputs_of = {}, truth.outputs[:, :, tune]
for how in ("lasso", "ridge"):
    every = recovery.recover(operators.measure, y, how)
    some = recovery.recover(operators.measure[::2], y[::2], how)
    costs[how] = lds(every, truth.subsets, outputs_of).mean() - lds(some, truth.subsets, outputs_of).mean()
# %% 2 wrong
costs, outputs_of = {}, truth.outputs[:, :, tune]
for how in ("lasso", "ridge"):
    every = recovery.recover(operators.measure, y, how)
    some = recovery.recover(operators.measure[::2], y[::2], how)
    costs[how] = (
        1 - lds(some, truth.subsets, outputs_of).mean() / lds(every, truth.subsets, outputs_of).mean()
    )  # a share
# %% 3 solution
strong = stride.Options(rank=operators.readout.shape[1], layer=operators.layer, stability=1e4, linearity=0.0, steps=0)
alone = stride.operators_for(task, bed.train, np.eye(n, dtype=bool), strong)


def read(examples, i):
    shot = snapshot(task, take(examples, slice(i, i + 1)), alone.layer)
    return alone.read(shot.states), shot.probabilities, shot.labels


def pull(examples, i):
    B, p, labels = read(examples, i)
    return B.T @ (torch.eye(p.shape[1])[labels] - p) / len(B)


H = 0
for i in range(n):
    B, p, labels = read(bed.train, i)
    H = H + torch.einsum("tc,tr,ts->crs", p, B, B) / len(B) / n
documents_pull = torch.stack([pull(bed.train, i) for i in range(n)])  # [n, r, C]
asked_pull = torch.stack([pull(take(queries, test), q) for q in range(int(test.sum()))])
solved_pull = torch.linalg.solve(H + 1e-3 * torch.eye(H.shape[1]), documents_pull.permute(2, 1, 0))  # [C, r, n]
direct = torch.einsum("qrc,crn->qn", asked_pull, solved_pull).numpy()
# %% 3 wrong
strong = stride.Options(rank=operators.readout.shape[1], layer=operators.layer, stability=1e4, linearity=0.0, steps=0)
alone = stride.operators_for(task, bed.train, np.eye(n, dtype=bool), strong)


def pull(examples, i):
    shot = snapshot(task, take(examples, slice(i, i + 1)), alone.layer)
    B, p = alone.read(shot.states), shot.probabilities
    return B.T @ (torch.eye(p.shape[1])[shot.labels] - p) / len(B)


documents_pull = torch.stack([pull(bed.train, i) for i in range(n)])
asked_pull = torch.stack([pull(take(queries, test), q) for q in range(int(test.sum()))])
direct = torch.einsum("qrc,nrc->qn", asked_pull, documents_pull).numpy()  # a dot product, without the curvature
# %% 4 solution
signed = phase
rerun(
    "designs = {",
    ("rng.choice([-1, 1], k) * rng.uniform(0.5, 2, k)", "rng.uniform(0.5, 2, k)"),
    ('plotting.save(figure, bed.config, figures_name.format("phase"))\n', ""),
)
gains = {}
for how in ("lasso", "ridge", "correlation"):
    gains[how] = phase[phase.recovery == how].found.mean() - signed[signed.recovery == how].found.mean()
# %% 4 wrong
signed = phase
rerun(
    "designs = {",
    ("rng.choice([-1, 1], k) * rng.uniform(0.5, 2, k)", "rng.uniform(-2, 2, k)"),  # still both signs
    ('plotting.save(figure, bed.config, figures_name.format("phase"))\n', ""),
)
gains = {}
for how in ("lasso", "ridge", "correlation"):
    gains[how] = phase[phase.recovery == how].exact.mean() - signed[signed.recovery == how].exact.mean()
