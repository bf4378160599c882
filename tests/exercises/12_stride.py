# %% 1 solution
effects_before, recovered_before = few_effects, few_recovered
rerun("few_documents = take(bed.train", ("stability=10.0", "stability=1000.0"))
rerun("pulls.append(pull(")
rerun("ridge_by_hand =")
factor = np.linalg.norm(effects_before) / np.linalg.norm(few_effects)
# %% 1 wrong
effects_before, recovered_before = few_effects, few_recovered
rerun("few_documents = take(bed.train", ("stability=10.0", "stability=1000.0"))
rerun("pulls.append(pull(")
rerun("ridge_by_hand =")
factor = np.linalg.norm(recovered_before) / np.linalg.norm(few_recovered) / 2  # of other numbers
# %% 2 solution
costs = {}
for how in ("lasso", "ridge"):
    every = recovery.recover(operators.measure, tune_effects, how)
    some = recovery.recover(operators.measure[::2], tune_effects[::2], how)
    costs[how] = mean_lds(every, tune) - mean_lds(some, tune)
# %% 2 wrong
costs = {}
for how in ("lasso", "ridge"):
    every = recovery.recover(operators.measure, tune_effects, how)
    some = recovery.recover(operators.measure[::2], tune_effects[::2], how)
    costs[how] = 1 - mean_lds(some, tune) / mean_lds(every, tune)  # a share
# %% 3 solution
strong = Weights(fidelity=1.0, stability=1e4, linearity=0.0)
same = {"rank": operators.readout.shape[1], "layer": operators.layer}
single = stride.operators_for(task, bed.train, np.eye(n, dtype=bool), weights=strong, steps=0, **same)
H = 0
for i in range(n):
    B, p, labels = positions(bed.train, i, single)
    H = H + torch.einsum("tc,tr,ts->crs", p, B, B) / len(B) / n
document_pulls = torch.stack([pull(*positions(bed.train, i, single)) for i in range(n)])  # [n, r, C]
query_pulls = torch.stack([pull(*positions(chapter.test_queries, q, single)) for q in range(int(test.sum()))])
solved = torch.linalg.solve(H + 1e-3 * torch.eye(H.shape[1]), document_pulls.permute(2, 1, 0))  # [C, r, n]
direct = torch.einsum("qrc,crn->qn", query_pulls, solved).numpy()
# %% 3 wrong
strong = Weights(fidelity=1.0, stability=1e4, linearity=0.0)
same = {"rank": operators.readout.shape[1], "layer": operators.layer}
single = stride.operators_for(task, bed.train, np.eye(n, dtype=bool), weights=strong, steps=0, **same)
document_pulls = torch.stack([pull(*positions(bed.train, i, single)) for i in range(n)])
query_pulls = torch.stack([pull(*positions(chapter.test_queries, q, single)) for q in range(int(test.sum()))])
direct = torch.einsum("qrc,nrc->qn", query_pulls, document_pulls).numpy()  # a dot product, without the curvature
# %% 4 solution
phase_of_both_signs = phase
rerun("def planted(rng)", ("rng.choice([-1, 1], k) * rng.uniform(0.5, 2, k)", "rng.uniform(0.5, 2, k)"))
rerun("phase = pd.DataFrame(")
gains = {}
for how in ("lasso", "ridge", "correlation"):
    old, new = (table[table.recovery == how] for table in (phase_of_both_signs, phase))
    gains[how] = new.share_found.mean() - old.share_found.mean()
# %% 4 wrong
phase_of_both_signs = phase
two_signs = "rng.uniform(-2, 2, k)"  # still both signs
rerun("def planted(rng)", ("rng.choice([-1, 1], k) * rng.uniform(0.5, 2, k)", two_signs))
rerun("phase = pd.DataFrame(")
gains = {}
for how in ("lasso", "ridge", "correlation"):
    old, new = (table[table.recovery == how] for table in (phase_of_both_signs, phase))
    gains[how] = new.close.mean() - old.close.mean()
