# %% 1 solution
first_input = torch.cat([features[0], torch.ones(1)])
same_block, same_S, same_A, same_pairs = 0.0, 0.0, 0.0, []
for feature in features:
    p = (W @ feature + bias).softmax(0).detach()
    same_A = same_A + torch.outer(first_input, first_input) / len(features)
    for label in range(len(p)):
        u = p[label].sqrt() * (p - torch.eye(len(p))[label])
        gradient = torch.outer(u, first_input).flatten()
        same_S = same_S + torch.outer(u, u) / len(features)
        same_block = same_block + torch.outer(gradient, gradient) / len(features)
        same_pairs.append((u, first_input))
same_kfac = torch.kron(same_S, same_A)
vectors_S, vectors_A = torch.linalg.eigh(same_S).eigenvectors, torch.linalg.eigh(same_A).eigenvectors
same_axes = torch.kron(vectors_S, vectors_A)
along = sum(torch.outer((vectors_S.T @ u) ** 2, (vectors_A.T @ a) ** 2) for u, a in same_pairs).flatten()
same_ekfac = same_axes @ torch.diag(along / len(features)) @ same_axes.T

# %% 1 wrong
first_input = torch.cat([features[0], torch.ones(1)])
along = sum(torch.outer((axes_of_S.T @ u) ** 2, (axes_of_A.T @ first_input) ** 2) for u, _ in slopes_and_inputs)
same_ekfac = kfac_axes @ torch.diag(along.flatten() / len(features)) @ kfac_axes.T
same_block, same_kfac = block, kfac  # only `slopes_and_inputs` was replaced

# %% 2 solution
blind = {"trace", "eigenvalues", "norm"}

# %% 2 wrong
blind = {"trace"}  # but the swap only renames the axes

# %% 3 solution
ranked, generator = deepest_rungs["right eigenvalues"], torch.Generator().manual_seed(0)
of_layers = [layer.eigenvalues for _, layer in ranked.blocks.values()]
shuffled = ranked.with_eigenvalues(
    torch.cat([values[torch.randperm(len(values), generator=generator)] for values in of_layers])
)
last_base = base_models[deepest][-1]
answers = ladder.measure_rungs(last_base, {"shuffled": shuffled}, grid_images, grid_queries, (DECAY, HEAVY), DECAY)
shuffled_lds = {a.damping: mean_lds(a.scores, deepest, test) for a in answers if a.damping}

# %% 3 wrong
ranked, generator = deepest_rungs["right eigenvalues"], torch.Generator().manual_seed(0)
across_layers = torch.randperm(ranked.size, generator=generator)
shuffled = ranked.with_eigenvalues(ranked.eigenvalues[across_layers])
last_base = base_models[deepest][-1]
answers = ladder.measure_rungs(last_base, {"shuffled": shuffled}, grid_images, grid_queries, (DECAY, HEAVY), DECAY)
shuffled_lds = {a.damping: mean_lds(a.scores, deepest, test) for a in answers if a.damping}

# %% 4 solution
from tda.tools.gradients import matrix

sent = matrix(base_models[deepest][-1], grid_images).double()[: ladder.PROBES]
solved = deepest_rungs["K-FAC"].function(lambda w: 1 / (w + DECAY), sent)
back = deepest_rungs["Hessian"].matvec(solved) + DECAY * solved


def error_at(s):
    return ladder.inverse_error(s * back, sent)[0]


lengths = sent.square().sum(1)
best = float(((back * sent).sum(1) / lengths).mean() / (back.square().sum(1) / lengths).mean())

# %% 4 wrong
error_of_kfac = results[(results.rung == "K-FAC") & (results.damping == DECAY)].error.iloc[-1]


def error_at(s):
    return s**2 * error_of_kfac  # an inverse that returns nothing is not free of error


best = 0.0
