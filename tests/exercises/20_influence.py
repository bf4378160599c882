# %% 1 solution
whole = {"inputs": train["inputs"].double(), "labels": train["labels"]}


def hessian_product(v):
    parts = v.split([leaf.numel() for leaf in variables])
    slopes = torch.autograd.grad(task.loss_fn(leaves, whole), variables, create_graph=True)
    along = sum((slope * part.view_as(slope)).sum() for slope, part in zip(slopes, parts, strict=True))
    return as_vector(torch.autograd.grad(along, variables))


# %% 1 wrong
hessian_product = product  # the Gauss-Newton matrix: the term that bends the network is missing

# %% 2 solution
X, y = train["inputs"].double(), (train["labels"] == 3).double()
inverse = torch.linalg.inv(X.T @ X / N + decay * torch.eye(64))
theta = inverse @ X.T @ y / N
moved = X @ inverse / N
leverage = (moved * X).sum(1)
without = theta - moved * ((y - X @ theta) / (1 - leverage))[:, None]

# %% 2 wrong
X, y = train["inputs"].double(), (train["labels"] == 3).double()
inverse = torch.linalg.inv(X.T @ X / N + decay * torch.eye(64))
theta = inverse @ X.T @ y / N
without = theta - X @ inverse / N * (y - X @ theta)[:, None]  # plain influence

# %% 3 solution
values, order = operators["ggn"].eigenvalues.sort(descending=True)
along = operators["ggn"].project(system_gradients.double())[:, order] / (values + shift)
cosines = (along.square().cumsum(1).sqrt() / along.norm(dim=1, keepdim=True)).mean(0)
pairs = int((cosines <= 0.95).sum()) + 1

# %% 3 wrong
pairs = int((operators["ggn"].eigenvalues > shift).sum())  # the damping hides the others, does it not?

# %% 4 solution
of_ekfac = sweep[sweep.matrix == "ekfac"].set_index("damping")
lost = of_ekfac.leave_5.max() - of_ekfac.loc[of_ekfac.half.idxmax(), "leave_5"]

# %% 4 wrong
of_ekfac = sweep[sweep.matrix == "ekfac"].set_index("damping")
lost = of_ekfac.leave_5.max() - of_ekfac.half.max()  # two designs compared, not two dampings
