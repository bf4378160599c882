# %% 1 solution
of_layers = [nets[-1].params[f"{name}.weight"].shape for name in layers]
saved = sum(out * (inner + 1) for out, inner in of_layers) / sum(out + inner + 1 for out, inner in of_layers)

# %% 1 wrong
of_layers = [nets[-1].params[f"{name}.weight"].shape for name in layers]
saved = sum(out * inner for out, inner in of_layers) / sum(out + inner for out, inner in of_layers)  # no biases

# %% 2 solution
chunks = {batch: [-(-n // max(32, min(batch, 2**22 // size))) for size in sizes] for batch in (250, 32)}

# %% 2 wrong
chunks = {batch: [n // max(32, min(batch, 2**22 // size)) for size in sizes] for batch in (250, 32)}  # the rest is lost

# %% 3 solution
from_width = 2 * 30**2 + 1

# %% 3 wrong
from_width = 2 * 30 + 1  # a product of every position with itself only

# %% 4 solution
dense_, streamed_ = {"curvature": "ggn"}, {"curvature": "ggn", "solver": "cg", "iterations": 2}
answers = {"exact": refusal_of("influence", dense_, half_share), "cg": refusal_of("influence", streamed_, half_share)}

# %% 4 wrong
dense_, layers_ = {"curvature": "ggn"}, {"curvature": "block_ggn"}  # smaller, but written down as well
answers = {"exact": refusal_of("influence", dense_, half_share), "cg": refusal_of("influence", layers_, half_share)}
