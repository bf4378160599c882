# %% 1 solution
pixels = study.train.parts.any(1).float()
held = torch.nn.functional.avg_pool2d(pixels[:, None], GRID.cell).flatten(1)
order = held.argsort(dim=1, descending=True, stable=True)

# %% 1 wrong
pixels = study.train.parts[:, 0].float()  # the first part is not the object
held = torch.nn.functional.avg_pool2d(pixels[:, None], GRID.cell).flatten(1)
order = held.argsort(dim=1, descending=True, stable=True)


# %% 2 solution
def trap(sets):
    on = sets.float()
    return on @ torch.tensor([1.0, 0.9, 0.9]) + 2 * on[..., 1] * on[..., 2]


# %% 2 wrong
def trap(sets):
    return sets.float() @ torch.tensor([1.0, 0.9, 0.9])  # a sum: the best single regions are the best pair


# %% 3 solution
ranked = searched(study.base, study.held_out)
black = nets.seen_through(study.base, study.held_out.pixels, GRID)
curve = []
for k in range(9):
    found = black(~first(ranked, k)[:, None])[:, 0].argmax(-1)
    curve.append(float((found == study.held_out.labels).float().mean()))

# %% 3 wrong
ranked = searched(study.base, study.held_out)
black = nets.seen_through(study.base, study.held_out.pixels, GRID)
curve = []
for k in range(9):
    found = black(first(ranked, k)[:, None])[:, 0].argmax(-1)  # only these are shown: an insertion curve
    curve.append(float((found == study.held_out.labels).float().mean()))
