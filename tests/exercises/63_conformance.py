# %% 1 solution
wrong_G = torch.einsum("nj,nm->njm", g @ U_S.T, a @ U_A)
apart = []
for lam in (wrong_G.square().mean(0), G.square().mean(0)):
    off = torch.einsum("qjm,njm->qn", G_q / (lam + damping), wrong_G).numpy() - package
    apart.append(np.abs(off).max() / np.abs(package).max())

# %% 1 wrong
wrong_G, wrong_q = (torch.einsum("nj,nm->njm", s @ U_S.T, t @ U_A) for s, t in ((g, a), (g_q, a_q)))  # in both lines
apart = []
for lam in (wrong_G.square().mean(0), G.square().mean(0)):
    off = torch.einsum("qjm,njm->qn", wrong_q / (lam + damping), wrong_G).numpy() - package
    apart.append(np.abs(off).max() / np.abs(package).max())


# %% 2 solution
def both_kinds(A_):
    (lam_a, U_a), (lam_s, U_s) = torch.linalg.eigh(A_), torch.linalg.eigh(g.T @ g / n)
    mine_, his = torch.einsum("nj,nm->njm", g @ U_s, a @ U_a), torch.einsum("nj,nm->njm", g_q @ U_s, a_q @ U_a)
    kinds = (mine_.square().mean(0), torch.outer(lam_s, lam_a))
    return [torch.einsum("qjm,njm->qn", his / (lam + damping), mine_).numpy() for lam in kinds]


whole_, halved_ = both_kinds(a.T @ a / n), both_kinds(a.T @ a / n / 2)
moved = [np.abs(x - y).max() / np.abs(x).max() for x, y in zip(whole_, halved_, strict=True)]

# %% 2 wrong
halved_ = torch.einsum("qjm,njm->qn", G_q / (eigenvalues / 2 + damping), G).numpy()  # the measured eigenvalues, too
moved = [np.abs(halved_ - by_hand).max() / np.abs(by_hand).max()] * 2

# %% 3 solution
first = torch.cat([torch.ones(n, 1), a[:, :-1]], 1)
basis = torch.linalg.eigh(first.T @ first / n).eigenvectors
lam = torch.einsum("nj,nm->njm", g @ U_S, first @ basis).square().mean(0)
mine_, his = torch.einsum("nj,nm->njm", g @ U_S, a @ basis), torch.einsum("nj,nm->njm", g_q @ U_S, a_q @ basis)
found = torch.einsum("qjm,njm->qn", his / (lam + damping), mine_).numpy()
correlation = np.mean([spearmanr(x, y).statistic for x, y in zip(found, by_hand, strict=True)])
mistake = np.abs(found - by_hand).max() / np.abs(by_hand).max(), correlation

# %% 3 wrong
first, first_q = (torch.cat([part[:, -1:], part[:, :-1]], 1) for part in (a, a_q))
basis = torch.linalg.eigh(first.T @ first / n).eigenvectors
mine_, his = torch.einsum("nj,nm->njm", g @ U_S, first @ basis), torch.einsum("nj,nm->njm", g_q @ U_S, first_q @ basis)
found = torch.einsum("qjm,njm->qn", his / (mine_.square().mean(0) + damping), mine_).numpy()  # moved everywhere: right
correlation = np.mean([spearmanr(x, y).statistic for x, y in zip(found, by_hand, strict=True)])
mistake = np.abs(found - by_hand).max() / np.abs(by_hand).max(), correlation

# %% 4 solution
z = torch.linspace(-1.0, 2.0, 5, dtype=torch.float64)


def ours():
    p = np.exp(z.numpy()) / np.exp(z.numpy()).sum()
    return np.diag(p) - np.outer(p, p)


def theirs():
    return torch.autograd.functional.jacobian(lambda t: t.softmax(0), z).numpy()


mine = conformance.Comparison("softmax", "autograd", ours, theirs, 1e-8)

# %% 4 wrong
z = torch.linspace(-1.0, 2.0, 5, dtype=torch.float64)


def ours():
    p = np.exp(z.numpy()) / np.exp(z.numpy()).sum()
    return np.diag(p * (1 - p))  # each output by its own input only


def theirs():
    return torch.autograd.functional.jacobian(lambda t: t.softmax(0), z).numpy()


mine = conformance.Comparison("softmax", "autograd", ours, theirs, 1e-8)
