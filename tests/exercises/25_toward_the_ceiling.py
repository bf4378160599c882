# %% 1 solution
def enough(n):
    k = 2
    while 2 * n * 2.0**-k >= 1:
        k += 1
    return k


# %% 1 wrong
def enough(n):
    k = 2
    while n * 2.0**-k >= 1:  # only the documents that are in no half
        k += 1
    return k


# %% 2 solution
def balance(scores, mask):
    scaled = scores.copy()
    for side in (mask, ~mask):
        scaled[:, side] /= np.sqrt((scores[:, side] ** 2).mean(1, keepdims=True))
    return scaled


# %% 2 wrong
def balance(scores, mask):
    return scores / np.sqrt((scores**2).mean(1, keepdims=True))  # both sides together


# %% 3 solution
def left_out(x, y):
    total = x @ x + 1
    return (y - x * (x @ y) / total) / (1 - x**2 / total)


# %% 3 wrong
def left_out(x, y):
    return y - x * (x @ y) / (x @ x + 1)  # the residuals inside of the fit


# %% 4 solution
masks64 = halves.draw(len(tiny.documents), 64, 0, stream=1)
models64 = halves.trained(tiny_task, masks64, halves.seeds_from(0, 64, 1))
y64 = -halves.log_losses(tiny_task, [moments[-1] for moments in models64], tiny_queries)
weights64 = residual.datamodel(masks64, y64)

# %% 4 wrong
masks64 = halves.draw(len(tiny.documents), 64, 0, stream=1)
models64 = halves.trained(tiny_task, masks64, halves.seeds_from(0, 64, 1))
y64 = halves.log_losses(tiny_task, [moments[-1] for moments in models64], tiny_queries)  # the sign of a loss
weights64 = residual.datamodel(masks64, y64)
