# %% 1 solution
own = lds_on("generated", matrices["pixel_cosine"])
dealt = chance["generated"]["pixel_cosine"]
alone = (1 + (dealt >= own - 1e-12).sum()) / (1 + len(dealt))
# %% 1 wrong
dealt = chance["generated"]["pixel_cosine"]
alone = (dealt >= 0).mean() / 2  # against zero, not against the row
# %% 2 solution
unweighted = attribution.attribute("das", task, train, queries, **chapter.options("das") | {"error": "none"})
kept = spearman_rows(unweighted, matrices["das"]).mean()
# %% 2 wrong
unweighted = attribution.attribute("das", task, train, queries, error="none", damping=30.0)  # at another damping
kept = spearman_rows(unweighted, matrices["das"]).mean()
# %% 3 solution
found, rise = matrices["diffusion_trak"][generated], board.rises(groups)[generated]
counts = (~groups.subsets).sum(1)
by_mean = board.top_one(board.group_sums(found, groups) / counts, rise)
# %% 3 wrong
found, rise = matrices["diffusion_trak"][generated], board.rises(groups)[generated]
by_mean = board.top_one(found @ groups.subsets.T / groups.subsets.sum(1), rise)  # of the images that are kept
# %% 4 solution
drowned = attribution.attribute("diffusion_trak", task, train, queries, damping=1e6)
same = "gradient_dot"
# %% 4 wrong
drowned = attribution.attribute("diffusion_trak", task, train, queries, damping=1e6)
same = "gradient_cosine"
