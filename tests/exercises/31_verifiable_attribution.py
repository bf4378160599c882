# %% 1 solution
from dataclasses import replace

from tda.studies.verification.residual import residual as estimate_of

few_bases, found_ = replace(statement, bases=30), []
for number in range(400):
    verifier_ = Verifier(learner, few_bases, number.to_bytes(32, "big"))
    subsets_ = verifier_.coins.pairs[0]
    f = learner(subsets_, np.zeros(len(subsets_), int)).values[:, 0]
    design = np.column_stack([np.ones(len(f)), subsets_ - 0.5])
    before = fit("least_squares", learner, len(f), 0.5, np.random.default_rng([2, number]))
    for claim_ in (np.linalg.lstsq(design, f, rcond=None)[0], np.append(before.mean, before.scores)):
        left_over = (f - design @ claim_).reshape(4, -1, 1)
        found_.append(estimate_of(left_over, RHO, constraint=False).value[0] / eps)
late, early = np.mean(found_[::2]), np.mean(found_[1::2])

# %% 1 wrong
from dataclasses import replace

from tda.studies.verification.residual import residual as estimate_of

few_bases, found_ = replace(statement, bases=30), []
for number in range(400):
    verifier_ = Verifier(learner, few_bases, number.to_bytes(32, "big"))
    subsets_ = verifier_.coins.pairs[0]
    f = learner(subsets_, np.zeros(len(subsets_), int)).values[:, 0].reshape(4, -1, 1)
    found_.append(estimate_of(f, RHO, constraint=False).value[0] / eps)  # nothing is subtracted
late = early = np.mean(found_)

# %% 2 solution
import base64

from tda.studies.verification.messages import decode, encode, pack


def edit(number, raw):
    if number != 3:
        return raw
    message = decode(raw)
    packed = message.body["scores"]
    halved = np.frombuffer(base64.b64decode(packed["data"]), "<f8").reshape(packed["shape"]) / 2
    body = message.body | {"scores": pack(halved)}
    return encode(message.session, message.number, message.kind, message.previous, body)[0]


# %% 2 wrong
def edit(number, raw):
    if number != 3:
        return raw
    content = json.loads(raw)
    content["body"]["scores"]["data"] = content["body"]["scores"]["data"][::-1]
    return json.dumps(content, sort_keys=True, separators=(",", ":")).encode()  # the old digest


# %% 3 solution
def fool(terms, lies):
    terms[np.argsort(terms)[:lies]] = 2 * np.abs(terms).max()  # the smallest gain most, wherever they are pulled in to
    return terms


escape = np.exp(-2 * np.log(3 / statement.delta))


# %% 3 wrong
def fool(terms, lies):
    terms[np.argsort(-terms)[:lies]] = 2 * np.abs(terms).max()  # these are pulled in again
    return terms


escape = statement.delta
