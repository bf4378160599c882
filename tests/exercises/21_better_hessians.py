# %% 1 solution
first, same_block, S_, A_, pairs_ = torch.cat([features[0], torch.ones(1)]), 0.0, 0.0, 0.0, []
for a in features:
    p = (last.weight.double() @ a + last.bias.double()).softmax(0).detach()
    A_ = A_ + torch.outer(first, first) / len(features)
    for c in range(len(p)):
        delta = p[c].sqrt() * (p - torch.eye(len(p))[c])
        slope = torch.outer(delta, first).flatten()
        S_ = S_ + torch.outer(delta, delta) / len(features)
        same_block = same_block + torch.outer(slope, slope) / len(features)
        pairs_.append((delta, first))
same_kfac = torch.kron(S_, A_)
vectors_s, vectors_a = torch.linalg.eigh(S_).eigenvectors, torch.linalg.eigh(A_).eigenvectors
both = torch.kron(vectors_s, vectors_a)
along = sum(torch.outer((vectors_s.T @ d) ** 2, (vectors_a.T @ a) ** 2) for d, a in pairs_).flatten() / len(features)
same_ekfac = both @ torch.diag(along) @ both.T

# %% 1 wrong
first, slopes_ = torch.cat([features[0], torch.ones(1)]), []
for a in features:
    p = (last.weight.double() @ a + last.bias.double()).softmax(0).detach()
    slopes_ += [p[c].sqrt() * (p - torch.eye(len(p))[c]) for c in range(len(p))]
along = sum(torch.outer((axes_s.T @ d) ** 2, (axes_a.T @ first) ** 2) for d in slopes_).flatten() / len(features)
same_block, same_kfac, same_ekfac = block, kfac, axes @ torch.diag(along) @ axes.T  # only `pairs` was replaced

# %% 2 solution
blind = {"trace", "eigenvalues", "norm"}

# %% 2 wrong
blind = {"trace"}  # but the swap only renames the axes

# %% 3 solution
ranked, drawn = spectra["right eigenvalues"], torch.Generator().manual_seed(0)
mixed = [b.eigenvalues[torch.randperm(len(b.eigenvalues), generator=drawn)] for _, b in ranked.blocks.values()]
shuffled = ranked.with_eigenvalues(torch.cat(mixed))
given = {"Hessian": spectra["Hessian"], "shuffled": shuffled}
answers = ladder.climb(grown[shown][0][-1], given, images, asked, (DECAY, HEAVY), DECAY)
shuffled_lds = {
    a.damping: lds(a.scores[test], halves, grown[shown][1][:, :, test]).mean()
    for a in answers
    if a.rung == "shuffled" and a.damping
}

# %% 3 wrong
ranked, drawn = spectra["right eigenvalues"], torch.Generator().manual_seed(0)
shuffled = ranked.with_eigenvalues(ranked.eigenvalues[torch.randperm(ranked.size, generator=drawn)])  # across layers
given = {"Hessian": spectra["Hessian"], "shuffled": shuffled}
answers = ladder.climb(grown[shown][0][-1], given, images, asked, (DECAY, HEAVY), DECAY)
shuffled_lds = {
    a.damping: lds(a.scores[test], halves, grown[shown][1][:, :, test]).mean()
    for a in answers
    if a.rung == "shuffled" and a.damping
}

# %% 4 solution
from tda.tools.gradients import matrix

sent = matrix(grown[shown][0][-1], images).double()[: ladder.PROBES]
x = spectra["K-FAC"].function(lambda w: 1 / (w + DECAY), sent)
back = spectra["Hessian"].matvec(x) + DECAY * x


def error(s):
    return ladder.inverse_error(s * back, sent)[0]


lengths = sent.square().sum(1)
best = float(((back * sent).sum(1) / lengths).mean() / (back.square().sum(1) / lengths).mean())

# %% 4 wrong
once_ = results[(results.rung == "K-FAC") & (results.damping == DECAY)].error.iloc[-1]


def error(s):
    return s**2 * once_  # an inverse that returns nothing is not free of error


best = 0.0
